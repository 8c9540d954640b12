"""The module that Flower loads: the ClientApp, always from the bundle."""

import os
import traceback
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.node.incidents import keep, node_log

ROOT = Path(__file__).resolve().parents[2]

# In a simulation, Ray's workers import the client from the directory in which the SuperLink was started.
# It may hold another checkout. This module is imported first in Ray's driver, and the workers inherit the
# driver's working directory.
os.chdir(ROOT)

# Without this, Ray waits for the last cluster that `ray start` recorded, even if it has ended. To use a
# cluster, set RAY_ADDRESS ("auto" means the last one).
os.environ.setdefault("RAY_ADDRESS", "local")


def broken_app(error: BaseException) -> ClientApp:
    """A ClientApp that answers `failed` to every message, for a client that cannot be imported.

    The reason goes to the node's own log. Flower would send the exception's text, which contains local paths,
    to the server.
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
