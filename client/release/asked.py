"""The memory of questions: in how many ways a server may ask for one thing.

The scenario fixes who trains what and when. Some content of requests comes from other institutions, so a site
cannot check it: the merged layer of a later round, merged routers, entries of the bank. A server that makes
up many of them and asks again gets as many answers about the same images. An institution therefore answers at
most `max_questions` different requests of a stage, task and round of a scenario, in all runs of its home. The
same request again does not count: it has the same answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from casam_core.errors import PolicyError
from casam_core.files import LockedLog
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    EvaluateReply,
    EvaluateRequest,
    RouterReply,
    RouterRequest,
    question_of,
)
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import digest_of
from casam_core.protocol.schema import Message
from client.institution import Institution

Question = AlignRequest | RouterRequest | CalibrateRequest | EvaluateRequest

REPLY_TO: Mapping[type[Message], type[Message]] = {
    AlignRequest: AlignReply,
    RouterRequest: RouterReply,
    CalibrateRequest: CalibrateReply,
    EvaluateRequest: EvaluateReply,
}


@dataclass(frozen=True)
class Asked:
    """One question. scenario: digest. kind: of the reply. question: digest of the request."""

    scenario: str
    kind: str
    stage: int
    task: str
    round: int
    question: str


def remember_question(institution: Institution, request: Question) -> None:
    """Write a new question down; the line is on disk when this returns.

    Raises RefusalError (questions-spent) if the institution has answered too many others of the same place.
    """
    site, job = institution.site, request.job
    kind = REPLY_TO[type(request)].kind
    found = Asked(site.scenario, kind, job.stage, job.task, job.round, digest_of(question_of(request)))
    log, most = questions_log(site.questions), site.policy.max_questions
    if found in log.lines():
        return

    def make(lines: Sequence[Asked]) -> tuple[Asked, str]:
        same = {line.question for line in lines if replace(line, question=found.question) == found}
        if len(same - {found.question}) >= most:
            raise RefusalError(
                Outcome.QUESTIONS_SPENT,
                f"{kind}, stage {job.stage}, round {job.round}: {len(same)} different requests have "
                f"answers; policy.max_questions is {most}",
            )
        return found, json.dumps(asdict(found), sort_keys=True)

    log.append(make)


@lru_cache(maxsize=4096)
def questions_log(path: Path) -> LockedLog[Asked]:
    """The one log of this process for a file. It raises PolicyError for a damaged line."""

    def parse(before: Sequence[Asked], text: bytes) -> Asked:
        try:
            return Asked(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise PolicyError(
                f"{path}: line {len(before) + 1} is not a question; restore the file from a backup"
            ) from error

    return LockedLog(path, parse)
