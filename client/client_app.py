"""The Flower ClientApp: one institution per SuperNode, several per node in a small simulation.

Every answer and every exception passes through `release` before it leaves (client/release/outbox.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import TypeVar

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from casam_core.config.scenario import Scenario
from casam_core.files import HOSTED, states_of
from casam_core.model.backbones import Backbone, load_backbone
from casam_core.model.compute import free_unused, prepare_process, resolve_compute
from casam_core.protocol import schema
from casam_core.protocol.audit import audit_log
from casam_core.protocol.compressed_text import expand_text, one_copy
from casam_core.protocol.fingerprint import code_fingerprint
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    EvaluateReply,
    EvaluateRequest,
    ForgetReply,
    ForgetRequest,
    IdentifyReply,
    IdentifyRequest,
    RouterReply,
    RouterRequest,
)
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.secure_sum import SECURE_SUM, SecureRequest
from casam_core.protocol.wire import config_record, from_records, job_of, settings_of, to_records
from client.data.task_data import recent
from client.evaluation.evaluator import drop_kept_entries
from client.evaluation.own_entries import forget
from client.identity import identity_of
from client.institution import Institution
from client.node.approvals import digest_of_text
from client.node.incidents import node_log
from client.node.relay import Relay
from client.node.worktime import Stopwatch, note
from client.release import permission
from client.release.approval import check_not_restored, require_approval
from client.release.outbox import answer_for, check_once
from client.release.question import questions_log
from client.secagg.member import take_part
from client.secagg.remembered import sums_log
from client.simulation.faults import Role, attacked, is_gone, suffer
from client.site import Site, files_of, home_of, hosted_sites, own_site_file

Settings = tuple[tuple[str, str | int | float | bool], ...]
"""Settings of a node or a run, as a hashable tuple."""

STATE = "casam"
"""Key of the node's state record, which keeps facts of the identify request for the run."""

SCENARIO = "scenario"
"""Key in that record: the compressed scenario."""

MADE_AS: ContextVar[type[Institution]] = ContextVar("MADE_AS", default=Institution)
"""The class of institutions; an engine in this process may serve a class of its own (scenarios/ask)."""

Handler = Callable[[Message, Context], schema.Message]
"""(request, the node's context) -> the answer, which `release` checks before it leaves."""

M = TypeVar("M", bound=schema.Message)
Q = TypeVar("Q", RouterRequest, CalibrateRequest, EvaluateRequest, ForgetRequest)


class InstitutionApp(ClientApp):
    """A ClientApp that sends every answer through `release`.

    Its handlers give payloads (HANDLERS), which become Flower's records once, when they leave.
    """

    def __call__(self, message: Message, context: Context) -> Message:
        watch = Stopwatch()
        answer, role = release(message, context)
        if role is None:
            return answer
        institution = role.institution
        note(watch.work(role.kind, role.job, institution.backbone.halved.names), institution.site.private)
        free_unused()  # several processes may share a card
        if not role.plays:
            return answer
        suffer(role, watch.seconds)
        return Message(to_records(attacked(role, from_records(answer.content))), reply_to=message)


def release(message: Message, context: Context) -> tuple[Message, Role | None]:
    """Call the handler and send its answer, or its exception, through `answer_for`.

    Returns:
        (the message that leaves, the addressed institution's role; None if no institution was addressed).
    """
    answer = answered(message, context)
    role: Role | None = None
    sites: Sequence[Site] = ()
    speakers: Sequence[Institution] = ()
    run, job = "", None
    with contextlib.suppress(Exception):  # a request that names nothing readable names no institution
        # To identify, all answer, even if the request names one: the guard is then the strict one.
        job = None if message.metadata.message_type == IdentifyReply.kind else job_of(message.content)
    with contextlib.suppress(Exception):  # before identify, or no institution is addressed
        sites = remembered(context)
        run = str(known(context)["run"])
        text = scenario_text(context)
        if job is not None:
            institution = institution_among(sites, text, job.institution)
            role, sites = Role(institution, message.metadata.message_type, job), [institution.site]
            speakers = [institution]
        else:
            speakers = [institution_at(site, text) for site in sites if not is_gone(site)]
    log = sites[0].log if len(sites) == 1 else node_log(context.node_config)
    leaves = answer_for(message, answer, speakers, sites, run, log, job)
    return Message(leaves, reply_to=message), role


def answered(message: Message, context: Context) -> Payload | Exception:
    """The handler's answer, or the exception that it raised.

    The work can take hours. If the site's files changed meanwhile (files_of), the request is answered again:
    what leaves obeys the files of now, not those of then.
    """
    while True:
        before = here(context)
        try:
            answer = handler_of(message)(message, context).to_payload()
        except Exception as error:
            return error
        if message.metadata.message_type == IdentifyReply.kind or here(context) == before:
            return answer


