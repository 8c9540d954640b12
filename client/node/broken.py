"""What answers when the client cannot even be imported: one word, and the reason in the node's own log.

Flower would send the exception's text, with its paths, to the server.
"""

from __future__ import annotations

import traceback

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.node.incidents import keep, node_log


def broken_app(error: BaseException) -> ClientApp:
    """A ClientApp that says `failed` to everything."""
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
