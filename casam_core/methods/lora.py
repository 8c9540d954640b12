"""LoRA of SAM's image encoder, fine-tuned task after task; no Alignment Layer."""

from casam_core.methods.base import Method, by_shared_entry

METHOD = Method(
    "LoRA of SAM's encoder, fine-tuned task after task.",
    form="lora",
    shared=True,
    route=by_shared_entry,
)