def here(context: Context) -> Sequence[Site]:
    """The sites hosted here as they are now; none before identify, or without an approval."""
    with contextlib.suppress(Exception):
        return remembered(context)
    return ()


app = InstitutionApp()


def identify(message: Message, context: Context) -> IdentifyReply:
    """Say which institutions this node hosts; keep the scenario for the requests that follow.

    Raises RefusalError.
    """
    request = asked(IdentifyRequest, message)
    if request.code != code_fingerprint():
        raise RefusalError(
            Outcome.OTHER_CODE, f"the server runs {request.code}, this node {code_fingerprint()}"
        )
    compressed = told(request, context)
    text = expand_text(compressed)
    sites = [site for site in sites_here(text, request.run, context) if not is_gone(site)]
    institutions = [institution_at(site, text) for site in sites]
    for institution in institutions:
        institution.learn_public(request.public)
    context.state[STATE] = ConfigRecord({SCENARIO: compressed, "run": request.run})
    return identity_of(institutions)


def told(request: IdentifyRequest, context: Context) -> str:
    """The compressed scenario of this or an earlier request. Raises RefusalError (unknown-scenario)."""
    compressed = one_copy(request.scenario or compressed_scenario(context))
    try:
        text = expand_text(compressed)
    except ValueError as error:
        raise RefusalError(Outcome.BAD_REQUEST, f"the scenario's text: {error}") from error
    if digest_of_text(text) != request.digest:
        raise RefusalError(Outcome.UNKNOWN_SCENARIO, "this node knows another scenario")
    return compressed


def readable(text: str) -> Scenario:
    """The scenario of an identify request. Raises RefusalError (bad-request) for a text that is none."""
    try:
        return parsed(text)
    except Exception as error:  # foreign text: a validator can raise any exception
        raise RefusalError(Outcome.BAD_REQUEST, f"the scenario: {error}") from error


def align(message: Message, context: Context) -> AlignReply:
    """One round of local training."""
    request = asked(AlignRequest, message)
    others = everybody_else(request.job.institution, context) if request.pooled else []
    return permission.align(addressed(message, request.job, context), request, others)


def secure_sum(message: Message, context: Context) -> schema.Message:
    """One exchange of a secure sum. Flower's SecAgg+ supports only the message type `train`."""
    request = asked(SecureRequest, message)
    return take_part(addressed(message, request.job, context), request, context)


def answering(request_type: type[Q], work: Callable[[Institution, Q], schema.Message]) -> Handler:
    """A handler that reads the request and calls `work` with the addressed institution."""

    def handler(message: Message, context: Context) -> schema.Message:
        request = asked(request_type, message)
        return work(addressed(message, request.job, context), request)

    return handler


HANDLERS: Mapping[str, Handler] = {
    IdentifyReply.kind: identify,
    AlignReply.kind: align,
    SECURE_SUM: secure_sum,
    RouterReply.kind: answering(RouterRequest, permission.describe),
    CalibrateReply.kind: answering(CalibrateRequest, permission.calibrate),
    EvaluateReply.kind: answering(EvaluateRequest, permission.evaluate),
    ForgetReply.kind: answering(ForgetRequest, forget),
}
"""By Flower's message type, what answers."""


def handler_of(message: Message) -> Handler:
    """What answers the message. Raises ValueError for a kind of message that nothing answers."""
    kind = message.metadata.message_type
    if kind not in HANDLERS:
        raise ValueError(f"message type: expected one of {', '.join(HANDLERS)}, found {kind!r}")
    return HANDLERS[kind]


def asked(request: type[M], message: Message) -> M:
    """The request in a message. Raises RefusalError (bad-request) for anything that is none."""
    try:
        return request.of(from_records(message.content))
    except Exception as error:  # reading unknown names, types and shapes can raise any exception
        raise RefusalError(Outcome.BAD_REQUEST, f"{type(error).__name__}: {error}") from error


def addressed(message: Message, job: Job, context: Context) -> Institution:
    """The addressed institution.

    Raises RefusalError (unknown-scenario, unknown-institution, rolled-back, repeated) before any work.
    """
    found = institution_among(remembered(context), scenario_text(context), job.institution)
    check_not_restored(found.site, settings_of(message.content))
    check_once(message.metadata.message_id, audit_log(found.site.audit).lines())
    return found


