"""A site answers the questions that its scenario contains, and no others that a server may think of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from casam_core.bank.entries import make_entry
from casam_core.errors import PolicyError
from casam_core.model.forms import build_layer, form_spec, weights_of
from casam_core.protocol.messages import AlignRequest, CalibrateRequest, EvaluateRequest, RouterRequest
from casam_core.protocol.outcomes import Outcome
from casam_core.protocol.payload import Job
from client.institution import Institution
from client.release import permission
from client.release.question import check_entry, check_question
from tests.banks import tiny_backbone
from tests.client.test_institution import institution
from tests.refused import refused

POLYP = Job("north", 1, "polyp")
LATER = Job("west", 2, "histology")
FITTED = {"kind": "gaussian"}
"""A router whose thresholds are fitted."""
WEIGHTS = weights_of(build_layer(form_spec("low_rank"), tiny_backbone().geometry.channels, 0))


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> Institution:
    return institution(
        "north", tmp_path_factory.mktemp("north"), training={"rounds": 2, "epochs": 1}, router=FITTED
    )


def sites(folder: Path, method: str, keep: bool = False) -> Institution:
    made = institution("west", folder, method=method)
    policy = made.site.policy.model_copy(update={"keep_samples": keep})
    made.site = replace(made.site, policy=policy)
    return made


def test_the_questions_of_a_run_are_answered(north: Institution) -> None:
    check_question(north, AlignRequest(POLYP))
    check_question(north, AlignRequest(replace(POLYP, round=2), layer=WEIGHTS))
    check_question(north, AlignRequest(POLYP, again=True))
    check_question(north, RouterRequest(POLYP, alone=True))
    check_question(north, EvaluateRequest(Job("north", 0), 0, [], ""))
    check_question(north, EvaluateRequest(Job("north", 1), 0, [], "", candidates=("polyp",)))


def test_arrays_of_another_form_are_refused_before_they_are_used(north: Institution) -> None:
    odd = {name: array[None] for name, array in WEIGHTS.items()}
    nan = {name: array * np.float32("nan") for name, array in WEIGHTS.items()}
    for layer in ({}, odd, nan, {**WEIGHTS, "x": np.zeros(3, np.float32)}):
        with refused(Outcome.BAD_REQUEST, match="layer"):
            check_question(north, AlignRequest(replace(POLYP, round=2), layer=layer))
    with refused(Outcome.BAD_REQUEST, match="fold-0"):
        check_question(north, CalibrateRequest(POLYP, [{"mean_F": np.zeros(3, np.float32)}]))


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(AlignRequest(POLYP, layer=WEIGHTS), id="weights for the first round"),
        pytest.param(AlignRequest(replace(POLYP, round=3), layer=WEIGHTS), id="a round too many"),
        pytest.param(AlignRequest(replace(POLYP, round=0)), id="a round before the first"),
        pytest.param(AlignRequest(replace(POLYP, stage=2)), id="the task in another stage"),
        pytest.param(AlignRequest(replace(POLYP, stage=99)), id="a stage too many"),
        pytest.param(AlignRequest(replace(POLYP, stage=-1)), id="a stage before the first"),
        pytest.param(AlignRequest(replace(POLYP, task="secret")), id="a task that is not in the stream"),
        pytest.param(AlignRequest(POLYP, tasks=("polyp", "histology")), id="more tasks"),
        pytest.param(AlignRequest(POLYP, tasks=("polyp", "polyp")), id="a task twice"),
        pytest.param(AlignRequest(POLYP, pooled=True), id="pooled images"),
        pytest.param(AlignRequest(POLYP, anchor=WEIGHTS), id="an earlier layer"),
        pytest.param(AlignRequest(POLYP, importance=WEIGHTS), id="importance of weights"),
        pytest.param(RouterRequest(replace(POLYP, stage=2), alone=True), id="a router of another stage"),
        pytest.param(RouterRequest(replace(POLYP, round=2, task="histology"), alone=False), id="no holder"),
        pytest.param(EvaluateRequest(Job("north", 99), 0, [], ""), id="an evaluation too many"),
        pytest.param(EvaluateRequest(Job("north", 1, "polyp"), 0, [], ""), id="an evaluation of a task"),
        pytest.param(EvaluateRequest(Job("north", 1, round=2), 0, [], ""), id="a round of an evaluation"),
        pytest.param(RouterRequest(replace(POLYP, round=2), alone=True), id="a round of a router"),
        pytest.param(
            EvaluateRequest(Job("north", 1), 0, [], "", candidates=("histology",)), id="another candidate"
        ),
    ],
)
def test_other_questions_get_no_answer(
    north: Institution, asked: AlignRequest | RouterRequest | EvaluateRequest
) -> None:
    with refused(Outcome.NOT_IN_SCENARIO):
        check_question(north, asked)


def test_a_control_variate_is_a_question_of_scaffold_from_its_second_round_on(
    north: Institution, tmp_path: Path
) -> None:
    later = replace(POLYP, round=2)
    training = {"rounds": 2, "epochs": 1, "strategy": "scaffold"}
    site = institution("north", tmp_path, training=training, router=FITTED)
    check_question(site, AlignRequest(later, layer=WEIGHTS, control=WEIGHTS))
    odd = {name: array[None] for name, array in WEIGHTS.items()}
    with refused(Outcome.BAD_REQUEST, match="control"):
        check_question(site, AlignRequest(later, layer=WEIGHTS, control=odd))
    with refused(Outcome.NOT_IN_SCENARIO, match="control variate"):
        check_question(site, AlignRequest(POLYP, control=WEIGHTS))
    with refused(Outcome.NOT_IN_SCENARIO, match="control variate"):
        check_question(north, AlignRequest(later, layer=WEIGHTS, control=WEIGHTS))


def test_scores_are_asked_under_one_router_per_fold(north: Institution) -> None:
    state = north.router.fit(north.router_statistics(POLYP).router)
    folds = north.scenario.router.folds
    permission.calibrate(north, CalibrateRequest(POLYP, [state] * folds))
    with refused(Outcome.NOT_IN_SCENARIO):
        permission.calibrate(north, CalibrateRequest(POLYP, [state] * (folds + 1)))


def test_no_scores_are_asked_for_if_all_tasks_have_one_threshold(tmp_path: Path) -> None:
    site = institution("north", tmp_path)
    state = site.router.fit(site.router_statistics(POLYP).router)
    with refused(Outcome.NOT_IN_SCENARIO, match="all tasks have one threshold"):
        permission.calibrate(site, CalibrateRequest(POLYP, [state] * 5))


def test_an_entry_comes_after_its_stage(north: Institution) -> None:
    """Otherwise every stage is one more place to probe the images with entries of a server's own making."""
    learned = permission.align(north, AlignRequest(POLYP))
    router = permission.describe(north, RouterRequest(POLYP, alone=True))
    entry = make_entry(
        north.scenario,
        north.backbone.digest,
        task="polyp",
        stage=1,
        layer=learned.layer,
        improved=True,
        holders=("north",),
        images=learned.images,
        router=router.router,
        threshold=router.threshold,
    )
    check_entry(north, entry, Job("north", 1))
    check_entry(north, entry, Job("north", 2))
    with refused(Outcome.BAD_REQUEST, match="an entry of 'polyp'"):
        check_entry(north, entry, Job("north", 0))


