"""Write down what the golden runs do now: `python -m tests.golden.record`.

Only for a change that is meant to change results; its commit says which keys changed and why.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch

from tests.golden.cases import CASES, arithmetic, record

EXPECTED = Path(__file__).parent / "expected"


def main() -> None:
    torch.set_num_threads(1)
    EXPECTED.mkdir(exist_ok=True)
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["CASAM_HOME"] = str(Path(folder) / "home")
            content = {"arithmetic": arithmetic(), **record(name, Path(folder) / "run")}
        (EXPECTED / f"{name}.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        print(name)


if __name__ == "__main__":
    main()
