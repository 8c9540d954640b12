"""The method. A finished bank in a few lines (docs/using-a-bank.md):

>>> import numpy as np
>>> from PIL import Image
>>> from casam_core import Segmenter, backbone_for, load_bank
>>> bank = load_bank("bank")
>>> segmenter = Segmenter(backbone_for(bank), bank)
>>> image = np.asarray(Image.open("image.png").convert("RGB"))
>>> prediction = segmenter.predict(image, [(8, 8, 40, 40)])
>>> prediction.name  # who answered: a task of the bank, or identity
'polyp'
>>> prediction.masks_NHW.shape == (1, *image.shape[:2])
True
>>> z_BCHW = segmenter.embed(image)  # or step by step
>>> bank.route(z_BCHW)[0].nearest
'polyp'
>>> bank["polyp"].layer(z_BCHW).shape == z_BCHW.shape
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casam_core.bank.inference import LoadedBank, LoadedEntry, load_bank
    from casam_core.bank.segmenter import Prediction, Segmenter, backbone_for

# Loaded when asked for: `import casam_core` comes first in every command, and torch takes seconds.
_HOMES = {
    "LoadedBank": "casam_core.bank.inference",
    "LoadedEntry": "casam_core.bank.inference",
    "load_bank": "casam_core.bank.inference",
    "Prediction": "casam_core.bank.segmenter",
    "Segmenter": "casam_core.bank.segmenter",
    "backbone_for": "casam_core.bank.segmenter",
}

__all__ = ["LoadedBank", "LoadedEntry", "Prediction", "Segmenter", "backbone_for", "load_bank"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
