import json

import pytest

from trimtab_workers.fingerprint.grid import CPU, QUICK, GridError, GridPoint, grid_of


def test_the_cpu_grid_is_the_design_s():
    """Batches 1 to 8 at three contexts, chunks 32 to 512, two prefixes, one mixed check."""
    assert grid_of("cpu") == CPU
    kinds = [point.kind for point in CPU]
    assert (kinds.count("decode"), kinds.count("prefill"), kinds.count("mixed")) == (12, 6, 1)
    assert GridPoint(chunk=512, cached=1024) in CPU


def test_the_quick_grid_still_separates_every_term():
    """Two contexts per batch give b, one chunk after two prefixes gives p₁."""
    assert grid_of("quick") == QUICK
    assert len({p.context for p in QUICK if p.kind == "decode"}) == 2
    assert len({p.cached for p in QUICK if p.chunk == 128}) == 2
    assert len(QUICK) < len(CPU) / 2


def test_an_explicit_grid_is_taken_as_it_is():
    """Lists of pairs become points of their kind."""
    spec = json.loads('{"decode": [[2, 64]], "prefill": [[32, 0]], "mixed": [[32, 2]]}')
    decode, prefill, mixed = grid_of(spec)
    assert decode == GridPoint(batch=2, context=64)
    assert prefill == GridPoint(chunk=32)
    assert (mixed.chunk, mixed.batch, mixed.kind) == (32, 2, "mixed")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gpu", "grid is 'gpu'"),
        ({"decode": [[1, 64]]}, "at least one decode and one prefill"),
        ({"decode": [[0, 64]], "prefill": [[1, 0]]}, "grid.decode"),
        ({"decode": [[1, 64]], "prefill": [[1]]}, "grid.prefill"),
        ({"decode": [[1, 64]], "prefill": [[1.5, 0]]}, "grid.prefill"),
        ({"decode": "all", "prefill": [[1, 0]]}, "grid.decode is 'all'"),
    ],
)
def test_a_wrong_grid_names_its_part(spec, said):
    """The message names the list that is wrong."""
    with pytest.raises(GridError, match=said):
        grid_of(spec)
