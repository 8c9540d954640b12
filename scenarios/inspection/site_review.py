"""`casam site review`: what a scenario asks of one site, in plain words, for the person who decides.

Everything on the page follows from the scenario, the site's policy and site file, and the declarations of the
messages (casam_core/protocol/messages.py), which are also the guard's list: a field that is not declared
there cannot leave.

In a clone, `python -m scenarios.inspection.site_review` makes docs/site-review.md again.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from casam_core.config.library import resolve_scenario
from casam_core.config.named_parts import SHIPPED_FRAMES, SHIPPED_LIBRARIES
from casam_core.config.policy import LearnedPolicy, Policy
from casam_core.config.scenario import STEPS, Scenario, TrainingSpec
from casam_core.config.site_file import SiteFile, simulated_task
from casam_core.errors import ScenarioError
from casam_core.model.backbones import load_backbone
from casam_core.model.compute import resolve_compute
from casam_core.model.layer_library import library_named
from casam_core.privacy.accounting import Mechanism, epsilon_of
from casam_core.protocol.limits import Allowed, GroupSpec, Range
from casam_core.protocol.messages import (
    REPLIES,
    AlignReply,
    CalibrateReply,
    EvaluateReply,
    ForgetReply,
    Holding,
    IdentifyReply,
    RouterReply,
    Sender,
)
from casam_core.protocol.outcomes import RefusalError
from casam_core.protocol.payload import Job
from casam_core.protocol.schema import Flag, Message
from casam_core.routing.routers.public_frame import frame_named
from client.data.open import location_of, open_dataset
from client.data.splits import kept_key, simulated_key
from client.data.task_data import TaskData, divide, division_of, private_units
from client.dp.plan import TaskPlan, evaluations, metrics_noise
from client.node.approvals import approvals_in
from client.release.ledger import Ledger, of_images
from scenarios.deploy.place import Place
from scenarios.inspection.plain_page import Block, Page, Rows, as_markdown, plain

MOST_CHANGES = 40
"""Lines of the comparison with the last approved scenario."""

NAMES: dict[type[Message], str] = {
    IdentifyReply: "who is here",
    AlignReply: "trained layer",
    RouterReply: "router",
    CalibrateReply: "threshold scores",
    EvaluateReply: "test scores",
    ForgetReply: "receipt of a deletion",
}


def page_of(place: Place, scenario: Scenario) -> Page:
    """The page about one scenario.

    Raises DataError: the site file does not describe a task, or its images cannot be read; ScenarioError: the
    scenario does not name the site.
    """
    name, named = place.institution, [spec.name for spec in scenario.institutions]
    if name not in named:
        raise ScenarioError(
            f"{scenario.name}: expected {name} among its institutions, found {', '.join(named[:20])}; it "
            "asks nothing of this site, so there is nothing to approve"
        )
    asked = scenario.institution(name).data
    sender = sender_of(place, scenario, list(asked))
    return [
        (f"What {name} is asked by `{plain(scenario.name)}`", about(place, scenario, sender)),
        ("What can leave, and who sees it", releases(place, scenario, sender)),
        ("What it costs in privacy", cost(place, scenario, list(asked))),
        ("What changed since the last approval", changes(place, scenario)),
        ("What never leaves", [never(place)]),
    ]


RELAYED = (
    "The server is a relay: it passes on means and sums over its institutions to another server, which asks "
    "the questions. In a secure sum you hide among the institutions of this server, and nobody else counts."
)


UNCOUNTED = (
    "How many images they have is known during a run; the bits below are those of one image in each part."
)


def opened(place: Place, tasks: Sequence[str]) -> dict[str, TaskData]:
    """The site's data of these tasks; images are counted, not read."""
    found = {}
    for task, spec in place.site.described(tasks).items():
        dataset = open_dataset(spec, data_root=place.data_root, seed=spec.seed, institution=place.institution)
        split = divide(
            dataset.samples, spec, kept_key(place.home), f"{place.institution}/{task}", place.policy
        )
        found[task] = TaskData(dataset, split, None)  # type: ignore[arg-type]  # nothing is encoded
    return found


def sender_of(place: Place, scenario: Scenario, tasks: Sequence[str]) -> Sender:
    """The site as the limits of messages need it."""
    holdings = {task: data.holding for task, data in opened(place, tasks).items()}
    if place.site.relay is not None:  # its members' images are known only during a run
        holdings = dict.fromkeys(tasks, Holding(1, 1, 1))
    backbone = load_backbone(scenario.backbone, resolve_compute(scenario.compute))
    job = Job(place.institution, 1, next(iter(tasks), scenario.stream[0]))
    return Sender(scenario, holdings, place.policy, backbone.geometry.channels, backbone, job)


