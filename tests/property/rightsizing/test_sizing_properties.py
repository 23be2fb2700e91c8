"""What holds of the right-sizer's decisions whatever its numbers are."""

import io
import struct
import wave

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from trimtab.rightsizing import headers
from trimtab.rightsizing.checkpoint import Fate, Origin, dump, load
from trimtab.rightsizing.features import FeatureSpec, Plan, Request
from trimtab.rightsizing.samples import lesson
from trimtab.rightsizing.sizer import FunctionModel, Layout
from trimtab.rightsizing.sizes import choose_sizes, round_up
from trimtab.rightsizing.targets import Work, cost_vector, need_cpu, split
from trimtab.rightsizing.types import Features, Ladder, Outcome, PeakKind, Size, Usage

EXAMPLES = 40
LADDER = Ladder.of(cpu_m=(100, 2000, 100), mem_mib=(128, 2048, 128))
LAYOUT = Layout(numbers=("n", "m"), categories=True)
ORIGIN = Origin(uid="uid", digest="digest")
WEIGHTS = (1 / 2000, 1 / 2048)
sizes = st.builds(Size, st.sampled_from(LADDER.cpu_m), st.sampled_from(LADDER.mem_mib))
positive = st.floats(1e-3, 1e4)
usages = st.builds(
    Usage,
    cpu_s=st.floats(0, 1e4),
    wall_s=st.floats(0, 1e4),
    throttled_s=st.floats(0, 1e4),
    periods_throttled=st.integers(0, 10),
    peak_anon_mib=st.floats(0, 1e5),
    peak_kind=st.sampled_from(PeakKind),
    oom=st.booleans(),
    alloc=sizes,
    alloc_changed=st.booleans(),
)
outcomes = st.builds(
    Outcome,
    status=st.sampled_from((200, 404, 500, 0)),
    retried=st.booleans(),
    first_call=st.booleans(),
)
inputs = st.builds(
    Features,
    numbers=st.tuples(st.floats(0, 1e18), st.floats(0, 1e18)),
    categories=st.sampled_from(((), ("type=a",), ("type=b",))),
    missing=st.sampled_from((None, None, None, "n:absent")),
    length=st.integers(0, 2**40),
)


@settings(max_examples=EXAMPLES)
@given(
    count=st.integers(2, 32),
    at=st.integers(0, 31),
    under=st.floats(1.5, 16),
)
def test_cost_has_its_only_minimum_at_the_target(count, at, under):
    """The target costs nothing, and a step below costs `under` times a step above."""
    target = min(at, count - 1)
    cost = cost_vector(count, target=target, under=under)
    assert cost[target] == 0
    assert sum(cost == 0) == 1
    if 0 < target < count - 1:
        assert np.isclose(cost[target - 1], under * cost[target + 1])


@settings(max_examples=EXAMPLES)
@given(
    cpu_s=positive,
    idle_s=st.floats(0, 100),
    width=st.floats(1, 64),
    budget=st.floats(0.1, 1e4),
    more=st.floats(1, 10),
)
def test_need_rises_with_work_and_falls_with_time(cpu_s, idle_s, width, budget, more):
    """More CPU seconds never need less, a longer deadline never more; nobody needs more than p."""
    work = Work(cpu_s=cpu_s, idle_s=idle_s, width=width)
    need = need_cpu(work, budget_s=budget, margin=1.15).cpu
    heavier = Work(cpu_s=cpu_s * more, idle_s=idle_s, width=width)
    assert need_cpu(heavier, budget_s=budget, margin=1.15).cpu >= need
    assert need_cpu(work, budget_s=budget * more, margin=1.15).cpu <= need
    assert need <= width


@settings(max_examples=EXAMPLES)
@given(usage=usages.filter(lambda usage: usage.wall_s > 0), seen=st.floats(1, 32))
def test_work_is_never_negative(usage, seen):
    """Whatever was measured, time that waits is not negative and width at least one."""
    work = split(usage, width_seen=seen)
    assert work.idle_s >= 0
    assert work.width >= 1


@settings(max_examples=80)
@given(
    data=st.binary(max_size=300), head=st.sampled_from((b"", b"\xff\xd8\xff", b"RIFF", b"GIF89a"))
)
def test_header_readers_never_raise(data, head):
    """Any bytes give a size or none."""
    image = headers.image(head + data)
    assert image is None or min(image.width, image.height) >= 1
    sound = headers.wav(head + data)
    assert sound is None or sound.seconds >= 0


@settings(max_examples=24)
@given(
    kind=st.sampled_from(("JPEG", "PNG", "GIF", "WEBP", "WEBP lossless")),
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    cut=st.integers(0, 400),
)
@example(kind="WEBP lossless", width=300, height=1, cut=0)
def test_header_readers_agree_with_pillow(kind, width, height, cut):
    """A valid file's size is what a decoder says; a cut one has that size or none."""
    picture, buffer = Pillow.new("RGB", (width, height), (1, 2, 3)), io.BytesIO()
    picture.save(buffer, kind.partition(" ")[0], **({"lossless": True} if " " in kind else {}))
    data = buffer.getvalue()
    expected = headers.Image(format=kind.partition(" ")[0].lower(), width=width, height=height)
    assert headers.image(data) == expected
    assert headers.image(data[:cut]) in (None, expected)


