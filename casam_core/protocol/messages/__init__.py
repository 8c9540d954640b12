"""What the server and an institution say to each other: plain data, no Flower.

Every message is a Payload (casam_core.protocol.payload): a table of settings, named groups of arrays, named
groups of numbers. Each class below names everything it may carry; what is not named here is never
sent. The classes are the one place where both sides agree on names.
"""

from __future__ import annotations

from casam_core.protocol.messages.directory import (
    SCHEMA,
    Forecast,
    Holding,
    IdentifyReply,
    IdentifyRequest,
    are_counts,
)
from casam_core.protocol.messages.evaluation import EvaluateReply, EvaluateRequest, TaskResult
from casam_core.protocol.messages.learning import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    RouterReply,
    RouterRequest,
)
from casam_core.protocol.messages.leaving import ForgetReply, ForgetRequest, purge_statement

__all__ = [
    "SCHEMA",
    "AlignReply",
    "AlignRequest",
    "CalibrateReply",
    "CalibrateRequest",
    "EvaluateReply",
    "EvaluateRequest",
    "Forecast",
    "ForgetReply",
    "ForgetRequest",
    "Holding",
    "IdentifyReply",
    "IdentifyRequest",
    "RouterReply",
    "RouterRequest",
    "TaskResult",
    "are_counts",
    "purge_statement",
]
