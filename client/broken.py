"""What answers when the client cannot even be imported: one word, and the reason in the node's own log.

Flower would send the exception's text, with its paths, to the server.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import traceback
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp


def broken_app(error: BaseException) -> ClientApp:
    """A ClientApp that says `failed` to everything."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        incident = secrets.token_hex(4)
        with contextlib.suppress(Exception):
            home = str(context.node_config.get("home", os.environ.get("CASAM_HOME", "~/.cache/casam")))
            log = Path(home).expanduser() / f"node-{context.node_config.get('partition-id', 0)}.log"
            log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with log.open("a") as file:
                file.write(f"incident {incident}: {''.join(traceback.format_exception(error))}")
        outcome = ConfigRecord({"outcome": "failed", "incident": incident})
        return Message(RecordDict({"config": outcome}), reply_to=message)

    app.query("identify")(answer)
    for action in ("align", "router", "calibrate"):
        app.train(action)(answer)
    app.evaluate("stage")(answer)
    return app
