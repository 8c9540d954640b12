"""Ways to smuggle something out in an answer, and that none of them passes the guard."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casam_core.config.scenario import Scenario
from casam_core.model.compute import Compute
from casam_core.protocol.messages import AlignRequest, CalibrateRequest, ForgetReply, allowed_in
from casam_core.protocol.outcomes import Outcome
from casam_core.protocol.payload import Job, Payload, in_order
from casam_core.routing.routers import build_router
from casam_core.routing.threshold import fold_statistics
from client.evaluation.own_entries import known_entries, own_entries
from client.identity import identity_of
from client.institution import Institution
from client.release.guard import NotAllowedError, check, check_identity
from client.site import hosted_sites
from tests.banks import tiny_backbone
from tests.conftest import tiny_table

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
PATIENT = "Doe, Jane, born 1950-01-01"

ALIGN, ROUTER, CALIBRATE, EVALUATE = (
    Job("north", 1, "polyp"),
    Job("north", 1, "polyp"),
    Job("north", 1, "polyp"),
    Job("north", 0),
)

Answers = dict[str, Payload]


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> Institution:
    # A Gaussian router has more that can be wrong: folds, a threshold, and its score histogram.
    scenario = Scenario.model_validate(tiny_table(router={"kind": "gaussian"}))
    node = {"partition-id": 0, "num-partitions": 1}
    folder = tmp_path_factory.mktemp("guard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASAM_HOME", str(folder / "home"))
        site = next(
            s for s in hosted_sites(scenario, "run", node, {"out": str(folder)}) if s.institution == "north"
        )
    return Institution(site, scenario, tiny_backbone())


@pytest.fixture(scope="module")
def answers(north: Institution) -> Answers:
    """One honest answer of each kind."""
    spec = north.scenario.router
    router = build_router(spec)
    f_NF, seed = north.described(ROUTER)
    folds = [router.fit(fold) for fold in fold_statistics(router, f_NF, spec, seed)]
    empty = known_entries(north, own_entries(north))
    return {
        "train.align": north.align(AlignRequest(ALIGN, None)).to_payload(),
        "train.router": north.fit_router(ROUTER).to_payload(),
        "train.calibrate": north.calibrate(CalibrateRequest(CALIBRATE, folds)).to_payload(),
        "evaluate.stage": north.evaluate(empty).to_payload(),
        "query.forget": ForgetReply("b" * 128).to_payload(),
        "query.identify": identity_of([north]).to_payload(),
    }


ASKED = {"train.router": {"alone": True}, "evaluate.stage": {"candidates": "[]"}}
"""The settings of the requests that the honest answers answer."""


def job_of(kind: str) -> Job | None:
    return {
        "train.align": ALIGN,
        "train.router": ROUTER,
        "train.calibrate": CALIBRATE,
        "evaluate.stage": EVALUATE,
        "query.forget": EVALUATE,
    }.get(kind)


def guarded(kind: str, payload: Payload, north: Institution, job: Job | None = None) -> None:
    if kind == "query.identify":
        check_identity(kind, payload, [north])
    else:
        check(kind, payload, north, job_of(kind) or job, ASKED.get(kind, {}))


@pytest.mark.parametrize(
    "kind",
    ["train.align", "train.router", "train.calibrate", "evaluate.stage", "query.forget", "query.identify"],
)
def test_honest_answers_pass(kind: str, answers: Answers, north: Institution) -> None:
    guarded(kind, answers[kind], north)
    guarded(kind, in_order(replace(answers[kind], config={**answers[kind].config, "outcome": "ok"})), north)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("encoder", ["plain", "fast", "compiled"])
def test_every_way_to_compute_may_be_named(answers: Answers, precision: str, encoder: str) -> None:
    variant = Compute(device="cuda", threads=16, precision=precision, encoder=encoder).variant
    identify = answers["query.identify"]
    named = replace(identify, config={**identify.config, "compute": variant, "outcome": Outcome.OK})
    allowed_in("query.identify", None).check(in_order(named))


def test_summaries_of_several_holders_pass(north: Institution) -> None:
    check("train.router", north.router_statistics(ROUTER).to_payload(), north, ROUTER, {"alone": False})


def config(**more: Any) -> Callable[[Payload], Payload]:
    return lambda p: replace(p, config={**p.config, **more})


def arrays(**groups: dict[str, Any]) -> Callable[[Payload], Payload]:
    return lambda p: replace(p, arrays={**p.arrays, **groups})


def array(group: str, change: Callable[[str, Any], tuple[str, Any]]) -> Callable[[Payload], Payload]:
    """Change the first array of a group."""

    def changed(p: Payload) -> Payload:
        (name, value), *rest = p.arrays[group].items()
        new_name, new_value = change(name, value)
        return replace(p, arrays={**p.arrays, group: {new_name: new_value, **dict(rest)}})

    return changed


def numbers(group: str, **more: float) -> Callable[[Payload], Payload]:
    return lambda p: replace(p, metrics={**p.metrics, group: {**p.metrics.get(group, {}), **more}})


def turned(p: Payload) -> Payload:
    """The same arrays from last to first."""
    return replace(p, arrays={name: dict(reversed(group.items())) for name, group in p.arrays.items()})


def first(value: float) -> Callable[[str, Any], tuple[str, Any]]:
    def changed(name: str, array: Any) -> tuple[str, Any]:
        array = array.copy()
        array.reshape(-1)[0] = value
        return name, array

    return changed


def tables(key: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Payload], Payload]:
    def changed(p: Payload) -> Payload:
        content = json.loads(str(p.config[key]))
        change(content)
        return replace(p, config={**p.config, key: json.dumps(content, sort_keys=True)})

    return changed


SMUGGLE: list[tuple[str, str, Callable[[Payload], Payload]]] = [
    ("an extra record of images", "train.align", arrays(images={"0": IMAGE})),
    ("an extra record with a harmless name", "train.align", arrays(metrics={"a": np.zeros(3, np.float32)})),
    ("images as float weights", "train.align", arrays(layer={"w": IMAGE.astype(np.float32)})),
    ("an extra array among the weights", "train.align", array("layer", lambda n, a: (n + "_2", a))),
    (
        "weights left out",
        "train.align",
        lambda p: replace(p, arrays={"layer": dict(list(p.arrays["layer"].items())[1:])}),
    ),
    ("weights of another shape", "train.align", array("layer", lambda n, a: (n, a[None]))),
    ("longer weights", "train.align", array("layer", lambda n, a: (n, np.concatenate([a, a])))),
    ("weights of another precision", "train.align", array("layer", lambda n, a: (n, a.astype(np.float64)))),
    ("integers in place of weights", "train.align", array("layer", lambda n, a: (n, a.astype(np.int32)))),
    ("pixels in place of weights", "train.align", array("layer", lambda n, a: (n, a.astype(np.uint8)))),
    ("text in place of weights", "train.align", array("layer", lambda n, a: (n, np.array([PATIENT])))),
    ("NaN payloads", "train.align", array("layer", first(np.nan))),
    ("infinite weights", "train.align", array("layer", first(np.inf))),
    (
        "importance that nobody asked for",
        "train.align",
        lambda p: replace(p, arrays={**p.arrays, "importance": p.arrays["layer"]}),
    ),
    (
        "embeddings under the router's name",
        "train.align",
        arrays(router={"mean_F": np.zeros(64, np.float32)}),
    ),
    ("a name in a setting", "train.align", config(note=PATIENT)),
    ("another order of the weights", "train.align", turned),
    ("a verdict that nobody asked for", "evaluate.stage", numbers("canary", failed=1)),
    ("a distance that nobody asked for", "evaluate.stage", numbers("score.polyp", hd95=12.5)),
    ("a number with more digits than it needs", "evaluate.stage", numbers("score.polyp", iou=0.123456789)),
    ("a count as a float", "evaluate.stage", numbers("score.polyp", images=4.0)),
    ("the other zero", "evaluate.stage", numbers("statistics.polyp", **{"gain.mean": -0.0})),
    ("one image less than there are", "evaluate.stage", numbers("score.polyp", images=3)),
    ("routes of more images than there are", "evaluate.stage", numbers("route.polyp", polyp=2)),
    ("a threshold in double precision", "train.router", numbers("router-facts", threshold=0.1)),
    ("another number of images", "train.router", numbers("router-facts", **{"num-examples": 1})),
    ("an image less", "train.align", numbers("align", **{"num-examples": 1})),
    ("a comparison that nobody asked for", "train.align", config(improved=True)),
    ("a correction with more digits than it needs", "train.align", numbers("estimate", correction=0.123)),
    ("a correction beyond any IoU", "train.align", numbers("estimate", correction=2.0)),
    ("decodes of more images than there are", "evaluate.stage", numbers("work", decodes=9999)),
    ("a huge setting", "train.align", config(improved="x" * 100_000)),
    ("a number where a yes is due", "train.align", config(improved=12345)),
    ("an outcome of one's own", "train.align", config(outcome=PATIENT)),
    ("an incident with text", "train.align", config(incident=PATIENT)),
    ("an audit place of one's own", "train.align", config(audit=PATIENT)),
    ("an extra number", "train.align", numbers("align", age=76)),
    ("an extra group of numbers", "train.align", numbers("pixels", **{str(i): float(i) for i in range(9)})),
    ("a covert number of images", "train.align", numbers("align", **{"num-examples": 195001})),
    ("a fraction of an image", "train.align", numbers("align", **{"num-examples": 1.2345})),
    ("minus one image", "train.align", numbers("align", **{"num-examples": -1})),
    (
        "embeddings as router state",
        "train.router",
        arrays(router={"z_CHW": np.zeros((32, 8, 8), np.float32)}),
    ),
    (
        "all features beside the router",
        "train.router",
        arrays(features={"f_NF": np.zeros((9, 64), np.float32)}),
    ),
    (
        "more directions than there can be",
        "train.router",
        lambda p: replace(
            p, arrays={"router": {**p.arrays["router"], "directions_KF": np.zeros((500, 64), np.float32)}}
        ),
    ),
    (
        "a wider mean",
        "train.router",
        lambda p: replace(p, arrays={"router": {**p.arrays["router"], "mean_F": np.zeros(6400, np.float32)}}),
    ),
    (
        "a fold too many",
        "train.router",
        lambda p: replace(p, arrays={**p.arrays, "fold-5": p.arrays["router"]}),
    ),
    ("an infinite threshold", "train.router", numbers("router-facts", threshold=np.inf)),
    (
        "a list of scores as numbers",
        "train.router",
        numbers("router-facts", **{f"score-{i}": 0.1 for i in range(9)}),
    ),
    (
        "raw scores as a histogram",
        "train.calibrate",
        array("histogram", lambda n, a: (n, np.linspace(0, 1, len(a)))),
    ),
    ("a finer histogram", "train.calibrate", array("histogram", lambda n, a: (n, np.zeros(65536, np.int64)))),
    ("counts that encode values", "train.calibrate", array("histogram", first(2**40))),
    ("negative counts", "train.calibrate", array("histogram", first(-3))),
    ("a score above one", "evaluate.stage", numbers("score.polyp", iou=1950.0101)),
    ("a score that is no number", "evaluate.stage", numbers("score.polyp", iou=np.nan)),
    ("per-image scores", "evaluate.stage", numbers("score.polyp", **{f"image-{i}": 0.5 for i in range(9)})),
    ("scores of a task not held", "evaluate.stage", numbers("score.liver", iou=0.5)),
    ("a patient as a route", "evaluate.stage", numbers("route.polyp", **{PATIENT: 1})),
    ("a route of a file name", "evaluate.stage", numbers("route.polyp", **{"/data/doe.png": 1})),
    ("more routed images than there are", "evaluate.stage", numbers("route.polyp", identity=10_000)),
    ("an extra statistic", "evaluate.stage", numbers("statistics.polyp", **{"iou.median": 0.5})),
    ("a deviation that is a date", "evaluate.stage", numbers("statistics.polyp", **{"iou.sd": 19500101.0})),
    ("masks as margins", "evaluate.stage", arrays(margins={"polyp": np.ones((64, 64), np.bool_)})),
    (
        "margins with more images than there are",
        "evaluate.stage",
        arrays(margins={"polyp": np.full(512, 9, np.int64)}),
    ),
    ("margins of a task not held", "evaluate.stage", arrays(margins={"liver": np.zeros(512, np.int64)})),
    ("decodes beyond all counting", "evaluate.stage", numbers("work", decodes=2.0**60)),
    ("an extra setting at identify", "query.identify", config(hostname="ward-7")),
    ("text for a fingerprint", "query.identify", config(code=PATIENT)),
    ("text for a backbone", "query.identify", config(backbone=PATIENT)),
    ("text for the arithmetic", "query.identify", config(compute=PATIENT)),
    (
        "an institution's address in the table",
        "query.identify",
        tables("institutions", lambda t: t.update({PATIENT: {}})),
    ),
    (
        "a task named after a patient",
        "query.identify",
        tables("institutions", lambda t: t["north"].update({PATIENT: {"train": 1, "val": 1, "test": 1}})),
    ),
    (
        "an extra count",
        "query.identify",
        tables("institutions", lambda t: t["north"]["polyp"].update({"age": 76})),
    ),
    (
        "text for a count",
        "query.identify",
        tables("institutions", lambda t: t["north"]["polyp"].update({"train": PATIENT})),
    ),
    (
        "an extra key of the policy",
        "query.identify",
        tables("policies", lambda t: t["north"].update({"note": PATIENT})),
    ),
    (
        "space for a message in the table",
        "query.identify",
        lambda p: replace(p, config={**p.config, "institutions": str(p.config["institutions"]) + " " * 999}),
    ),
    (
        "a version of the messages that is not said",
        "query.identify",
        lambda p: replace(p, config={k: v for k, v in p.config.items() if k != "schema"}),
    ),
    ("arrays at identify", "query.identify", arrays(images={"0": IMAGE})),
    ("a name for a signature", "query.forget", config(signature=PATIENT)),
    ("pixels for a key", "query.forget", config(public=IMAGE.tobytes().hex())),
    ("a signature elsewhere", "train.align", config(signature="b" * 128)),
    (
        "a kind of message that nobody knows",
        "train.images",
        lambda p: replace(p, arrays={"images": {"0": IMAGE}}),
    ),
]


@pytest.mark.parametrize(
    ("kind", "smuggle"), [(k, s) for _, k, s in SMUGGLE], ids=[name for name, _, _ in SMUGGLE]
)
def test_nothing_that_is_not_on_the_list_passes(
    kind: str, smuggle: Callable[[Payload], Payload], answers: Answers, north: Institution
) -> None:
    honest = answers.get(kind, Payload({}))
    with pytest.raises(NotAllowedError) as caught:
        guarded(kind, smuggle(honest), north, ALIGN)
    assert len(str(caught.value)) < 300


def test_there_are_at_least_forty_ways() -> None:
    assert len({name for name, _, _ in SMUGGLE}) >= 40


def test_an_answer_without_an_institution_behind_it_is_none(answers: Answers) -> None:
    with pytest.raises(NotAllowedError, match="the answer belongs to no institution"):
        check("train.align", answers["train.align"], None, None)


def test_the_reason_stays_at_home_and_names_what_was_found(
    answers: Answers, north: Institution, tmp_path: Path
) -> None:
    with pytest.raises(NotAllowedError, match=r"array group 'images' is not on the list"):
        guarded("train.align", arrays(images={"0": IMAGE})(answers["train.align"]), north)