def test_a_method_decides_which_tasks_are_trained_again(tmp_path: Path) -> None:
    before = AlignRequest(LATER, layer=WEIGHTS)
    check_question(sites(tmp_path, "sequential"), before)
    with refused(Outcome.NOT_IN_SCENARIO):  # no method trains without a layer of its own on every task
        check_question(sites(tmp_path, "sequential"), replace(before, tasks=("polyp", "histology")))
    with refused(Outcome.NOT_IN_SCENARIO):  # this method has no penalty
        check_question(sites(tmp_path, "sequential"), replace(before, anchor=WEIGHTS))
    check_question(sites(tmp_path, "ewc"), replace(before, anchor=WEIGHTS, importance=WEIGHTS))
    check_question(sites(tmp_path, "lwf"), replace(before, anchor=WEIGHTS))
    with refused(Outcome.NOT_IN_SCENARIO):
        check_question(sites(tmp_path, "lwf"), replace(before, anchor=WEIGHTS, importance=WEIGHTS))
    with refused(Outcome.NOT_IN_SCENARIO):
        check_question(sites(tmp_path, "frozen"), AlignRequest(LATER))
    with refused(Outcome.NOT_IN_SCENARIO):
        check_question(sites(tmp_path, "sequential"), RouterRequest(LATER, alone=True))


def test_an_exchange_is_asked_in_few_ways_in_all_runs(tmp_path: Path) -> None:
    """Each set of routers of a server's own choice would draw another picture of the same images."""
    first, second = (institution("north", tmp_path / home, router=FITTED) for home in "12")
    second.site = replace(second.site, questions=first.site.questions, run="another")  # of the same home
    state = first.router.fit(first.router_statistics(POLYP).router)
    probes = [
        CalibrateRequest(
            POLYP, [{key: value + 0.1 * i for key, value in state.items()}] * first.scenario.router.folds
        )
        for i in range(first.site.policy.max_questions + 1)
    ]
    for probe in probes[:-2]:
        permission.calibrate(first, probe)
        permission.calibrate(second, probe)  # the same question again
    permission.calibrate(second, probes[-2])
    for site in (first, second):
        with refused(Outcome.QUESTIONS_SPENT):
            permission.calibrate(site, probes[-1])
        permission.calibrate(site, probes[0])
    permission.describe(first, RouterRequest(POLYP, alone=True))  # another exchange counts by itself


def test_a_damaged_memory_of_questions_stops_the_answers(tmp_path: Path) -> None:
    site = institution("north", tmp_path)
    permission.describe(site, RouterRequest(POLYP, alone=True))
    site.site.questions.write_text("{}\n")
    with pytest.raises(PolicyError, match="restore the file"):
        permission.describe(site, RouterRequest(POLYP, alone=False))
