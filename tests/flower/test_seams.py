"""What this product takes from inside Flower, one test for each place. Flower promises to keep none of it.

If a test fails with a new Flower, the name of the test says what changed, and its docstring says which module
must be looked at. `make flower-next` runs them, and whole runs, with the newest Flower of the package index.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.control_pb2 import ListNodesResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal

from casam_core.protocol.wire import deserialise, serialise
from client.node.launcher import FLOWER
from scenarios.deploy.gateway import FLEET
from scenarios.engines.inprocess import InProcessGrid, set_id
from scenarios.engines.superlink import flower_command
from tests.house import ROOT


def parameters(function: Callable[..., object]) -> list[str]:
    """The names of a function's parameters, in order."""
    return list(inspect.signature(function).parameters)


def source_of(module: str) -> str:
    return Path(str(importlib.import_module(module).__file__)).read_text()


def test_the_window_is_that_of_pyproject() -> None:
    oldest, newest = FLOWER
    asked = f"flwr>={'.'.join(map(str, oldest))},<{newest[0]}.{newest[1] + 1}"
    assert f'"{asked}"' in (ROOT / "pyproject.toml").read_text()


# --- scenarios/deploy/operator.py


def test_the_superlink_tells_the_public_keys_of_its_nodes() -> None:
    """scenarios/deploy/operator.py finds by them which node is whose."""
    asked = parameters(ControlHttpClient.from_server_address)
    assert {"server_address", "insecure", "root_certificates", "interceptors"} <= set(asked)
    assert ListNodesResponse(nodes_info=[NodeInfo(node_id=7, public_key=b"key")]).nodes_info[0].node_id == 7


# --- client/node/launcher.py


def test_a_node_gets_its_connection_from_one_name_that_can_be_wrapped() -> None:
    """client/node/launcher.py wraps `http_request_response` in the module that calls it."""
    connect = inspect.unwrap(vars(start_client_internal)["http_request_response"])
    (given,) = [
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(connect)))
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple)
    ]
    assert [ast.unparse(part).split(".")[-1] for part in given.elts][:5] == [
        *("node_id", "receive", "send", "get_run", "get_fab"),
    ]
    calls = re.findall(r"\bhttp_request_response\(", inspect.getsource(start_client_internal))
    assert len(calls) == 1, "called by this name, so a wrapper under this name is used"


def test_a_node_stores_a_bundle_only_after_it_has_verified_it() -> None:
    """client/node/launcher.py leaves other bundles without a signature, and relies on this check."""
    assert parameters(start_client_internal._verify_fab)[:2] == ["fab", "trusted_entities"]
    lines = inspect.getsource(start_client_internal)
    fetched, verified = lines.index(" = get_fab("), lines.index(" = _verify_fab(")
    assert fetched < verified < lines.index(".store_fab(")


