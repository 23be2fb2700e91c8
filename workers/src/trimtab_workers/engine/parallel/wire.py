"""Step plans on their way to the other ranks: bytes of a fixed layout, never pickles.

A frame is a head (length, version, kind, number) and a body, in the byte order of the one machine
that all ranks share. A follower keeps nothing of a sequence
between steps: each plan carries the tokens to compute and the whole table of blocks to read, four
bytes each, so ranks cannot drift apart. For 256 sequences of 2,048 tokens that is 131 kB a step.
"""

from __future__ import annotations

import json
import struct
from array import array
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, overload

from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.kv import Block, KvSlab
from trimtab_workers.engine.scheduler import Row, StepPlan
from trimtab_workers.engine.sequence import Sequence
from trimtab_workers.engine.types import Request

VERSION = 1
HEAD = struct.Struct("<IBBI")
MAX_FRAME_BYTES = 64 << 20
_STEP = struct.Struct("<HHII")
_ROW_WORDS = 4


class Kind(IntEnum):
    """What a frame asks or answers."""

    HELLO = 1
    SHARE = 2
    STEP = 3
    CLEAR = 4
    EMPTY_CACHES = 5
    STOP = 6
    DONE = 7


_KINDS = frozenset(kind.value for kind in Kind)


class WireError(ValueError):
    """Bytes that no rank of this release sends; the group ends."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message; `number` counts the sender's steps."""

    kind: Kind
    number: int
    body: bytes

    def encode(self) -> bytes:
        """Return head and body."""
        if len(self.body) > MAX_FRAME_BYTES:
            raise WireError(
                f"A frame of {len(self.body)} bytes is more than {MAX_FRAME_BYTES}. Lower max_seqs."
            )
        return HEAD.pack(len(self.body), VERSION, self.kind, self.number) + self.body


def head(data: bytes) -> tuple[int, Kind, int]:
    """Return length, kind and number of a frame's head.

    Raises:
        WireError: Another version, or a kind or a length that is never sent.
    """
    length, version, kind, number = HEAD.unpack(data)
    if version != VERSION or kind not in _KINDS or length > MAX_FRAME_BYTES:
        raise WireError(
            f"A frame of version {version}, kind {kind} and {length} bytes came, and version {VERSION} "
            "is spoken here. Run all ranks from one release."
        )
    return length, Kind(kind), number


def document(frame: Frame) -> Any:
    """Return the JSON of a frame's body."""
    return json.loads(frame.body)


def of_document(kind: Kind, value: Any) -> Frame:
    """Return a frame that holds JSON."""
    return Frame(kind, 0, json.dumps(value).encode())


@dataclass(frozen=True, slots=True)
class TokenWindow:
    """A sequence's tokens as a follower knows them: those to compute, and how many there are."""

    first: int
    values: array[int]
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        """Return tokens by their place in the sequence; only known ones may be asked for."""
        if isinstance(index, int):
            return self.values[index - self.first]
        start, stop, _ = index.indices(self.length)
        known = range(self.first, self.first + len(self.values))
        if start < stop and (start not in known or stop - 1 not in known):
            raise WireError(f"Tokens {start} to {stop} were not sent; this is a bug, report it.")
        return self.values[start - self.first : stop - self.first].tolist()


def step_frame(number: int, *, model: int, layers: int | None, plan: StepPlan) -> Frame:
    """Encode a group's `number`th step, of a model by its place in the model set."""
    words, tokens, slots = array("i"), array("i"), array("i")
    for row in plan.rows:
        end = row.start + row.count
        used = [block.slot for block in row.sequence.blocks[: -(-end // BLOCK_TOKENS)]]
        words.extend((row.start, row.count, int(row.sample), len(used)))
        tokens.extend(row.sequence.tokens[row.start : end])
        slots.extend(used)
    top = _STEP.pack(model, layers or 0, len(plan.decode), len(plan.prefill))
    return Frame(Kind.STEP, number, top + words.tobytes() + tokens.tobytes() + slots.tobytes())


@dataclass(frozen=True, slots=True)
class SentRow:
    """What a step frame says about one row."""

    start: int
    count: int
    tokens: TokenWindow
    slots: array[int]


@dataclass(frozen=True, slots=True)
class SentStep:
    """A decoded step frame."""

    model: int
    layers: int | None
    decode: tuple[SentRow, ...]
    prefill: tuple[SentRow, ...]


def read_step(frame: Frame) -> SentStep:
    """Decode a step.

    Raises:
        WireError: The body does not add up.
    """
    if len(frame.body) < _STEP.size or (len(frame.body) - _STEP.size) % 4:
        raise WireError("A step frame is cut; this is a bug, please report it.")
    model, layers, decodes, prefills = _STEP.unpack_from(frame.body)
    words = array("i")
    words.frombytes(frame.body[_STEP.size :])
    rows = decodes + prefills
    table = [words[_ROW_WORDS * i : _ROW_WORDS * (i + 1)] for i in range(rows)]
    at = _ROW_WORDS * rows
    slots_at = at + sum(row[1] for row in table)
    if slots_at + sum(row[3] for row in table) != len(words):
        raise WireError("A step frame's sizes do not add up; this is a bug, please report it.")
    result: list[SentRow] = []
    for start, count, sample, used in table:
        length = start + count + (0 if sample else 1)
        window = TokenWindow(start, words[at : at + count], length)
        result.append(SentRow(start, count, window, words[slots_at : slots_at + used]))
        at, slots_at = at + count, slots_at + used
    return SentStep(model, layers or None, tuple(result[:decodes]), tuple(result[decodes:]))


def plan_of(step: SentStep) -> StepPlan:
    """Return the plan as a runner reads it."""
    return StepPlan(tuple(map(_row, step.decode)), tuple(map(_row, step.prefill)))


_ELSEWHERE = KvSlab(-1, borrowed=False)  # rank 0 keeps the books


def _row(sent: SentRow) -> Row:
    sequence = Sequence(
        request=Request(request_id="", model="", prompt_token_ids=(0,)),
        sink=_nowhere,
        tokens=sent.tokens,  # type: ignore[arg-type]  # read by slices alone
        prompt_length=0,
        limit=len(sent.tokens),
        seed=0,
        arrival_seconds=0.0,
        blocks=[Block(slot, _ELSEWHERE) for slot in sent.slots],
        computed=sent.start,
    )
    return Row(sequence, sent.start, sent.count)


def slots_frame(number: int, *, model: int, slots: list[int]) -> Frame:
    """Encode blocks that are to be cleared."""
    return Frame(Kind.CLEAR, number, array("i", [model, *slots]).tobytes())


def read_slots(frame: Frame) -> tuple[int, list[int]]:
    """Decode model and slots of a `slots_frame`."""
    words = array("i")
    words.frombytes(frame.body)
    return words[0], words[1:].tolist()


def _nowhere(_: object) -> None:
    """Take a follower's outputs, of which there are none."""
