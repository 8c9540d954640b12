"""Secure sums: their input, their output and their messages.

A secure sum is a mean of named arrays over its members, weighted by their images. Every member hides its
share behind masks that cancel in the sum (SecAgg+, Bell et al. 2020; Flower implements the protocol). The
masks hide integers. Each number of a share is therefore rounded to one of STEPS values within its range; the
error of a mean is at most RESOLUTION.

All exchanges of a sum belong together: each names the sum (Sum), and a member signs its keys and the list of
members in the sum with the key that is registered for its name (casam_core.protocol.register).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from numpy.typing import NDArray

from casam_core.protocol.audit import without_seen
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Job, Payload, digest_of
from casam_core.protocol.schema import Message, Text

STEPS = 2**44
"""Fine enough for variances of features, which are about a millionth of the range."""
MODULUS = 2**48
MOST_MEMBERS = 10
"""It must be below MODULUS / STEPS, or sums would overflow."""

SECURE_SUM = "train"
"""The message type of every exchange; Flower's SecAgg+ supports no other."""

KINDS = ("train.align", "train.router", "train.calibrate")
"""The kinds of request whose replies can be summed."""
EXCHANGE_SETTINGS: dict[str, Callable[[object], bool]] = {
    "sum": lambda value: value in KINDS,
    "names": Text(r"[\x20-\x7e]{1,10000}").fits,  # compared with the names of the arrays
}
"""Settings of a member's reply, beside those of every reply."""

ABOUT = ("sum", "question", "rules", "members")
"""Settings of a request, beside those of the question."""

RANGE = 64.0
"""The largest absolute value of a number in a share. A member refuses to send a larger one."""

SETUP, SHARE_KEYS, COLLECT, AGREE, UNMASK = STEPS_OF_A_SUM = (
    "setup",
    "share_keys",
    "collect_masked_vectors",
    "agree",
    "unmask",
)
"""The exchanges. Flower has four of them, under these names. AGREE is the consistency round of Bonawitz et
al. (2017), against servers that tell members different things."""

IMPROVED = "improved"
SEPARATOR = "/"

NamedArrays = dict[str, NDArray[np.float64]]
"""Arrays by `group/key`, the names that they have in a payload."""


RESOLUTION = MOST_MEMBERS * 2 * RANGE / STEPS
"""The largest error of one number of a mean."""

HEAVIEST = 2.0**32
"""The largest weight that a sum may divide images by."""


def is_weight(value: float) -> bool:
    """Whether a sum may divide images by this: only by powers of two is every member's weight exact.

    Others are rounded, for each number of images in its own way. With one of them a server could make what is
    1 at one member survive and vanish at the others.
    """
    return math.frexp(value)[0] == 0.5 and value <= HEAVIEST


def weight_for(images: int) -> float:
    """The least weight of a sum in which nobody has more images."""
    return float(1 << (images - 1).bit_length())


def quantize(values: Sequence[NDArray[np.float64]], reach: float, steps: int) -> list[NDArray[np.int64]]:
    """Map [-reach, reach] to the nearest integers in 0..steps. Raises ValueError for values outside.

    It replaces Flower's function, which clips values and rounds them at random to 32 bits.
    """
    outside = [array for array in values if not (np.abs(array) <= reach).all()]
    if outside:
        raise ValueError(f"expected values within {reach:g}, found {np.abs(outside[0]).max():g}")
    return [np.rint((array + reach) * (steps / (2 * reach))).astype(np.int64) for array in values]


def shares_needed(members: int, minimum: int) -> int:
    """How many members must stay until the end, for the largest `minimum_cohort` of their policies.

    A majority alone would exclude that two groups of members unmask one sum differently. These few more make
    sure that two sums of almost the same members (a difference below `minimum`) have a member in common that
    unmasked both: it remembers the first one and refuses (client/secagg/remembered.py).
    """
    return max((members + minimum) // 2, minimum)


def share_of(kind: str, payload: Payload, images: int) -> NamedArrays:
    """One member's share of the weighted mean, in the order of the arrays' names. kind: of the open answer.

    Layers are averaged. Statistics and counts are added, so a share holds them divided by the images.
    """
    per = 1 if kind == "train.align" else images
    named = {
        f"{group}{SEPARATOR}{key}": np.asarray(array, np.float64) / per
        for group, arrays in payload.arrays.items()
        for key, array in arrays.items()
    }
    if kind == "train.align":
        # Divided, so that the sum is the number of members that improved: weighted by their images, which are
        # public, it would tell who they are.
        named[IMPROVED] = np.array([float(payload.config.get(IMPROVED, True)) / images])
    return dict(sorted(named.items()))


def total_of(kind: str, means: NamedArrays, images: int) -> Payload:
    """The joint reply of all members: the inverse of share_of. images: of all members together."""
    arrays: dict[str, dict[str, NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int64]]] = {}
    for name, mean in means.items():
        group, separator, key = name.partition(SEPARATOR)
        if not separator:
            continue
        value: NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int64] = mean * images
        if kind == "train.align":
            value = mean.astype(np.float32)
        elif kind == "train.calibrate":
            value = np.rint(mean * images).astype(np.int64)
        arrays.setdefault(group, {})[key] = value
    if kind == "train.align":
        improved = bool(means[IMPROVED][0] > RESOLUTION)
        return Payload({IMPROVED: improved}, arrays, {"align": {"num-examples": images}})
    if kind == "train.router":
        return Payload({}, arrays, {"router-facts": {"num-examples": images}})
    return Payload({}, arrays)