def about(place: Place, scenario: Scenario, sender: Sender) -> list[Block]:
    """What is asked, by whom it is seen, and whether it was approved."""
    digest = scenario.digest()
    given = next((item for item in approvals_in(place.home) if item.digest == digest), None)
    state = "not approved" if given is None else f"approved on {given.time}"
    if given is not None and given.withdrawn:
        state = f"approval withdrawn on {given.withdrawn}"
    part = [
        f"{task}: {held.train} images for training, {held.val} for validation, {held.test} for testing"
        for task, held in sender.holdings.items()
    ]
    if place.site.relay is not None:
        held = ", ".join(sender.holdings) or "no task"
        part = [f"a relay, which stands for its members: {held}. {UNCOUNTED}"]
    others = [spec.name for spec in scenario.institutions if spec.name != place.institution]
    own = scenario.institution(place.institution).stream
    return [
        f"Digest {digest}, {state}. The author's own words about it: {plain(scenario.description) or 'none'}",
        f"Method {plain(scenario.method)}; {len(scenario.stream)} tasks in this order: "
        f"{', '.join(scenario.stream)}. Each task is trained in {scenario.training.rounds} rounds of "
        f"{passes(scenario.training)} over the images.",
        f"{len(others)} other institutions: {', '.join(others[:20])}{', ...' if others[20:] else ''}.",
        *([RELAYED] if scenario.relayed else []),
        *frame_note(scenario),
        *library_note(scenario),
        *([] if own is None else [f"This site learns them in an order of its own: {', '.join(own)}."]),
        "This site's part, by its own site file:",
        part or ["no task"],
    ]


def passes(training: TrainingSpec) -> str:
    """How often an image is used in a round."""
    if training.epochs is None:
        return f"as many passes as make about {STEPS} steps of {training.batch_images} images"
    return f"at most {training.epochs} passes"


def frame_note(scenario: Scenario) -> list[Block]:
    """Where the public frame of the router comes from: one of the server's own could be made as a probe."""
    digest = frame_named(scenario.router)
    if not digest:
        return []
    if digest in SHIPPED_FRAMES.values():
        name = scenario.backbone.name
        return [f"Its router uses the public frame {digest[:12]}, which casam ships for {name}."]
    return [
        f"Its router uses the public frame {digest[:12]}, which casam does NOT ship. A frame that was made "
        "to tell images apart would show more of them than one of phantoms. Ask for the scenario's file, and "
        "compare before you approve: casam scenarios frame FILE --again"
    ]


def library_note(scenario: Scenario) -> list[Block]:
    """Where the layer comes from with which training starts."""
    digest = library_named(scenario)
    if not digest:
        return []
    ships = "which casam ships" if digest in SHIPPED_LIBRARIES.values() else "which casam does NOT ship"
    return [
        f"Training starts from the public library of layers {digest[:12]}, {ships}. With privacy, every "
        "gradient is clipped and gets its noise wherever it is taken, so the library decides how well a "
        "layer learns, and not what it tells."
    ]


def releases(place: Place, scenario: Scenario, sender: Sender) -> list[Block]:
    """One line for every kind of message, with its fields, its size and its receivers."""
    lines = []
    for reply in REPLIES.values():
        state, times = permitted(reply, place.policy, scenario, sender)
        if not times:
            lines.append([NAMES[reply], state, "0", "0", "nobody"])
            continue
        bits = max(bits_of(reply, one) for one in each_task(sender)) if reply is not IdentifyReply else 0
        lines.append(
            [
                f"{NAMES[reply]}: {', '.join(field.replace('_', ' ') for field in reply.parts())}",
                state,
                str(times),
                f"{bits:,}" if bits else "the site's own facts",
                reply.receivers,
            ]
        )
    return [
        "One line for each kind of answer; an answer holds these fields and nothing else. Bits are the most "
        "that one answer can hold within the form that the guard checks.",
        Rows(("answer and its fields", "your policy", "times", "bits each", "who sees it"), lines),
    ]


