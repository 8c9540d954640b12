"""SAM's mask decoder, fine-tuned task after task; no Alignment Layer."""

from casam_core.methods.base import Method, by_shared_entry

METHOD = Method(
    "SAM's mask decoder, fine-tuned task after task.", form="decoder", shared=True, route=by_shared_entry
)
