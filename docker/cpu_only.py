"""Requirements without CUDA: those of a lock file but PyTorch, and but what its CUDA build asks for.

    python docker/cpu_only.py requirements-node.lock > others.lock
    python docker/cpu_only.py --torch requirements-node.lock      # torch==X torchvision==Y

PyTorch's CPU builds have other hashes than its CUDA builds, so they are installed by version.
"""

import re
import sys
from pathlib import Path

CUDA = re.compile(r"(nvidia-|cuda-|triton)")
TORCH = ("torch", "torchvision")


def requirements(text: str) -> dict[str, str]:
    """The blocks of a lock file by the name of their package; a block has the hashes below its first line."""
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", text)
    return {re.split(r"[=\s;]", block, maxsplit=1)[0]: block for block in blocks[1:]}


def main() -> None:
    found = requirements(Path(sys.argv[-1]).read_text())
    if "--torch" in sys.argv:
        print(" ".join(found[name].split()[0] for name in TORCH))
        return
    kept = [block for name, block in found.items() if name not in TORCH and not CUDA.match(name)]
    print("".join(kept), end="")


if __name__ == "__main__":
    main()