def permitted(reply: type[Message], policy: Policy, scenario: Scenario, sender: Sender) -> tuple[str, int]:
    """What the policy says about a kind of answer, and how often at most it leaves in this scenario."""
    tasks = sum(task in scenario.stream for task in sender.holdings)
    times = {
        IdentifyReply: len(scenario.stream) + 1,
        AlignReply: tasks * scenario.training.rounds,
        RouterReply: tasks,
        CalibrateReply: sum(task in scenario.stream for task in sender.holdings if shared(scenario, task)),
        EvaluateReply: evaluations(scenario, policy),
        ForgetReply: sum(site.policy.on_leave == "unlearn" for site in scenario.institutions),
    }[reply]
    if reply is EvaluateReply:
        return f"metrics = {policy.metrics}", 0 if policy.metrics == "never" else times
    learned = {AlignReply: policy.adapter, RouterReply: policy.router, CalibrateReply: policy.router}.get(
        reply
    )
    if learned is None:
        return "always, to take part" if reply is IdentifyReply else "on_leave", times
    return in_words(learned, policy), 0 if learned.share == "never" else times


def shared(scenario: Scenario, task: str) -> bool:
    """Whether several institutions hold the task."""
    return len(scenario.holders(task)) > 1


def in_words(learned: LearnedPolicy, policy: Policy) -> str:
    """`yes, with noise, only in sums of 3 or more institutions`"""
    if learned.share == "never":
        return "never"
    noise = ", with noise" if learned.noise == "dp" else ", without noise"
    sums = (
        f", only in sums of {policy.minimum_cohort} or more institutions"
        if learned.aggregation == "secagg"
        else ""
    )
    return f"yes{noise}{sums}"


def each_task(sender: Sender) -> Iterator[Sender]:
    """The sender with each of its tasks."""
    for task in sender.holdings:
        job = Job(sender.job.institution, 1, task)
        yield Sender(sender.scenario, sender.holdings, sender.policy, sender.channels, sender.backbone, job)


def bits_of(reply: type[Message], sender: Sender) -> int:
    """The most bits that one answer of this kind can hold in its arrays, numbers and flags."""
    allowed: Allowed = reply.allowed(sender)
    # A single holder sends the finished router; only several send their statistics without each fold.
    folds = shared(sender.scenario, sender.job.task)
    arrays = sum(
        max((bits_of_group(form) for form in forms), default=0)
        for name, forms in allowed.groups.items()
        if folds or not name.startswith("fold-")
    )
    numbers = sum(bits_of_number(range_) for group in allowed.numbers.values() for range_ in group.values())
    flags = sum(isinstance(part, Flag) for part, _ in reply.parts().values())
    return arrays + numbers + flags


def bits_of_group(form: GroupSpec) -> int:
    """Bits of all arrays of a group."""
    return math.ceil(sum(spec.bits for spec in form.arrays.values()))


def bits_of_number(range_: Range) -> int:
    """Bits of one number in its declared steps."""
    return math.ceil(range_.bits)


def cost(place: Place, scenario: Scenario, asked: Sequence[str]) -> list[Block]:
    """What the policy's budget allows, what was spent of it, and what this scenario plans to spend."""
    policy, budget = place.policy, place.policy.budget
    unit = "patient or slide (group)" if budget.unit == "group" else "image"
    told: list[str] = []
    for what, learned in (("layers", policy.adapter), ("routers and thresholds", policy.router)):
        if learned.share == "yes" and learned.noise == "none":
            told.append(f"{what}: no noise, so no epsilon limits what they say about one {unit}")
    if policy.metrics == "exact":
        told.append(f"test scores: exact, so no epsilon limits what they say about one {unit}")
    plans_here = {
        task: TaskPlan(scenario, policy, private_units(data, policy).count)
        for task, data in opened(place, [task for task in asked if task in scenario.stream]).items()
    }
    kinds = (
        ("training images", policy.private, budget.epsilon, ("train",), learning_plan),
        ("test images", policy.metrics == "noisy", budget.epsilon_metrics, ("test", "val"), metrics_plan),
    )
    for what, noisy, limit, parts, plan in kinds:
        if noisy:
            plans = [planned(task, partial(plan, found)) for task, found in plans_here.items()]
            told.append(
                f"{what}: epsilon at most {limit:g} at delta {budget.delta:g} for each {unit} that is added "
                f"or removed, in all scenarios together. Spent so far: {spent(place, scenario, parts)}. This "
                f"scenario plans: {'; '.join(plans)}"
            )
    return [told or ["nothing that was computed from images leaves"]]


def spent(place: Place, scenario: Scenario, parts: Sequence[str]) -> str:
    """The epsilon of the ledger, the largest of the scenario's tasks here."""
    spends, key = Ledger(place.home / "ledger.jsonl").lines(), kept_key(place.home)
    used: list[list[Mechanism]] = [[]]
    for spec in place.site.described(scenario.institution(place.institution).data).values():
        dataset = location_of(spec, place.data_root, place.institution)
        for part in parts:
            lines = of_images(spends, dataset, part, division_of(spec, key))
            used.append([line.mechanism for line in lines])
    delta = float(place.policy.budget.delta or 0)
    return in_epsilon(max(used, key=lambda mechanisms: epsilon_of(mechanisms, delta)), place.policy)


