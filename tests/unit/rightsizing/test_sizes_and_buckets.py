"""Few sizes for many wants, and the memory of like inputs."""

from tests.unit.rightsizing.sizing_builders import an_input
from trimtab.rightsizing.buckets import RING, Bucket, Buckets, bucket_key
from trimtab.rightsizing.sizes import choose_sizes, round_up, switch
from trimtab.rightsizing.targets import Work
from trimtab.rightsizing.types import Size

DEFAULT = Size(2000, 2048)
WEIGHTS = (1 / 2000, 1 / 2048)


def test_rare_sizes_join_their_neighbours():
    """The two whose union wastes least become one; what is wanted often keeps its own."""
    wants = (
        [Size(250, 128)] * 100
        + [Size(500, 256)]
        + [Size(500, 384)]
        + [Size(1000, 1024)] * 5
        + [Size(1000, 1152)]
    )
    found = choose_sizes(wants, default=DEFAULT, weights=WEIGHTS)
    assert found == (Size(250, 128), Size(500, 384), Size(1000, 1152), DEFAULT)


def test_a_small_default_stays_and_never_grows():
    """A default below the wants is kept as it is, and covers what it can."""
    default = Size(500, 512)
    wants = [Size(250, 128), Size(500, 256), Size(1000, 1024), Size(2000, 2048)]
    found = choose_sizes(wants, default=default, weights=WEIGHTS, limit=2)
    assert found == (default, DEFAULT)


def test_a_want_gets_the_cheapest_size_that_covers_it():
    """Both resources must suffice; a want that nothing covers keeps its own size."""
    sizes = [Size(500, 2048), Size(1000, 512), DEFAULT]
    assert round_up(Size(500, 384), sizes, weights=WEIGHTS) == Size(1000, 512)
    assert round_up(Size(250, 1024), sizes, weights=WEIGHTS) == Size(500, 2048)
    assert round_up(Size(4000, 1), sizes, weights=WEIGHTS) == Size(4000, 1)


def test_sizes_change_only_where_it_pays():
    """A saving of less than a tenth is not worth a new pool; a want without a size is."""
    wants = [Size(250, 128)] * 10
    near, far = Size(250, 129), Size(1000, 1024)
    assert not switch([near, DEFAULT], [Size(250, 128), DEFAULT], wants=wants, weights=WEIGHTS)
    assert switch([far, DEFAULT], [Size(250, 128), DEFAULT], wants=wants, weights=WEIGHTS)
    assert switch([Size(100, 64)], [DEFAULT], wants=wants, weights=WEIGHTS)


def test_like_inputs_share_half_an_octave():
    """Values within a factor of the root of two share a bucket; nought has its own."""
    assert bucket_key(an_input(64)) == bucket_key(an_input(90))
    assert bucket_key(an_input(64)) != bucket_key(an_input(91))
    assert bucket_key(an_input(0)) != bucket_key(an_input(1e-9))
    assert bucket_key(an_input(1, 2, 3)) == bucket_key(an_input(1, 2, 9))
    assert bucket_key(an_input(1, categories=("k=a",))) != bucket_key(an_input(1))


def test_a_bucket_keeps_its_last_32_runs():
    """The p90 of needs and the largest peak are of the last 32 runs."""
    bucket = Bucket()
    for place in range(100):
        bucket.works.append(Work(cpu_s=100.0 - place, idle_s=0.0, width=64.0))
        bucket.peaks.append(1000.0 - place)
    assert len(bucket.works) == RING
    assert bucket.cpu(budget_s=1.0, margin=1.0, share=0.9).cpu == 29.0
    assert bucket.memory() == 1000.0 - 68


def test_the_bucket_used_least_lately_goes_first():
    """Asking for a bucket keeps it."""
    buckets = Buckets(most=2)
    first = buckets.ensure((1,))
    buckets.ensure((2,))
    assert buckets.get((1,)) is first
    buckets.ensure((3,))
    assert buckets.get((2,)) is None
    assert buckets.get((1,)) is first
    assert [key for key, _ in buckets.newest(1)] == [(1,)]
    assert len(buckets) == 2
