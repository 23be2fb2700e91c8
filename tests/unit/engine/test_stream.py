"""Text that leaves the engine: whole characters, no stop text, nothing lost."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab_workers.engine.stops import StopText
from trimtab_workers.engine.tokenizer import StreamDetokenizer


class _Bytes:
    """A tokenizer whose token i is the i-th given piece of bytes; negative ids are special."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def token_bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id]

    def is_special(self, token_id: int) -> bool:
        return token_id < 0


def _stream(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], str | None]:
    detokenizer = StreamDetokenizer(_Bytes(pieces), stop=stop)
    deltas = []
    for index in range(len(pieces)):
        deltas.append(detokenizer.push(index))
        if detokenizer.stopped_by:
            break
    deltas.append(detokenizer.finish())
    return deltas, detokenizer.stopped_by


def test_partial_characters_wait():
    """A character of four bytes in four tokens appears once, whole."""
    deltas, _ = _stream([bytes((byte,)) for byte in "🙂".encode()])
    assert deltas == ["", "", "", "🙂", ""]


def test_incomplete_end_is_replaced():
    """Bytes that never became a character end as U+FFFD."""
    assert "".join(_stream([b"a", b"\xf0\x9f"])[0]) == "a\ufffd"


@pytest.mark.parametrize(
    "pieces", [["ST", "O", "P!"], ["xS", "TOP"], ["STO", "P"], ["S", "T", "O", "P"]]
)
def test_stop_over_borders(pieces: list[str]):
    """However tokens cut it, nothing of a stop text is emitted."""
    deltas, stopped = _stream([b"go ", *(p.encode() for p in pieces)], stop=("STOP",))
    assert stopped == "STOP"
    assert "".join(deltas) == "go " + "x" * (pieces[0] == "xS")


def test_false_start_is_released():
    """Text that only looked like a stop text comes out, at the latest at the end."""
    assert "".join(_stream([b"ST", b"OR", b"ST"], stop=("STOP",))[0]) == "STORST"


@given(st.text(alphabet="ab", min_size=1, max_size=6), st.text(alphabet="ab", max_size=40))
def test_held_back_is_what_may_become_a_stop(stop: str, text: str):
    """Held back is the longest end of the text that begins the stop text, and not more."""
    cut = text[: text.index(stop)] if stop in text else text
    detokenizer = StreamDetokenizer(_Bytes([b"a", b"b"]), stop=(stop,))
    emitted = "".join(detokenizer.push("ab".index(character)) for character in cut)
    longest = max(n for n in range(len(stop)) if cut.endswith(stop[:n]))
    assert emitted == cut[: len(cut) - longest]


def test_stop_search_costs_a_step_per_character():
    """The worst of stop texts is compared at most twice per character, however long it is."""
    stop = StopText("a" * 1000 + "b")
    compared = 0

    class Counted(str):
        __slots__ = ()

        def __getitem__(self, index):
            nonlocal compared
            compared += 1
            return super().__getitem__(index)

    stop.text = Counted(stop.text)
    assert stop.feed(("a" * 999 + "c") * 20) is None
    assert compared <= 3 * 20_000


def test_special_tokens_have_no_text():
    """Special tokens never show."""
    assert StreamDetokenizer(_Bytes([b"<eos>"]), stop=()).push(-1) == ""


@given(
    text=st.text(alphabet="ab🙂é", max_size=24),
    cuts=st.lists(st.integers(0, 80), max_size=12),
    stops=st.lists(st.text(alphabet="ab🙂é", min_size=1, max_size=4), max_size=3),
)
def test_equals_searching_the_whole(text: str, cuts: list[int], stops: list[str]):
    """Streaming gives what cutting the whole text at its first stop text gives."""
    raw = text.encode()
    borders = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    pieces = [raw[a:b] for a, b in itertools.pairwise(borders)]
    deltas, stopped = _stream(pieces, stop=tuple(stops))
    found = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not found:
        assert stopped is None
        assert "".join(deltas) == text
    else:
        assert stopped is not None
        emitted = "".join(deltas)
        assert text.startswith(emitted + stopped)
        assert not any(stop in emitted for stop in stops)