def test_a_bundle_and_a_run_have_the_fields_that_the_launcher_compares() -> None:
    assert [field.name for field in fields(Fab)] == ["hash_str", "content", "verifications"]
    assert {"run_id", "fab_id", "fab_version", "fab_hash", "primary_task_type"} <= {
        field.name for field in fields(Run)
    }
    assert TaskType.AGENT_APP == "flwr-agentapp"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "flower-supernode",
            "--superlink --root-certificates --auth-supernode-private-key --host --port --isolation "
            "--node-config --trusted-entities",
        ),
        (
            "flower-superlink",
            "--isolation --insecure --simulation --database --host --port --ssl-ca-certfile --ssl-certfile "
            "--ssl-keyfile --enable-supernode-auth",
        ),
        ("flwr run", "--stream --run-config --federation-config"),
        ("flwr list", "--run-id --format"),
        ("flwr supernode register", "--format"),
        ("flwr supernode unregister", "--format"),
        ("flwr supernode list", "--format"),
    ],
)
def test_flowers_commands_have_the_options_that_we_give(command: str, options: str) -> None:
    """client/node/launcher.py, scenarios/deploy/operator.py, scenarios/engines/flower.py and superlink.py."""
    program, *rest = command.split()
    shown = subprocess.run(
        [flower_command(program), *rest, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={
            "NO_COLOR": "1",
            "COLUMNS": "200",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        },
    ).stdout
    assert set(options.split()) <= set(re.findall(r"--[a-z-]+", shown))


# --- scenarios/deploy/gateway.py


def test_the_gateways_paths_are_flowers_fleet_paths_but_for_nodes_without_keys() -> None:
    """A new path must be looked at in scenarios/deploy/gateway.py: may an institution call it?"""
    named = re.findall(r'@router\.post\("(/[a-z-]+)"\)', source_of("flwr.superlink.routers.fleet.router"))
    paths = {f"/v1/fleet{path}".encode() for path in named}
    assert paths - set(FLEET) == {b"/v1/fleet/register-node", b"/v1/fleet/unregister-node"}
    assert set(FLEET) <= paths


# --- secure sums: client/secagg/member.py, server/federation/secagg.py


@pytest.mark.parametrize(
    ("module", "replaced"),
    [
        ("flwr.client.mod.secure_aggregation.secaggplus_mod", {"pseudo_rand_gen": 2, "quantize": 1}),
        ("flwr.server.workflow.secure_aggregation.secaggplus_workflow", {"pseudo_rand_gen": 2}),
    ],
)
def test_secure_sums_call_their_generator_and_rounding_by_names_of_their_module(
    module: str, replaced: dict[str, int]
) -> None:
    """We replace them there. A changed number of calls means new code, which must be read."""
    calls = re.findall(r"(?<!def )(?<!import )\b(pseudo_rand_gen|quantize)\(", source_of(module))
    assert {name: calls.count(name) for name in replaced} == replaced


def test_the_stages_of_a_secure_sum_are_flowers() -> None:
    """server/federation/secagg.py calls them one by one."""
    workflow = importlib.import_module("flwr.server.workflow.secure_aggregation.secaggplus_workflow")
    for stage in ("setup_stage", "share_keys_stage", "collect_masked_vectors_stage", "unmask_stage"):
        assert parameters(getattr(workflow.SecAggPlusWorkflow, stage)) == ["self", "grid", "context", "state"]


# --- messages: casam_core/protocol/wire.py, scenarios/engines/inprocess.py, server/federation/exchange.py


def test_records_are_written_and_read_by_flowers_own_format() -> None:
    records = RecordDict({"arrays": ArrayRecord({"a": Array("float32", (1,), "numpy.ndarray", b"1234")})})
    assert deserialise(serialise(records)) == records


def test_the_engine_of_one_process_has_every_function_of_a_grid() -> None:
    abstract: frozenset[str] = Grid.__abstractmethods__
    assert not [name for name in abstract if name not in vars(InProcessGrid)]


def test_a_message_carries_the_id_that_we_give_it() -> None:
    """scenarios/engines/inprocess.py gives ids as the SuperLink does, by a private attribute."""
    InProcessGrid(1, {})
    message = Message(RecordDict(), dst_node_id=1000, message_type="query.identify")
    assert set_id(message) == message.metadata.message_id


def test_the_errors_that_we_name_exist() -> None:
    """server/federation/exchange.py gives each a word."""
    exchange: Any = importlib.import_module("server.federation.exchange")
    named = re.findall(r"ErrorCode\.(\w+)", inspect.getsource(exchange))
    assert named
    assert not [name for name in named if not hasattr(ErrorCode, name)]


@pytest.mark.parametrize("command", ["simulation.app", "superlink.cli"])
def test_only_the_simulation_command_imports_flowers_simulation_package(command: str) -> None:
    """server/federation/exchange.py knows from this whether it runs in a simulation."""
    script = f"import sys, flwr.{command}; sys.exit('flwr.simulation' in sys.modules)"
    imported = subprocess.run([sys.executable, "-c", script], check=False).returncode
    assert imported == (command == "simulation.app")


# --- scenarios/engines/bundle.py


def test_a_bundle_is_built_from_a_folder() -> None:
    build = importlib.import_module("flwr.cli.build").build_fab_from_disk
    assert len(parameters(build)) >= 1
    assert inspect.signature(build).return_annotation in (bytes, "bytes")
