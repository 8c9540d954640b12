"""The memory of questions: in how many ways a server may ask for one thing.

The scenario fixes who trains what and when. Some content of requests comes from other institutions, so a site
cannot check it: the merged layer of a later round, merged routers, entries of the bank. A server that makes
up many of them and asks again gets as many answers about the same images. An institution therefore answers at
most `max_questions` different requests of a stage, task and round of a scenario, in all runs of its home. The
same request again does not count: it has the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from casam_core.files import HOSTED, RecordLog
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    EvaluateReply,
    EvaluateRequest,
    Question,
    RouterReply,
    RouterRequest,
    question_of,
)
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import digest_of
from casam_core.protocol.schema import Message
from client.institution import Institution

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

    Raises RefusalError (questions-spent) if the institution has answered too many others of the same place,
    and PolicyError if the file is damaged.
    """
    site, job = institution.site, request.job
    kind = REPLY_TO[type(request)].kind
    found = Asked(site.scenario, kind, job.stage, job.task, job.round, digest_of(question_of(request)))
    log, most = questions_log(site.questions), site.policy.max_questions
    if found in log.lines():
        return

    def allow(lines: Sequence[Asked]) -> None:
        same = {line.question for line in lines if replace(line, question=found.question) == found}
        if len(same - {found.question}) >= most:
            raise RefusalError(
                Outcome.QUESTIONS_SPENT,
                f"{kind}, stage {job.stage}, round {job.round}: {len(same)} different requests have "
                f"answers; policy.max_questions is {most}",
            )

    log.add(found, allow)


@lru_cache(maxsize=HOSTED)
def questions_log(path: Path) -> RecordLog[Asked]:
    """The one log of this process for a file."""
    return RecordLog(path, Asked, "a question; restore the file from a backup")
