"""Rounds of one message to every node and back; prints the seconds of each round."""

from __future__ import annotations

import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

POLL_SECONDS, POLL_SHARE = 0.02, 0.05
"""As in server/federation/exchange.py. All nodes are asked at once, as in Flower's examples."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for all nodes, then measure the rounds."""
    settings = context.run_config
    while len(nodes := list(grid.get_node_ids())) < int(settings["nodes"]):
        time.sleep(POLL_SECONDS)
    content = RecordDict({"nothing": ArrayRecord({"x": Array(np.zeros(int(settings["down"]), np.uint8))})})
    for _ in range(int(settings["rounds"])):
        begun = time.monotonic()
        messages = [Message(content, dst_node_id=node, message_type="query.idle") for node in nodes]
        waiting = set(grid.push_messages(messages))
        while waiting:
            for reply in grid.pull_messages(list(waiting)):
                waiting.discard(reply.metadata.reply_to_message_id)
            if waiting:
                time.sleep(max(POLL_SECONDS, POLL_SHARE * (time.monotonic() - begun)))
        print(f"idle | round took {time.monotonic() - begun:.3f} s", flush=True)
