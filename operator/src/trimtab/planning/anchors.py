"""From the counters of live replicas to anchors, and from anchors to what they say of a fingerprint.

An anchor belongs to a fingerprint, whose key says nothing about depth: a family of models shares it.
So each remembers the depth of the model that ran, and is compared with the step model of that depth
(planner.md §7).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from trimtab.planning.calibration import Correction, Residual, correction
from trimtab.planning.fingerprint import Fingerprint, FingerprintInvalidError, FingerprintKey
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import Anchor
from trimtab.planning.step_model import StepModel, fit

_ROW = 5
# Larger whole numbers are no floats, and what is worked out from them overflows.
_MOST_COUNT = 2**53
_MOST_SECONDS = 1e9


class AnchorsInvalidError(ValueError):
    """A kept document of anchors cannot be read; they are collected anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCounters:
    """Decode-only steps of one model in one worker, summed since it started (contracts §6)."""

    steps: int
    seconds: float
    sequences: int
    context_tokens: int

    def since(self, before: "DecodeCounters") -> "DecodeCounters | None":
        """Return what was counted since; None if the worker started anew in between.

        Every step has a sequence: fewer of them are no difference of one worker's counts.
        """
        steps, seconds = self.steps - before.steps, self.seconds - before.seconds
        sequences = self.sequences - before.sequences
        tokens = self.context_tokens - before.context_tokens
        if min(steps, sequences, tokens) < 0 or seconds < 0 or sequences < steps:
            return None
        return DecodeCounters(
            steps=steps, seconds=seconds, sequences=sequences, context_tokens=tokens
        )

    def anchor(self, *, key: str, depth: int, tensor_parallel_size: int) -> Anchor:
        """Return the anchor of a window with steps."""
        return Anchor(
            key=key,
            depth=depth,
            tensor_parallel_size=tensor_parallel_size,
            batch=round(self.sequences / self.steps, 3),
            kv_tokens=float(round(self.context_tokens / self.steps)),
            step_us=max(1, round(1e6 * self.seconds / self.steps)),
            steps=self.steps,
        )


def read_counters(entry: Any) -> DecodeCounters:
    """Return a worker's counters.

    Raises:
        ValueError: They are no numbers of zero or more, too large, or steps without sequences.
    """
    try:
        found = DecodeCounters(
            steps=int(entry["steps"]),
            seconds=float(entry["seconds"]),
            sequences=int(entry["sequences"]),
            context_tokens=int(entry["context_tokens"]),
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"decode_only is {_short(entry)}; it must hold four numbers.") from error
    counts = (found.steps, found.sequences, found.context_tokens)
    within = min(counts) >= 0 and max(counts) <= _MOST_COUNT
    if not within or not 0 <= found.seconds <= _MOST_SECONDS or found.sequences < found.steps:
        raise ValueError(
            f"decode_only is {_short(entry)}; it must hold counts from 0 to 2^53, seconds from 0 "
            "to 10^9, and at least as many sequences as steps."
        )
    return found


def _short(entry: object) -> str:
    try:
        return repr(entry)[:120]
    except (ValueError, RecursionError):
        # Python refuses to print whole numbers of thousands of digits, and what is nested as deep.
        return "too long to be shown"


class Corrections:
    """What anchors say about fingerprints: each family's anchors are looked up, not searched for.

    Args:
        fingerprints: Everybody's, among them those that differ in the tensor-parallel size alone.
        anchors: Everybody's, of each key the newest last.
        policy: Constants.
    """

    def __init__(
        self,
        fingerprints: Iterable[Fingerprint],
        anchors: Sequence[Anchor],
        *,
        policy: PlannerPolicy,
    ) -> None:
        self._policy = policy
        self._anchors: dict[str, list[tuple[int, Anchor]]] = {}
        for place, anchor in enumerate(anchors):
            self._anchors.setdefault(anchor.key, []).append((place, anchor))
        self._families: dict[FingerprintKey, list[Fingerprint]] = {}
        # Without anchors nobody asks for families.
        for one in fingerprints if anchors else ():
            self._families.setdefault(_family(one), []).append(one)

    def of(self, fingerprint: Fingerprint) -> Correction | None:
        """Return what anchors say about a fingerprint's family; None if they say nothing."""
        if not self._anchors:
            return None
        family = {f.key.digest(): f for f in self._families.get(_family(fingerprint), ())}
        family[fingerprint.key.digest()] = fingerprint
        mine = sorted(
            (found for key in family for found in self._anchors.get(key, ())), key=lambda a: a[0]
        )
        if not mine:
            return None
        members = tuple(sorted(family.values(), key=_size))
        return _correction(members, tuple(anchor for _, anchor in mine), self._policy)


