"""Private training of a layer, if the institution's policy asks for noise (docs/privacy.md)."""

from __future__ import annotations

from casam_core.config.scenario import LOCAL_STRATEGIES
from casam_core.errors import BankError
from casam_core.methods import alignment_of, method_of
from casam_core.model.forms import AlignmentLayer, private_forms, weights_of
from casam_core.model.layer_library import LayerLibrary
from casam_core.privacy.layer_steps import PrivateSteps
from casam_core.privacy.noise import NoiseSource
from casam_core.protocol.messages import AlignReply, AlignRequest, question_of
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Payload
from client.dp.paid_release import AGAIN, LATER, plan_of, release_once
from client.institution import Institution, train_round
from client.node.worktime import reporter
from client.simulation.kept_training import trained_once


def align_privately(institution: Institution, request: AlignRequest) -> AlignReply:
    """One private round on this institution's images of the job's own task.

    Only the layer leaves: no loss, no early stop, and no comparison with frozen SAM.

    Raises:
        RefusalError: noise-not-possible (the method or form releases more than the layer) or budget-spent.
    """
    job, scenario = request.job, institution.scenario
    method, form = method_of(scenario.method), alignment_of(scenario, job.task).form
    if method.weighs or method.penalty or request.pooled:
        raise RefusalError(
            Outcome.NOISE_NOT_POSSIBLE, f"method {scenario.method!r} releases more than a noisy layer"
        )
    if request.trains_on != (job.task,):
        raise RefusalError(
            Outcome.NOISE_NOT_POSSIBLE, f"the budget of {job.task} does not pay for {request.trains_on}"
        )
    if scenario.training.strategy in LOCAL_STRATEGIES:
        raise RefusalError(
            Outcome.NOISE_NOT_POSSIBLE, f"strategy {scenario.training.strategy!r} has no training with noise"
        )
    if form not in (able := private_forms()):
        raise RefusalError(Outcome.NOISE_NOT_POSSIBLE, f"form {form!r}: expected one of {', '.join(able)}")
    units = institution.units(job.task, "train")
    library = fitting_library(institution, institution.layer(job.task, request.layer))
    plan = plan_of(institution, job.task)

    def train(noise: NoiseSource) -> AlignReply:
        layer = institution.layer(job.task, request.layer)
        examples = institution.examples([job.task], "train", layer)
        draws = institution.private_draws(job, "align")
        steps = PrivateSteps(units, scenario.privacy, plan.layer_noise, noise, draws, library)
        report = reporter(institution.name, f"train {job.task} privately")
        rng = institution.draws(job, "align")
        train_round(scenario, job.task, layer, institution.backbone, examples, steps, rng, report)
        return AlignReply(weights_of(layer), units.images)

    def compute(noise: NoiseSource) -> Payload:
        kept = trained_once(institution, request, lambda: train(noise), private=True)
        return kept.to_payload()

    released = release_once(
        institution,
        job,
        "align",
        question_of(request),
        split="train",
        mechanisms={job.task: {"align": plan.layer_round}},
        units={job.task: units},
        compute=compute,
        made_with="" if job.round == 1 else AGAIN if request.again else LATER,
    )
    return AlignReply.of(released)


def fitting_library(institution: Institution, layer: AlignmentLayer) -> LayerLibrary | None:
    """The scenario's library of layers; None if its private training uses none.

    Raises RefusalError: other-public-file if it is for another form, unknown-scenario if it is not here.
    """
    if institution.scenario.privacy.method != "public_start":
        return None
    try:
        library = institution.library()
    except BankError as error:
        raise RefusalError(Outcome.UNKNOWN_SCENARIO, str(error)) from error
    if not library.fits(layer):
        raise RefusalError(
            Outcome.OTHER_PUBLIC_FILE,
            f"privacy.library: it is for {library.about.get('form')}, not for the layer of this task",
        )
    return library