def institution_among(sites: Sequence[Site], scenario_json: str, name: str) -> Institution:
    """The institution called `name`. Raises RefusalError (unknown-institution)."""
    for site in sites:
        if site.institution == name:
            return institution_at(site, scenario_json)
    raise RefusalError(Outcome.UNKNOWN_INSTITUTION, f"{name} is not hosted here")


def everybody_else(name: str, context: Context) -> list[Institution]:
    """All other institutions of a simulation, for joint training. A real site raises RefusalError."""
    if "institution" in context.node_config:
        raise RefusalError(Outcome.POOLING_REFUSED, "only simulations pool images of institutions")
    run = str(known(context)["run"])
    everybody = {"partition-id": 0, "num-partitions": 1}
    sites = hosted_sites(scenario_in(context), run, everybody, context.run_config)
    text = scenario_text(context)
    return [institution_at(site, text) for site in sites if site.institution != name]


def remembered(context: Context) -> Sequence[Site]:
    """The sites hosted here, in the run of the identify request.

    Raises RefusalError (unknown-scenario, waiting-for-approval).
    """
    return sites_here(scenario_text(context), str(known(context)["run"]), context)


def sites_here(text: str, run: str, context: Context) -> Sequence[Site]:
    """The sites hosted here that approved the scenario. A simulated one approves every scenario.

    Raises RefusalError (waiting-for-approval).
    """
    node, settings = context.node_config, context.run_config
    of_node, of_run = tuple(sorted(node.items())), tuple(sorted(settings.items()))
    if "institution" in node:
        return approved_sites(text, run, of_node, of_run, states_of(files_of(node)))
    return simulated_sites(text, run, of_node, of_run)


@lru_cache(maxsize=8)
def approved_sites(
    text: str, run: str, node: Settings, settings: Settings, files: Sequence[object]
) -> Sequence[Site]:
    """The site of a deployment, if it approved the scenario. files: the state of its files, which may change
    between two messages; they are read again only then.

    Raises RefusalError (waiting-for-approval), PolicyError and DataError.
    """
    own = dict(node)
    require_approval(text, str(own["institution"]), home_of(own), lambda: own_site_file(own))
    return hosted_sites(readable(text), run, own, dict(settings), digest_of_text(text))


@lru_cache(maxsize=HOSTED)
def simulated_sites(text: str, run: str, node: Settings, settings: Settings) -> Sequence[Site]:
    """The sites hosted by a node of a simulation, where nothing changes during a run."""
    return hosted_sites(readable(text), run, dict(node), dict(settings), digest_of_text(text))


def scenario_in(context: Context) -> Scenario:
    """The run's scenario. Raises RefusalError (unknown-scenario) before the identify request."""
    return parsed(scenario_text(context))


def scenario_text(context: Context) -> str:
    """The run's scenario as canonical JSON: one string per process for any number of nodes."""
    return expand_text(compressed_scenario(context))


def compressed_scenario(context: Context) -> str:
    """The compressed scenario: a simulation moves a node's state to a worker and back for each message.

    Raises RefusalError (unknown-scenario) before the identify request.
    """
    if STATE not in context.state:
        raise RefusalError(Outcome.UNKNOWN_SCENARIO, "this node got no identify message in this run")
    return str(known(context)[SCENARIO])


def known(context: Context) -> ConfigRecord:
    """What the node keeps of the identify request for the run."""
    return config_record(context.state, STATE)


@lru_cache(maxsize=8)
def parsed(scenario_json: str) -> Scenario:
    """The scenario. Cached, because every message of a run needs it and it never changes."""
    return Scenario.model_validate_json(scenario_json)


@lru_cache(maxsize=HOSTED)
def institution_at(site: Site, scenario_json: str) -> Institution:
    """One Institution per process, site and scenario, with its dataset opened once.

    The cache is large, because opening an institution again for every message costs more than its work.
    """
    scenario = site.localised(parsed(scenario_json))
    made_as = Relay if site.relay else MADE_AS.get()
    return made_as(site, scenario, ready_backbone(scenario))


def forget_institutions() -> None:
    """Clear this process's caches after a run: datasets, the last images and layers, checked logs."""
    simulated_sites.cache_clear()
    approved_sites.cache_clear()
    institution_at.cache_clear()
    recent.cache_clear()
    drop_kept_entries()
    audit_log.cache_clear()
    sums_log.cache_clear()
    questions_log.cache_clear()


def ready_backbone(scenario: Scenario) -> Backbone:
    """Set up the process for the backbone; return the frozen backbone, which is loaded once per process."""
    compute = resolve_compute(scenario.compute)
    prepare_process(compute)
    return load_backbone(scenario.backbone, compute)
