"""The smallest Flower app: the server asks every node once and prints what it answers."""

from __future__ import annotations

from pathlib import Path

PYPROJECT = """
[project]
name = "echo"
version = "0.1.0"
description = "One question, one answer"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "tests"
fab-include = ["echo/**"]

[tool.flwr.app.components]
serverapp = "echo.server:app"
clientapp = "echo.client:app"

[tool.flwr.app.config]
ending = "return"
nodes = 1
note = ""
"""

CLIENT = """
import os
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query("echo")
def echo(message, context):
    print("client was asked", flush=True)
    answer = ConfigRecord({"file": __file__, "extra": os.environ.get("EXTRA", ""), "nice": os.nice(0)})
    return Message(RecordDict({"answer": answer}), reply_to=message)
"""

SERVER = """
import os, sys, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    ending = context.run_config["ending"]
    print(f"note: {context.run_config['note']}", flush=True)
    while len(nodes := list(grid.get_node_ids())) < context.run_config["nodes"]:
        time.sleep(0.1)
    print(f"nodes: {len(nodes)}", flush=True)
    print(f"ray keeps: {os.environ['RAY_TMPDIR']}", flush=True)
    question = RecordDict({"question": ConfigRecord({"n": 1})})
    questions = [Message(question, dst_node_id=n, message_type="query.echo") for n in nodes]
    waiting = set(grid.push_messages(questions))
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            if reply.has_error():
                print(f"error code: {reply.error.code}", flush=True)
                continue
            answer = reply.content["answer"]
            print(f"niceness: {answer['nice']}", flush=True)
            print(f"answer: {answer['extra']} from {answer['file']}", flush=True)
        time.sleep(0.1)
    if ending == "raise":
        raise ValueError("the server gives up")
    if ending == "exit":
        sys.exit(7)
    if ending == "wait":
        print("waiting", flush=True)
        time.sleep(600)
"""


def write_echo_app(root: Path) -> Path:
    """The app in a new folder `root`."""
    (root / "echo").mkdir(parents=True)
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "echo" / "__init__.py").touch()
    (root / "echo" / "client.py").write_text(CLIENT)
    (root / "echo" / "server.py").write_text(SERVER)
    return root