def planned(task: str, plan: Callable[[], str]) -> str:
    """What the scenario plans for one task, or why it plans nothing."""
    try:
        return f"{task} {plan()}"
    except RefusalError as refusal:
        return f"{task} nothing, because it is refused ({refusal.outcome})"


def learning_plan(plan: TaskPlan) -> str:
    """The epsilon of learning one task, and what layer and router would cost alone. Raises RefusalError."""
    layer, router = plan.layer_costs, plan.router_mechanisms
    whole = in_epsilon([*layer, *router], plan.policy)
    alone = [epsilon_of(part, float(plan.policy.budget.delta or 0)) for part in (layer, router)]
    if not all(alone):
        return whole
    return (
        f"{whole}, of which the layer alone would cost {alone[0]:.2f} and the router {alone[1]:.2f}, with "
        f"{plan.units} {plan.policy.budget.unit}s"
    )


def metrics_plan(plan: TaskPlan) -> str:
    """The epsilon of all evaluations of one task's test images. Raises RefusalError."""
    scenario, policy = plan.scenario, plan.policy
    return in_epsilon([Mechanism(metrics_noise(scenario, policy))] * evaluations(scenario, policy), policy)


def in_epsilon(mechanisms: Sequence[Mechanism], policy: Policy) -> str:
    """`3.00 (5.12 if one is replaced by another)`"""
    delta = float(policy.budget.delta or 0)
    added, replaced = (epsilon_of(mechanisms, delta, replaced=replaced) for replaced in (False, True))
    return f"{added:.2f} ({replaced:.2f} if one is replaced by another)"


def changes(place: Place, scenario: Scenario) -> list[Block]:
    """How the scenario differs from the one that was approved last."""
    before = [item for item in approvals_in(place.home) if item.digest != scenario.digest()]
    if not before:
        return ["No other scenario was approved here."]
    last = before[-1]
    # As text: a scenario that was approved once may have a key that this version does not know any more.
    text = (place.home / "approved" / f"{last.digest}.json").read_text(encoding="utf-8")
    old, new = (dict(leaves(json.loads(canonical))) for canonical in (text, scenario.canonical_json()))
    lines = [
        f"{plain(key)}: {shown(old.get(key))} -> {shown(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    more = [f"... and {len(lines) - MOST_CHANGES} more"] if len(lines) > MOST_CHANGES else []
    return [
        f"Compared with `{plain(last.name)}` {last.digest[:12]}, approved on {last.time}:",
        [*lines[:MOST_CHANGES], *more],
    ]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(key with dots, value) of everything in a JSON value; institutions go by their names."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}.{inner.get('name', number)}")
    else:
        yield path, value


def shown(value: Any) -> str:
    """A value for people; absent ones are said to be so."""
    return "not there" if value is None else plain(json.dumps(value))[:200]


def never(place: Place) -> str:
    """What stays, whatever the scenario says."""
    kept = [
        what
        for what, stays in (
            ("layers", place.policy.adapter.share == "never"),
            ("routers and thresholds", place.policy.router.share == "never"),
            ("test scores", place.policy.metrics == "never"),
        )
        if stays
    ]
    own = f" By this site's policy also: {', '.join(kept)}." if kept else ""
    return (
        "Everything that is not a field in the table above: images, masks, embeddings, names of files and "
        f"patients, scores of single images, error texts.{own}"
    )


def simulated_place(scenario: Scenario, institution: str, home: Path) -> Place:
    """A simulated institution of a scenario as a site with its policy. home: an empty folder."""
    site = scenario.institution(institution)
    tasks = {task: simulated_task(spec, scenario.seed) for task, spec in site.data.items()}
    (home / "split.key").write_bytes(simulated_key(scenario.seed, site.name))
    return Place(site.name, SiteFile(tasks=tasks), site.policy, home, None)


def example() -> str:
    """docs/site-review.md: the page of one institution of a library scenario, as its officer would see it."""
    scenario = resolve_scenario("mixed-policy")
    with tempfile.TemporaryDirectory() as home:
        page = as_markdown(page_of(simulated_place(scenario, "heart-centre", Path(home)), scenario))
        # The digest follows every new key of a scenario; the example need not.
        return EXAMPLE_HEAD + page.replace(scenario.digest(), "b9a6195f...")


EXAMPLE_HEAD = """<!-- Made by: python -m scenarios.inspection.site_review -->

"""


if __name__ == "__main__":
    Path("docs/site-review.md").write_text(example())