def correction_for(
    fingerprint: Fingerprint,
    *,
    fingerprints: Iterable[Fingerprint],
    anchors: Sequence[Anchor],
    policy: PlannerPolicy,
) -> Correction | None:
    """Return what `Corrections.of` finds, for one question alone."""
    return Corrections(fingerprints, anchors, policy=policy).of(fingerprint)


def departure(
    anchor: Anchor,
    fingerprint: Fingerprint,
    *,
    known: Correction | None,
) -> float:
    """Return ln(measured/predicted) of a window, beyond what the anchors in force saw.

    The correction in force is shrunk and does not count here: its missing share would look like
    drift for ever.

    Raises:
        FingerprintInvalidError: No step model fits the fingerprint.
    """
    alone = correction(
        (anchor,),
        {anchor.tensor_parallel_size: _fitted(fingerprint, anchor.depth)},
        policy=_UNBOUND,
    )
    error = alone.residuals[0].error
    return error - (known.seen(anchor.tensor_parallel_size, anchor.batch) if known else 0.0)


def dump_anchors(anchors: Iterable[Anchor]) -> str:
    """Return the document that is kept with a fingerprint (contracts §2)."""
    rows = [
        [a.depth, round(1000 * a.batch), round(a.kv_tokens), a.step_us, a.steps] for a in anchors
    ]
    return json.dumps({"v": 1, "anchors": rows}, separators=(",", ":"))


def parse_anchors(text: str, *, key: str, tensor_parallel_size: int) -> tuple[Anchor, ...]:
    """Return the anchors of a document, the newest last; none of an empty one.

    Args:
        text: As `dump_anchors` writes it.
        key: Digest of the fingerprint's key.
        tensor_parallel_size: Of that key.

    Raises:
        AnchorsInvalidError: It is no such document.
    """
    if not text:
        return ()
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid("the document", str(error)) from error
    rows = document.get("anchors") if isinstance(document, dict) else None
    if not isinstance(document, dict) or document.get("v") != 1 or not isinstance(rows, list):
        raise _invalid("v and anchors", document)
    for row in rows:
        whole = isinstance(row, list) and len(row) == _ROW and all(type(v) is int for v in row)
        if not whole or min(row[0], row[1], row[3], row[4]) < 1 or row[2] < 0:
            raise _invalid("a row of anchors", row)
        if max(row) > _MOST_COUNT:
            raise _invalid("a number in a row of anchors", "larger than 2^53")
    return tuple(
        Anchor(
            key=key,
            depth=depth,
            tensor_parallel_size=tensor_parallel_size,
            batch=batch / 1000,
            kv_tokens=float(kv_tokens),
            step_us=step_us,
            steps=steps,
        )
        for depth, batch, kv_tokens, step_us, steps in rows
    )


def _invalid(field: str, value: object) -> AnchorsInvalidError:
    return AnchorsInvalidError(
        f"Anchors: {field} is {str(value)[:120]!r}, not what Trimtab writes. They are collected anew."
    )


# One window alone counts, however few steps it has.
_UNBOUND = PlannerPolicy(anchor_steps=0)


@lru_cache(maxsize=256)
def _fitted(fingerprint: Fingerprint, depth: int) -> StepModel:
    return fit(fingerprint, depth=depth)


@lru_cache(maxsize=256)
def _correction(
    family: tuple[Fingerprint, ...], anchors: tuple[Anchor, ...], policy: PlannerPolicy
) -> Correction | None:
    """Return the correction of a family, each anchor held against the model of its own depth."""
    by_size = {_size(f): f for f in family}
    residuals: list[Residual] = []
    for depth in dict.fromkeys(a.depth for a in anchors):
        models = {}
        for size, fingerprint in by_size.items():
            try:
                models[size] = _fitted(fingerprint, depth)
            except FingerprintInvalidError:
                continue
        found = correction((a for a in anchors if a.depth == depth), models, policy=policy)
        residuals += found.residuals
    if not residuals:
        return None
    return Correction(residuals=tuple(residuals), sizes=tuple(sorted(by_size)), policy=policy)


def _family(fingerprint: Fingerprint) -> FingerprintKey:
    """Return what fingerprints that differ in the tensor-parallel size alone have in common."""
    return replace(fingerprint.key, tensor_parallel_size=1)


def _size(fingerprint: Fingerprint) -> int:
    return fingerprint.key.tensor_parallel_size