@settings(max_examples=24)
@given(channels=st.integers(1, 2), rate=st.integers(1, 48_000), frames=st.integers(0, 2000))
def test_the_wave_reader_agrees_with_the_library(channels, rate, frames):
    """Channels, rate and length are those that were written, behind any other chunk."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(bytes(2 * channels * frames))
    data = buffer.getvalue()
    extra = data[:12] + struct.pack("<4sI", b"LIST", 3) + b"abc\x00" + data[12:]
    expected = headers.Wav(channels=channels, rate=rate, seconds=frames / rate)
    assert headers.wav(data) == headers.wav(extra) == expected


@settings(max_examples=EXAMPLES)
@given(want=sizes, given_=st.lists(sizes, max_size=6))
def test_rounding_up_dominates(want, given_):
    """Nobody is given less than was wanted of either resource."""
    assert round_up(want, given_, weights=WEIGHTS).covers(want)


@settings(max_examples=EXAMPLES)
@given(wants=st.lists(sizes, min_size=1, max_size=80), default=sizes, limit=st.integers(2, 5))
def test_few_sizes_cover_every_want(wants, default, limit):
    """At most the limit, the default among them, and a size for each want."""
    found = choose_sizes(wants, default=default, weights=WEIGHTS, limit=limit)
    assert len(found) <= limit
    assert default in found
    assert all(any(size.covers(want) for size in found) for want in wants)


def lived(history):
    """Return a model after a history of requests and usages."""
    model = FunctionModel(LADDER, layout=LAYOUT)
    for features, usage, outcome, budget in history:
        model.decide(features, budget_s=budget)
        model.observe(features, usage, budget_s=budget, outcome=outcome)
        model.choose_sizes()
    return model


histories = st.lists(st.tuples(inputs, usages, outcomes, positive), max_size=30)


@settings(max_examples=25)
@given(history=histories, asked=inputs, budget=positive)
def test_a_model_survives_any_history_and_a_checkpoint(history, asked, budget):
    """Any numbers lead to a class of the ladder, and the model that was loaded decides alike."""
    model = lived(history)
    assert model.observations == sum(
        usage.wall_s > 0 and (lesson(usage, outcome).cpu or lesson(usage, outcome).memory)
        for _, usage, outcome, _ in history
    )
    decision = model.preview(asked, budget_s=budget)
    assert decision.want.cpu_m in LADDER.cpu_m
    assert decision.want.mem_mib in LADDER.mem_mib
    assert decision.size.covers(decision.want)
    loaded = load(dump(model, origin=ORIGIN), ladder=LADDER, layout=LAYOUT, origin=ORIGIN)
    assert loaded.fate is Fate.LOADED
    assert loaded.model.preview(asked, budget_s=budget) == decision
    assert loaded.model.confidence == model.confidence


TEXT = dump(
    lived(
        [
            (
                Features(numbers=(float(k), 1.0), categories=("type=a",)),
                Usage(
                    cpu_s=1.0,
                    wall_s=1.0,
                    throttled_s=0.0,
                    periods_throttled=0,
                    peak_anon_mib=90.0,
                    peak_kind=PeakKind.RESET,
                    oom=False,
                    alloc=Size(1000, 1024),
                ),
                Outcome(),
                10.0,
            )
            for k in range(1, 13)
        ]
    ),
    origin=ORIGIN,
)


@settings(max_examples=80)
@given(at=st.integers(0, len(TEXT) - 1), flip=st.integers(1, 127))
def test_any_flipped_byte_is_found(at, flip):
    """A damaged checkpoint is a fresh model, never an exception and never another decision."""
    damaged = TEXT[:at] + chr(ord(TEXT[at]) ^ flip) + TEXT[at + 1 :]
    found = load(damaged, ladder=LADDER, layout=LAYOUT, origin=ORIGIN)
    assert found.fate is Fate.CORRUPT
    assert found.model.observations == 0


@settings(max_examples=30)
@given(
    body=st.binary(max_size=200),
    kind=st.sampled_from(("", "text/csv", "application/json", "image/png", "\x00")),
    value=st.text(max_size=20),
    length=st.integers(-1, 2**62),
)
def test_features_of_any_request_are_finite(body, kind, value, length):
    """Whatever a client sends, every number is finite and not negative, or the feature is missing."""
    plan = Plan.compile(
        [
            FeatureSpec(name="h", origin="Header", key="h"),
            FeatureSpec(name="q", origin="Query", key="q"),
            FeatureSpec(name="p", origin="JSONPointer", key="/a"),
            FeatureSpec(name="m", origin="ContentType"),
        ]
    )
    request = Request(
        headers={"content-type": kind, "h": value}, query={"q": value}, prefix=body, length=length
    )
    found = plan.vector(request, budget_us=2000, clock=lambda: 0)
    assert len(found.numbers) == len(plan.layout.numbers)
    assert all(np.isfinite(number) and number >= 0 for number in found.numbers)
    FunctionModel(LADDER, layout=plan.layout).decide(found, budget_s=1.0)
