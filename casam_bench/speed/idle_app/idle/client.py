"""A node that answers every message with a given number of bytes."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("idle")
def idle(message: Message, context: Context) -> Message:
    """An answer of zeros; the run config sets its size."""
    content = np.zeros(int(context.run_config["up"]), np.uint8)
    return Message(RecordDict({"nothing": ArrayRecord({"x": Array(content)})}), reply_to=message)
