"""Rounds of one message to every node and back; prints the seconds of each round."""

from __future__ import annotations

import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

POLL_SECONDS, POLL_SHARE = 0.02, 0.05
"""As in server/federation/exchange.py."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for all nodes, then measure the rounds."""
    settings = context.run_config
    while len(nodes := list(grid.get_node_ids())) < int(settings["nodes"]):
        time.sleep(POLL_SECONDS)
    content = RecordDict({"nothing": ArrayRecord({"x": Array(np.zeros(int(settings["down"]), np.uint8))})})
    at_once = int(settings["at_once"])
    for _ in range(int(settings["rounds"])):
        begun, unsent, waiting = time.monotonic(), nodes, set[str]()
        while unsent or waiting:
            room = at_once - len(waiting)
            batch, unsent = unsent[:room], unsent[room:]
            messages = [Message(content, dst_node_id=node, message_type="query.idle") for node in batch]
            waiting |= set(grid.push_messages(messages)) if messages else set()
            for reply in grid.pull_messages(list(waiting)):
                waiting.discard(reply.metadata.reply_to_message_id)
            if waiting:
                waited = POLL_SHARE * (time.monotonic() - begun)
                time.sleep(POLL_SECONDS if unsent else max(POLL_SECONDS, waited))
        print(f"idle | round took {time.monotonic() - begun:.3f} s", flush=True)
