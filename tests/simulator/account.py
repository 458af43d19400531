"""The account of a storm: whether what came of each request, and what was recorded of it, is right.

* `Course` is what was ordered and when; so it tells which deployments may have answered a request.
* `judge` settles every request exactly once, after the fact: right (the bytes that onnxruntime alone gives
  with the bundle of the generation that is named, and that generation is one that the routing may have
  chosen while the request was under way), refused for a reason that holds, or a fault in words: lost,
  doubled, wrong, astray, unexplained.
* `misrecorded` holds the records of the spool against what was settled.
* The routing is computed here anew, from its description, and not by the server's own code.
"""

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from policies.terms import Deployment

REFUSED = ("500", "INTERNAL")
GONE = ("404", "NOT_FOUND")
_NOT_FINITE = re.compile(r"expected finite outputs of generation (\d+)")


@dataclass(frozen=True)
class Model:
    """A bundle, and by picture the bytes of its logits and embedding; None where they are not finite."""

    digest: str
    answers: tuple[bytes | None, ...]

    @classmethod
    def of(cls, digest: str, raw: bytes, asked: list[NDArray[np.uint8]]) -> "Model":
        """Ask onnxruntime alone, one request at a time."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        answers = []
        for x in asked:
            outputs = session.run(["logits", "embedding"], {"image": x})
            finite = all(np.isfinite(each).all() for each in outputs)
            answers.append(b"".join(each.tobytes() for each in outputs) if finite else None)
        return cls(digest, tuple(answers))


# -- what was asked, what came, what was ordered ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A request; ``at`` is on the monotonic clock, ``version`` the generation that it pins, if any."""

    id: str
    picture: int
    at: float
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Came:
    """What came for an id: numbers of a generation (their bytes), or a refusal (its reason in ``said``)."""

    id: str
    status: str
    at: float
    generation: int | None
    said: bytes


def routed(wanted: Deployment, asked: Asked) -> int | None:
    """Return the generation that a deployment has answer a request; None: it has none for it."""
    stable, newcomer, share = wanted.stable, wanted.newcomer, wanted.newcomer_share
    assert stable is not None
    if asked.version is not None:
        seen = {stable.generation} | ({newcomer.generation} if newcomer and share > 0.0 else set())
        return asked.version if asked.version in seen else None
    if newcomer is None:
        return stable.generation
    text = f"{wanted.model}/{newcomer.generation}\n{asked.id}".encode()
    place = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % 10_000
    return newcomer.generation if place < round(share * 10_000) else stable.generation


class Course:
    """The deployments that were applied, in turn, each from its order to its confirmation."""

    def __init__(self) -> None:
        self.models: dict[int, Model] = {}
        self._deployments: list[Deployment] = []
        self._ordered: list[float] = []
        self._confirmed: list[float] = []

    def __len__(self) -> int:
        return len(self._deployments)

    def add(self, wanted: Deployment, ordered: float, confirmed: float) -> None:
        """Note a deployment that was applied."""
        self._deployments.append(wanted)
        self._ordered.append(ordered)
        self._confirmed.append(confirmed)

    def between(self, since: float, until: float) -> list[Deployment]:
        """Return the deployments that may have been in force at some moment of a time."""
        # One is in force from some moment after its order until some moment before the next is confirmed.
        first = max(0, bisect_left(self._confirmed, since) - 1)
        return self._deployments[first : bisect_right(self._ordered, until)]


# -- the account --------------------------------------------------------------------------------------------


@dataclass
class Account:
    """What a storm came to; ``settled`` has generation and outcome by id, of what is right or refused."""

    asked: int = 0
    right: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    settled: dict[str, tuple[int, str]] = field(default_factory=dict)


def judge(asked: Iterable[Asked], came: Iterable[Came], course: Course) -> Account:
    """Settle every request once."""
    account, open_ = Account(), {each.id: each for each in asked}
    account.asked = len(open_)
    for each in came:
        request = open_.pop(each.id, None)
        if request is None:
            known = each.id in account.settled
            account.faults.append(f"{'doubled' if known else 'nobody asked'}: {each}")
            continue
        fault, outcome, generation = _settled(request, each, course)
        account.settled[each.id] = generation, outcome
        if fault is not None:
            account.faults.append(f"{fault}: {request}, {each}")
        elif outcome == "ok":
            account.right += 1
        else:
            account.refused[outcome] += 1
    account.faults += [f"lost: {each}" for each in open_.values()]
    return account


def _settled(asked: Asked, came: Came, course: Course) -> tuple[str | None, str, int]:
    """Return what is wrong with an answer, if anything; its outcome and its generation (0: none)."""
    able = {routed(each, asked) for each in course.between(asked.at, came.at)}
    if came.generation is None:
        return _refused(asked, came, course, able)
    if came.generation not in able:
        return f"astray, expected one of {able}", "ok", came.generation
    own = course.models[came.generation].answers[asked.picture]
    return (None if came.said == own else "wrong"), "ok", came.generation


def _refused(asked: Asked, came: Came, course: Course, able: set[int | None]) -> tuple[str | None, str, int]:
    reason = came.said.decode()
    if came.status in REFUSED and (named := _NOT_FINITE.fullmatch(reason)):
        generation = int(named[1])
        holds = generation in able and course.models[generation].answers[asked.picture] is None
        return (None if holds else "unexplained"), "not_finite", generation
    holds = None in able and came.status in GONE and f"{asked.version}" in reason and "expected" in reason
    return (None if holds else "unexplained"), "client_error", 0


# -- the records --------------------------------------------------------------------------------------------

Said = tuple[int, str]
"""A generation (0: none) and an outcome."""


def misrecorded(
    found: list[tuple[bytes, Said]], dropped: int, wanted: dict[bytes, Said], refused: int
) -> list[str]:
    """Return what is wrong with the records of a storm, in words.

    Args:
        found: Row key and what the record says, of every record.
        dropped: Rows that the server counted as lost.
        wanted: What must be said of every row that reached a model, by its key.
        refused: Requests that reached none; their records have keys of their own.
    """
    wrong, total = [], len(wanted) + refused
    if len(found) + dropped != total:
        wrong.append(f"expected {total} rows, got {len(found)} records and {dropped} counted as lost")
    ran = [(key, said) for key, said in found if said[0]]
    if len(dict(ran)) != len(ran):
        wrong.append(f"expected every row once, {len(ran) - len(dict(ran))} came again")
    if len(found) - len(ran) > refused:
        wrong.append(f"expected at most {refused} records of refusals, got {len(found) - len(ran)}")
    wrong += [
        f"expected {wanted.get(key)} of row {key.hex()}, got {said}"
        for key, said in ran
        if wanted.get(key) != said
    ]
    return wrong