@dataclass(frozen=True)
class Sum:
    """What one secure sum is about. Every member computes its id; every signature of the sum covers it.

    scenario: digest. kind: of the question. question: question_digest. rules: SHA-256 of the protocol's
    settings in SETUP, which are the same for all members. members: names, sorted.
    """

    run: str
    scenario: str
    kind: str
    stage: int
    task: str
    round: int
    question: str
    rules: str
    members: tuple[str, ...]

    @property
    def id(self) -> str:
        """SHA-256 of all fields, in hex."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def keys_statement(self, name: str, keys: Sequence[bytes]) -> dict[str, Any]:
        """The statement that a member signs about its two public keys."""
        return {
            "role": "secure-sum keys",
            "sum": self.id,
            "institution": name,
            "keys": [key.hex() for key in keys],
        }

    def survivors_statement(self, keys: str, survivors: Sequence[str]) -> dict[str, Any]:
        """The statement that a member signs before the sum is unmasked.

        keys: digest of all members' keys, as the member received them. survivors: the members in the sum.
        """
        return {
            "role": "secure-sum survivors",
            "sum": self.id,
            "keys": keys,
            "survivors": sorted(survivors),
        }


def question_digest(asks: Payload) -> str:
    """SHA-256 of a question, without what differs between members: the name, and the tasks to train on, which
    each member compares with the scenario."""
    config = {key: value for key, value in asks.config.items() if key not in ("institution", "tasks")}
    return digest_of(Payload(config, asks.arrays, asks.metrics))


def keys_digest(keys: Mapping[str, Sequence[bytes]]) -> str:
    """SHA-256 of the members' public keys by name, in hex."""
    known = {name: [key.hex() for key in pair] for name, pair in keys.items()}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class SecureRequest(Message):
    """The request of one of the five exchanges of a sum.

    summed: the kind of the request whose replies are summed. asks: that request; its arrays are sent only in
    COLLECT. question, rules, members: those of the Sum, in every exchange. protocol: Flower's settings of
    this exchange and our signatures, packed (casam_core.protocol.wire).
    """

    kind: ClassVar[str] = SECURE_SUM

    job: Job
    summed: str
    step: str
    protocol: NDArray[np.uint8]
    asks: Payload
    question: str = ""
    rules: str = ""
    members: tuple[str, ...] = ()

    def of_run(self, run: str, scenario: str) -> Sum:
        """What the sum is about, in this run of the scenario with this digest."""
        job = self.job
        return Sum(
            run,
            scenario,
            self.summed,
            job.stage,
            job.task,
            job.round,
            self.question,
            self.rules,
            self.members,
        )

    def to_payload(self) -> Payload:
        about = dict(
            zip(ABOUT, (self.summed, self.question, self.rules, " ".join(self.members)), strict=True)
        )
        arrays = self.asks.arrays if self.step == COLLECT else {}
        return Payload(
            {**self.asks.config, **self.job.config(), **about},
            {**arrays, self.step: {"protocol": self.protocol}},
        )

    @classmethod
    def of(cls, payload: Payload) -> Self:
        """The inverse of to_payload. Raises RefusalError (sum-broken) for anything else."""
        try:
            step = step_of(payload)
            told = without_seen(payload.config)
            config = {key: value for key, value in told.items() if key not in ABOUT}
            arrays = {name: group for name, group in payload.arrays.items() if name != step}
            protocol = payload.arrays[step]["protocol"]
            asks = Payload(config, arrays, payload.metrics)
            summed, question, rules, members = (str(payload.config[key]) for key in ABOUT)
            names = tuple(members.split())
            return cls(Job.of(payload), summed, step, protocol, asks, question, rules, names)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RefusalError(Outcome.SUM_BROKEN, f"not an exchange of a secure sum: {error}") from error


@dataclass(frozen=True)
class SecureReply(Message):
    """A member's reply in one exchange. names: the names of its masked arrays, in their order (COLLECT)."""

    kind: ClassVar[str] = SECURE_SUM

    summed: str
    step: str
    protocol: NDArray[np.uint8]
    names: tuple[str, ...] = ()

    def to_payload(self) -> Payload:
        config = {"sum": self.summed, **({"names": " ".join(self.names)} if self.names else {})}
        return Payload(config, {self.step: {"protocol": self.protocol}})

    @classmethod
    def of(cls, payload: Payload) -> Self:
        step = step_of(payload)
        names = tuple(str(payload.config.get("names", "")).split())
        return cls(str(payload.config["sum"]), step, payload.arrays[step]["protocol"], names)


