"""One shared layer, fine-tuned task after task: how much is forgotten when nothing prevents it."""

from casam_core.methods.base import Method, by_shared_entry

METHOD = Method("One shared layer, fine-tuned task after task.", shared=True, route=by_shared_entry)
