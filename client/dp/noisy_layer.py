"""Training a layer with noise, where the institution's policy asks for it (docs/privacy.md)."""

from __future__ import annotations

from dataclasses import replace

from casam_core.methods import alignment_of, method_of
from casam_core.model.forms import learning_rate_of, set_weights, weights_of
from casam_core.model.training import Example
from casam_core.privacy.dp_training import PRIVATE_FORMS, round_mechanism, train_privately
from casam_core.privacy.noise import NoiseSource
from casam_core.protocol.messages import AlignReply, AlignRequest
from casam_core.protocol.payload import Payload
from casam_core.seeding import numpy_generator
from client.dp.paid_release import release_once, units_held
from client.dp.plan import learning_noise
from client.institution import Institution
from client.node.progress import reporter
from client.release.refusals import NoiseNotPossibleError


def align_privately(institution: Institution, request: AlignRequest) -> AlignReply:
    """One private round on this institution's images of the job's own task.

    Nothing but the layer leaves: no loss, no early stop, and not whether it beats frozen SAM.
    Raises NoiseNotPossibleError for methods and forms that need more than that, BudgetSpentError.
    """
    job, scenario, backbone = request.job, institution.scenario, institution.backbone
    method, spec = method_of(scenario.method), alignment_of(scenario, job.task)
    if method.weighs or method.penalty or request.pooled or request.trains_on != (job.task,):
        raise NoiseNotPossibleError(f"method {scenario.method!r} releases more than a noisy layer")
    if spec.form not in PRIVATE_FORMS:
        raise NoiseNotPossibleError(f"form {spec.form!r}: expected one of {', '.join(PRIVATE_FORMS)}")
    data, samples = institution.encoded(job.task, "train")
    units = units_held(institution, job.task, "train")
    noise_multiplier = learning_noise(scenario, institution.site.policy)

    def compute(noise: NoiseSource) -> Payload:
        layer = institution.first_layer(job.task)
        if request.layer is not None:
            set_weights(layer, request.layer)

        def example(i: int) -> Example:
            return data.example(samples[i], backbone, layer.sees_pixels)

        train_privately(
            layer,
            backbone,
            example,
            units,
            scenario.training,
            scenario.privacy,
            noise_multiplier=noise_multiplier,
            learning_rate=scenario.privacy.learning_rate or learning_rate_of(spec),
            rng=numpy_generator(scenario.seed, institution.name, job.stage, job.round, "align"),
            noise=noise,
            progress=reporter(institution.name, f"train {job.task} privately"),
        )
        return AlignReply(weights_of(layer), len(samples)).to_payload()

    released = release_once(
        institution,
        job,
        "align",
        # Learning anew asks the same: what was released for it is sent again and costs nothing.
        replace(request, again=False).to_payload(),
        split="train",
        mechanisms={job.task: round_mechanism(scenario.privacy, noise_multiplier)},
        units={job.task: len(units)},
        compute=compute,
    )
    return AlignReply.of(released)
