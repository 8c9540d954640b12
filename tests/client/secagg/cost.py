"""What one secure sum costs at its members, by exchange: `python -m tests.client.secagg.cost`.

Seconds and bytes of one sum of layers over 3, 5 and 10 institutions in one process, all members together.
The masked arrays grow with the layer; everything else does not. The training in the third exchange is left
out of the seconds.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from pathlib import Path

from flwr.app import Message

from casam_core.config.scenario import Scenario
from casam_core.protocol.secure_sum import COLLECT, STEPS_OF_A_SUM
from casam_core.protocol.wire import from_records, serialise
from scenarios.engines.inprocess import InProcessGrid, run_inprocess
from tests.conftest import phantom, tiny_table

SECRET = {"adapter": {"aggregation": "secagg"}, "router": {"share": "never"}}


def cost(folder: Path, members: int) -> tuple[dict[str, float], dict[str, int]]:
    """(seconds at the members, bytes in both directions) of one sum of layers, by exchange."""
    names = "abcdefghij"[:members]
    sites = [{"name": n, "data": {"polyp": phantom("polyp", 8)}, "policy": SECRET} for n in names]
    scenario = Scenario.model_validate(tiny_table(stream=["polyp"], institutions=sites))
    seconds, size = Counter[str](), Counter[str]()
    deliver = InProcessGrid._deliver

    def measured(self: InProcessGrid, message: Message) -> str:
        begun = time.perf_counter()
        message_id = deliver(self, message)
        if message.metadata.message_type == "train":
            (step,) = from_records(message.content).arrays.keys() & set(STEPS_OF_A_SUM)
            seconds[step] += time.perf_counter() - begun
            size[step] += len(serialise(message.content)) + len(serialise(self._replies[message_id].content))
        return message_id

    InProcessGrid._deliver = measured  # type: ignore[method-assign]
    try:
        run_inprocess(scenario, folder / f"run-{members}", None)
    finally:
        InProcessGrid._deliver = deliver  # type: ignore[method-assign]
    return dict(seconds), dict(size)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["CASAM_HOME"] = f"{scratch}/home"
        cost(Path(scratch) / "warm", 3)
        print("members  exchange                seconds  bytes")
        for members in (3, 5, 10):
            seconds, size = cost(Path(scratch), members)
            for step in STEPS_OF_A_SUM:
                shown = "-" if step == COLLECT else f"{seconds[step]:.3f}"
                print(f"{members:7}  {step:22}  {shown:>7}  {size[step]:7,}")
            rest = sum(value for step, value in seconds.items() if step != COLLECT)
            others = sum(value for step, value in size.items() if step != COLLECT)
            print(f"{members:7}  without the arrays      {rest:7.3f}  {others:7,}")


if __name__ == "__main__":
    main()
