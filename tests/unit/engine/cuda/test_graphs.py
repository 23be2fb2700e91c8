from itertools import pairwise

import pytest

from trimtab_workers.engine.graphs import GraphCache, GraphKey, Segment, batch_buckets, spans


class Recorder:
    """Records Python calls instead of kernels: recording runs nothing, replaying runs the work."""

    def __init__(self):
        self.warmed = self.recorded = 0

    def warm_up(self, work):
        self.warmed += 1
        work()

    def record(self, work):
        self.recorded += 1
        return work


def a_step(log, *names):
    return lambda: [
        Segment(
            lambda name=name: log.append(name),
            lambda name=name: log.append(f"before {name}"),
            lambda name=name: log.append(f"after {name}"),
        )
        for name in names
    ]


@pytest.mark.parametrize("most", [1, 3, 8, 17, 64, 100, 256])
def test_buckets(most):
    """Buckets ascend to the largest batch, and none pads more than 15 rows."""
    buckets = batch_buckets(most)
    assert list(buckets) == sorted(set(buckets))
    assert buckets[-1] == most
    assert all(b - a <= 16 for a, b in pairwise(buckets))


def test_bucket_of_a_batch():
    """A batch goes to the least bucket that holds it; one that none holds is a bug."""
    cache = GraphCache(Recorder(), max_seqs=20)
    assert [cache.bucket(batch) for batch in (1, 3, 8, 9, 17)] == [1, 4, 8, 16, 20]
    for batch in (0, 21):
        with pytest.raises(ValueError, match="this is a bug"):
            cache.bucket(batch)


@pytest.mark.parametrize(
    ("streamed", "expected"),
    [
        ((), [range(5)]),
        ((0,), [range(1), range(1, 5)]),
        ((2, 3), [range(2), range(2, 3), range(3, 4), range(4, 5)]),
        ((4,), [range(4), range(4, 5)]),
    ],
)
def test_spans(streamed, expected):
    """Graphs are cut before and after each streamed layer, adjacent ones included."""
    assert spans(5, streamed) == expected


def test_recorded_once():
    """A step is warmed up and recorded once, then replayed; waits run at every replay."""
    recorder, log = Recorder(), []
    cache = GraphCache(recorder, max_seqs=8)
    key = GraphKey(model="m", streamed=(1,), batch=4)
    for _ in range(3):
        cache.run(key, a_step(log, "a", "b"))
    assert (recorder.warmed, recorder.recorded, len(cache)) == (1, 2, 1)
    assert log == ["before a", "a", "after a", "before b", "b", "after b"] * 4


def test_another_level_replaces():
    """A model's new streaming level replaces the old recording of that batch, no other one."""
    recorder = Recorder()
    cache = GraphCache(recorder, max_seqs=8)
    keys = [
        GraphKey(model="m", streamed=(), batch=4),
        GraphKey(model="m", streamed=(), batch=8),
        GraphKey(model="n", streamed=(), batch=4),
        GraphKey(model="m", streamed=(0, 2), batch=4),
    ]
    for key in keys:
        cache.run(key, a_step([], "a"))
    assert len(cache) == 3
    for key in keys[1:]:
        cache.run(key, a_step([], "a"))
    assert recorder.recorded == 4
    cache.run(keys[0], a_step([], "a"))
    assert recorder.recorded == 5


def test_dropped_with_its_model():
    """A removed model's graphs are forgotten, another's stay."""
    recorder = Recorder()
    cache = GraphCache(recorder, max_seqs=8)
    for model in "mn":
        cache.run(GraphKey(model=model, streamed=(), batch=1), a_step([], "a"))
    cache.drop("m")
    assert len(cache) == 1
    cache.run(GraphKey(model="n", streamed=(), batch=1), a_step([], "a"))
    assert recorder.recorded == 2
