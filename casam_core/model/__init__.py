"""The frozen backbone, the layer that is trained on it, and the training.

`import segment_anything` also imports its predictor, and with it torchvision and PyTorch's compiler: a second
of a processor in every process of a node, which starts one for a message and needs no predictor.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from typing import Any


def postpone(package: str) -> None:
    """Import modules of this package without its own code, which runs when a name of it is asked for."""
    spec = find_spec(package) if package not in sys.modules else None
    if spec is None or spec.loader is None:  # imported already; or not installed, which its import will say
        return
    module, run = module_from_spec(spec), spec.loader.exec_module

    def rest(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        del vars(module)["__getattr__"]
        run(module)
        return getattr(module, name)

    vars(module)["__getattr__"] = rest
    sys.modules[package] = module


postpone("segment_anything")
