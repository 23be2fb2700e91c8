from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab_workers.gateway.sse import LARGEST_EVENT_BYTES, StreamTap, timing_of

ROLE = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
WORD = b'data: {"choices":[{"delta":{"content":"usage and error"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
ERROR = b'data: {"error":{"message":"broken"}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = ROLE + WORD + WORD + USAGE + DONE


def fed(pieces, *, pass_usage):
    tap = StreamTap(pass_usage=pass_usage)
    out = b"".join(tap.feed(piece, now=float(i)) for i, piece in enumerate(pieces))
    return tap, out


def test_usage_is_stripped_where_nobody_asked():
    """Without a request for usage the client sees every event but that one."""
    tap, out = fed([WHOLE], pass_usage=False)
    assert out == ROLE + WORD + WORD + DONE
    assert tap.usage == {"prompt_tokens": 7, "completion_tokens": 3}
    assert tap.done


def test_usage_passes_where_asked():
    """With a request for usage the stream passes unchanged."""
    assert fed([WHOLE], pass_usage=True)[1] == WHOLE


def test_null_usage_is_taken_out_where_nobody_asked():
    """A chunk's null usage, there because the gateway asks for usage, passes only to who asked."""
    chunk = WORD.replace(b"}\n\n", b',"usage":null}\n\n')
    assert chunk != WORD
    assert fed([chunk + USAGE + DONE], pass_usage=False)[1] == WORD + DONE
    assert fed([chunk + USAGE + DONE], pass_usage=True)[1] == chunk + USAGE + DONE


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12), st.booleans())
def test_cuts_do_not_matter(cuts, pass_usage):
    """However the network cuts the bytes, the client gets the same."""
    marks = [0, *sorted(cuts), len(WHOLE)]
    pieces = [WHOLE[a:b] for a, b in pairwise(marks)]
    assert fed(pieces, pass_usage=pass_usage)[1] == fed([WHOLE], pass_usage=pass_usage)[1]


def test_words_like_usage_are_content():
    """Content that merely mentions usage or errors passes."""
    odd = b'data: {"choices":[{"delta":{"content":"\\"usage\\": {}, \\"error\\""}}]}\n\n'
    tap, out = fed([odd], pass_usage=False)
    assert out == odd
    assert (tap.usage, tap.failed) == (None, False)


def test_errors_are_noticed():
    """A worker's error event passes and marks the stream as failed."""
    tap, out = fed([ROLE + ERROR], pass_usage=False)
    assert out == ROLE + ERROR
    assert tap.failed
    assert not tap.done


def test_latencies_come_from_events():
    """TTFT is the first event, TPOT the rest over the tokens after the first."""
    tap = StreamTap(pass_usage=False)
    for now, event in ((10.5, ROLE), (10.6, WORD), (10.9, WORD), (11.9, USAGE + DONE)):
        tap.feed(event, now=now)
    outcome = tap.outcome(
        arrived_at=10.0, one_choice=True, failed=False, overhead_ms=1.0, pod_uid="u"
    )
    assert outcome.ttft_ms == pytest.approx(500.0)
    assert outcome.tpot_ms == pytest.approx(200.0)
    assert (outcome.prompt_tokens, outcome.output_tokens) == (7, 3)


def test_one_token_has_no_tpot():
    """A stream of one token, or without usage, gives no TPOT."""
    tap, _ = fed([WORD], pass_usage=False)
    outcome = tap.outcome(
        arrived_at=0.0, one_choice=True, failed=True, overhead_ms=None, pod_uid=None
    )
    assert outcome.tpot_ms is None
    assert outcome.output_tokens is None


def test_endless_events_are_refused():
    """An event without end does not fill the memory."""
    tap = StreamTap(pass_usage=False)
    with pytest.raises(ValueError, match="more than"):
        tap.feed(b"x" * (LARGEST_EVENT_BYTES + 1), now=0.0)


def test_choices_side_by_side_have_no_tpot():
    """With several choices the tokens of one cannot be told apart, so there is no TPOT."""
    tap = StreamTap(pass_usage=False)
    tap.feed(WORD, now=1.0)
    tap.feed(WORD + USAGE + DONE, now=2.0)
    outcome = tap.outcome(
        arrived_at=0.0, one_choice=False, failed=False, overhead_ms=None, pod_uid=None
    )
    assert (outcome.ttft_ms, outcome.tpot_ms) == (1000.0, None)


@pytest.mark.parametrize(
    ("header", "ttft"),
    [
        ("ttft;dur=12.5, tpot;dur=3", 12.5),
        ("tpot;dur=3,ttft;desc=x;dur=1", 1.0),
        ("ttft;dur=x", None),
        ("ttft", None),
        ("tpot;dur=3", None),
        (";;,,=", None),
        ("", None),
        (None, None),
    ],
)
def test_server_timing_is_read(header, ttft):
    """A `Server-Timing` header gives milliseconds by name; anything else gives none."""
    assert timing_of(header, "ttft") == ttft
