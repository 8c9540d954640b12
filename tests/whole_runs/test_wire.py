"""All messages of a run, searched for what must not be in them; the search itself is shown to find it."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from casam_core.config.scenario import Scenario
from casam_core.protocol.audit import read_log
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.wire import from_records, serialise, to_records
from client.institution import Institution
from client.site import hosted_sites
from scenarios.engines.inprocess import InProcessGrid, run_inprocess
from tests.banks import tiny_backbone
from tests.conftest import phantom, tiny_table
from tests.wire import Secrets, encodings, exact, scaled, similar, unpacked

pytestmark = pytest.mark.slow

SECRET = {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}}
PRIVATE = {
    "adapter": {"noise": "dp"},
    "router": {"noise": "dp"},
    "metrics": "noisy",
    "budget": {"epsilon": 8.0, "epsilon_metrics": 8.0, "delta": 0.01},
}
POLICIES = {"north": {}, "south": PRIVATE, "a": SECRET, "b": SECRET, "c": SECRET}
TASKS = {"north": "polyp", "south": "cardiac_mr", "a": "histology", "b": "histology", "c": "histology"}


def scenario() -> Scenario:
    sites = [
        {"name": name, "data": {TASKS[name]: phantom(TASKS[name], 24)}, "policy": policy}
        for name, policy in POLICIES.items()
    ]
    stream = ["polyp", "cardiac_mr", "histology"]
    return Scenario.model_validate(
        tiny_table(stream=stream, institutions=sites, privacy={"steps": 3}, alignment={"form": "residual"})
    )


class Recording:
    """Everything that went over the wire: (institution, whether from it, bytes)."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bool, bytes]] = []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recording, Secrets]:
    """A run of open, private and secretly adding institutions, and what none of them may let out."""
    folder, recording, secrets = tmp_path_factory.mktemp("wire"), Recording(), {}
    deliver = InProcessGrid._deliver

    def recorded(self: InProcessGrid, message: object) -> str:
        asked = message.content  # type: ignore[attr-defined]
        message_id = deliver(self, message)  # type: ignore[arg-type]
        config = from_records(asked).config
        name = str(config.get("institution", ""))
        recording.messages.append((name, False, serialise(asked)))
        recording.messages.append((name, True, serialise(self._replies[message_id].content)))
        return message_id

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASAM_HOME", str(folder / "home"))
        patch.setattr(InProcessGrid, "_deliver", recorded)
        run_inprocess(scenario(), folder / "run", None)
        node = {"partition-id": 0, "num-partitions": 1}
        for site in hosted_sites(scenario(), "again", node, {"out": str(folder)}):
            institution = Institution(site, scenario(), tiny_backbone())
            task = TASKS[site.institution]
            data = institution.task(task)
            for number, sample in enumerate(data.dataset.samples[:2]):
                loaded = data.load(sample)
                about = f"{site.institution} {number}"
                secrets[f"image of {about}"] = loaded.image_HW3
                secrets[f"mask of {about}"] = loaded.labels_HW
                secrets[f"embedding of {about}"] = data.embedding(sample, institution.backbone)[1].numpy()
    return folder / "run", recording, secrets


def test_nothing_private_is_on_the_wire(run: tuple[Path, Recording, Secrets]) -> None:
    _, recording, secrets = run
    assert len(recording.messages) > 60
    assert len(secrets) == 30
    found = {
        what for _, _, data in recording.messages for what in (*exact(secrets, data), *similar(secrets, data))
    }
    assert found == set()


def test_the_search_sees_the_scenario_that_was_told(run: tuple[Path, Recording, Secrets]) -> None:
    told = scenario().canonical_json().encode()
    assert any(told in content for _, _, data in run[1].messages for content in unpacked(data))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_what_left_has_the_bytes_of_the_audit_log(run: tuple[Path, Recording, Secrets], name: str) -> None:
    folder, recording, _ = run
    sent = sum(len(data) for who, outgoing, data in recording.messages if who == name and outgoing)
    lines = read_log(folder / "institutions" / name / "private" / "audit.jsonl")
    logged = sum(line.release.bytes for line in lines if line.release.kind != "query.identify")
    assert sent == logged


# --- The search finds what is planted ------------------------------------------------------------------

Plant = Callable[[NDArray[np.generic]], NDArray[np.uint8]]


def as_bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def png(values: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    pixels = scaled(values)
    Image.fromarray(pixels.reshape(pixels.shape[0], -1) if pixels.shape[-1] != 3 else pixels).save(
        file, "PNG"
    )
    return file.getvalue()


PLANTS: dict[str, Plant] = {
    **{name: (lambda v, n=name: as_bytes(encodings(v)[n])) for name in ("raw", "uint8", "fp16", "fp32")},
    "zlib": lambda v: as_bytes(zlib.compress(v.tobytes())),
    "PNG": lambda v: as_bytes(png(v)),
    "base64": lambda v: as_bytes(base64.b64encode(v.tobytes())),
    "base64 zlib": lambda v: as_bytes(base64.b64encode(zlib.compress(v.tobytes()))),
}


def message(planted: NDArray[np.generic]) -> bytes:
    """An ordinary answer in whose layer something is hidden, behind other weights."""
    weights = np.random.default_rng(0).normal(size=501).astype(np.float32)
    arrays = {"layer": {"a": weights, "b": planted, "c": weights}}
    return serialise(to_records(Payload(Job("north", 1).config(), arrays)))


@pytest.mark.parametrize("encoding", PLANTS)
@pytest.mark.parametrize("what", ["image", "mask", "embedding"])
def test_a_planted_copy_is_found(run: tuple[Path, Recording, Secrets], what: str, encoding: str) -> None:
    name = f"{what} of a 0"
    secret = run[2][name]
    hidden = message(PLANTS[encoding](secret))
    names = {hit.split(" as ")[0] for hit in exact(run[2], hidden)}
    assert name in names


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("what", ["image", "embedding"])
def test_a_planted_likeness_is_found(run: tuple[Path, Recording, Secrets], what: str, dtype: str) -> None:
    name = f"{what} of a 0"
    values = np.asarray(run[2][name], np.float64)
    noise = np.random.default_rng(1).normal(size=values.shape) * values.std() * 0.1
    likeness = (values + noise) * -0.5 + 3.0
    planted = scaled(likeness) if dtype == "uint8" else likeness.astype(dtype)
    assert exact(run[2], message(planted)) == []
    assert name in similar(run[2], message(planted))


def test_ordinary_weights_are_like_nothing(run: tuple[Path, Recording, Secrets]) -> None:
    weights = np.random.default_rng(2).normal(size=20_000).astype(np.float32)
    assert exact(run[2], message(weights)) == []
    assert similar(run[2], message(weights)) == []