SIGNATURE, SIGNATURES, SIGNERS = "signature", "signatures", "signers"
"""Our settings of an exchange, beside Flower's: of one member; of several, in the order of their numbers or
of SIGNERS."""

EXPECTED = {
    SETUP: ("pk1", "pk2", SIGNATURE),
    SHARE_KEYS: ("dsts", "ctxts"),
    COLLECT: ("masked_params",),
    AGREE: (SIGNATURE,),
    UNMASK: ("nids", "shares"),
}
"""What a member's reply holds in each exchange, under Flower's names."""

LONGEST_KEY = 400
"""Bytes. A P-384 public key in PEM has about 220 bytes."""
LONGEST_SHARE = 1024
"""Bytes. A share of a private key in PEM and a share of a seed have about 400 bytes, encrypted about 700."""
LONGEST_SIGNATURE = 64
"""Bytes. Ed25519."""


def fault_in(step: str, protocol: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """What is wrong with the content of a reply; None if it has its form. May raise any exception.

    The member's guard and the server check it. step: of the sum. names: of the masked arrays.
    """
    if set(protocol) != set(EXPECTED[step]):
        return f"expected {sorted(EXPECTED[step])}, found {len(protocol)} parts"
    if names and step != COLLECT:
        return "names of arrays, but no arrays"
    signature = protocol.get(SIGNATURE, bytes(LONGEST_SIGNATURE))
    if type(signature) is not bytes or len(signature) != LONGEST_SIGNATURE:
        return "expected a signature"
    if step == SETUP:
        keys = (protocol["pk1"], protocol["pk2"])
        return None if all(is_public_key(key) for key in keys) else "expected two public keys"
    if step == COLLECT:
        return fault_in_masked(names, protocol["masked_params"])
    if step == AGREE:
        return None
    return fault_in_shares(*(protocol[key] for key in EXPECTED[step]))


def is_public_key(key: object) -> bool:
    """Whether this is a P-384 public key in PEM, as Flower makes it, and no byte more."""
    if type(key) is not bytes or len(key) > LONGEST_KEY:
        return False
    found = load_pem_public_key(key)
    if not isinstance(found, EllipticCurvePublicKey) or not isinstance(found.curve, SECP384R1):
        return False
    return found.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) == key


def fault_in_shares(numbers: list[int], secrets: list[bytes]) -> str | None:
    """What is wrong with shares; None if there is one short byte string for each of several members."""
    members = range(1, 1000)
    if len(numbers) != len(secrets) or len(set(numbers)) != len(numbers) or len(numbers) > MOST_MEMBERS:
        return "expected one share for each member"
    if not all(type(number) is int and number in members for number in numbers):
        return "expected members' numbers"
    if not all(isinstance(secret, bytes) and len(secret) <= LONGEST_SHARE for secret in secrets):
        return f"expected shares of at most {LONGEST_SHARE} bytes"
    return None


def fault_in_masked(names: Sequence[str], files: list[bytes]) -> str | None:
    """What is wrong with the masked weight and arrays: integers in [0, MODULUS), one array per name."""
    if not names or sorted(set(names)) != list(names):
        return "unknown names of arrays"
    if len(files) != 1 + len(names) or masked_array(files[0]).shape != (1,):
        return "expected a weight and the named arrays"
    for data in files:
        array = masked_array(data)
        if array.min(initial=0) < 0 or array.max(initial=0) >= MODULUS:
            return "expected masked integers"
    return None


def masked_array(data: bytes) -> NDArray[np.int64]:
    """The array in a file of numpy. Raises ValueError if the file has other bytes than this array needs.

    The size in the file's header is compared with the file before any memory is taken for it.
    """
    file = io.BytesIO(data)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.int64 or math.prod(shape) * 8 != len(data) - file.tell():
        raise ValueError("expected a file of one array of integers")
    file.seek(0)
    array: NDArray[np.int64] = np.load(file, allow_pickle=False)
    again = io.BytesIO()
    np.save(again, array)
    if again.getvalue() != data:
        raise ValueError("expected a file as numpy writes it")
    return array


def step_of(payload: Payload) -> str:
    """The exchange of a message: a group of arrays has its name. Raises ValueError if none has."""
    (step,) = payload.arrays.keys() & set(STEPS_OF_A_SUM)
    return step


def released_in(records: Sequence[str]) -> bool:
    """Whether the records of an audit line are a masked share; only that exchange releases something."""
    return any(record.startswith(f"{COLLECT}/") for record in records)
