"""What Flower loads: the ClientApp, from the bundle and nowhere else."""

import os
import traceback
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.node.incidents import keep, node_log

ROOT = Path(__file__).resolve().parents[2]

# In a simulation, Ray's workers import the client from the directory the SuperLink was started in,
# which may hold another checkout. This module is imported first in Ray's driver, whose working
# directory the workers inherit.
os.chdir(ROOT)

# Ray would otherwise join the last cluster that `ray start` left a note of, whether or not it lives, and
# wait for it. Who wants a cluster names it in RAY_ADDRESS ("auto" is the last one).
os.environ.setdefault("RAY_ADDRESS", "local")


def broken_app(error: BaseException) -> ClientApp:
    """What answers when the client cannot even be imported: `failed`, to everything.

    The reason goes to the node's own log. Flower would send the exception's text, with its paths, to the
    server.
    """
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        incident = keep("".join(traceback.format_exception(error)), node_log(context.node_config))
        outcome = ConfigRecord({"outcome": "failed", "incident": incident})
        return Message(RecordDict({"config": outcome}), reply_to=message)

    for action in ("identify", "forget"):
        app.query(action)(answer)
    for action in ("align", "router", "calibrate"):
        app.train(action)(answer)
    app.train()(answer)
    app.evaluate("stage")(answer)
    return app


app: ClientApp
try:
    from client.client_app import app
except Exception as error:
    app = broken_app(error)

__all__ = ["app"]
