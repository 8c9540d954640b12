"""The order of a private release: reserve its cost, compute it, store it, and only then send it.

If a stored release is requested again, the same bytes are sent. If a crash happens before a release is
stored, its cost stays in the ledger and the release is computed again with new noise. The same rule covers
crashes, lost replies and repeated requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from casam_core.files import make_folder, remove, sync, sync_names, write_atomic
from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import Units
from casam_core.protocol.audit import now
from casam_core.protocol.messages import Forecast
from casam_core.protocol.payload import Job, Payload, digest_of
from casam_core.protocol.wire import deserialise, from_records, serialise, to_records
from client.dp.plan import TaskPlan
from client.institution import Institution
from client.release.ledger import Ledger, Spend, of_images, reserve
from client.site import Site


def release_once(
    institution: Institution,
    job: Job,
    kind: str,
    request: Payload,
    *,
    split: str,
    mechanisms: Mapping[str, Mapping[str, Mechanism]],
    units: dict[str, Units],
    compute: Callable[[NoiseSource], Payload],
    made_with: str = "",
) -> Payload:
    """The answer to `request`, stored and paid for once.

    Args:
        kind: name of the release in the file name.
        split: the part of the images that pays: train, val or test.
        request: everything that determines the answer; its digest identifies the stored release.
        mechanisms, units: by task whose images are used, the mechanisms by the name of their line in the
            ledger, and the protected units.
        compute: makes the answer with the given noise.
        made_with: "-LABEL" in the file name of a release that was computed with entries or layers of other
            institutions, for forget_releases.

    Raises:
        RefusalError: budget-spent or delta-too-large; nothing was computed.
        PolicyError: the ledger cannot be used; nothing was computed.
    """
    folder = releases_of(institution.site)
    for path in folder.glob(f"{kind}{made_with}-{digest_of(request)}-*.bin"):
        sync(path)  # the call that wrote it may have ended before its name was certain
        sync_names(folder, 3)
        return from_records(deserialise(path.read_bytes()))
    for task, parts in mechanisms.items():
        spends = [spend_on(institution, name, task, split, part) for name, part in parts.items()]
        reserve(institution.site, spends, units[task].count)
    payload = compute(institution.noise(job, kind))
    make_folder(folder, 0o700)
    sync_names(folder, 3)  # also those of the run's folder, in the home
    name = f"{kind}{made_with}-{digest_of(request)}-{digest_of(payload)}.bin"
    write_atomic(folder / name, serialise(to_records(payload)))
    return payload


def spend_on(institution: Institution, kind: str, task: str, split: str, mechanism: Mechanism) -> Spend:
    """One mechanism on a task's images, as a line of the ledger."""
    return Spend(
        time=now(),
        run=institution.site.run,
        kind=kind,
        task=task,
        dataset=institution.dataset(task),
        split=split,
        unit=institution.site.policy.budget.unit,
        noise_multiplier=mechanism.noise_multiplier,
        sample_rate=mechanism.sample_rate,
        steps=mechanism.steps,
        division=institution.task(task).division,
    )


def releases_of(site: Site) -> Path:
    """The folder of this run's private releases."""
    return site.private / "releases"


LATER, AGAIN = "-later", "-again"
"""made_with: a round that started from a merged layer; the same when the task is learned again."""


def stage_label(stage: int) -> str:
    """made_with: the bank of a stage."""
    return f"-stage{stage:04d}"


def forget_releases(site: Site, stage: int) -> None:
    """Delete the stored releases that were computed with entries or layers of others before this stage.

    They hold routes to the entries of an institution that leaves now, or its part of a merged layer. No later
    request asks for them again; their cost stays in the ledger.
    """
    for path in releases_of(site).glob("*.bin"):
        kind, _, rest = path.name.partition("-")
        old = rest.startswith("stage") and rest < stage_label(stage)[1:]
        if old or (kind == "align" and rest.startswith(LATER[1:])):
            remove(path)


def was_paid_for(site: Site, payload: Payload) -> bool:
    """Whether these arrays and numbers are bit for bit a stored private release."""
    bare = digest_of(Payload({}, payload.arrays, payload.metrics))
    return any(releases_of(site).glob(f"*-{bare}.bin"))


def plan_of(institution: Institution, task: str) -> TaskPlan:
    """How the institution's budget for a task is divided."""
    return TaskPlan(institution.scenario, institution.site.policy, institution.units(task, "train").count)


def forecasts_of(institution: Institution) -> dict[str, Forecast]:
    """By task that this institution trains privately, how its budget is divided, and the rounds it pays."""
    site, scenario = institution.site, institution.scenario
    spends = Ledger(site.ledger).lines()
    found = {}
    for task in site.tasks:
        if task in scenario.stream:
            division = institution.task(task).division
            spent = of_images(spends, institution.dataset(task), "train", division)
            plan = plan_of(institution, task)
            count = plan.affordable_rounds([s.mechanism for s in spent])
            found[task] = Forecast(count, scenario.training.rounds, plan.router_share)
    return found
