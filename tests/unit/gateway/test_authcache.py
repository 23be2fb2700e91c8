from __future__ import annotations

import pytest

from trimtab_workers.gateway.authcache import AuthCache, Standing


@pytest.mark.parametrize(
    ("age", "standing"),
    [
        (0.0, Standing.FRESH),
        (9.9, Standing.FRESH),
        (10.0, Standing.STALE),
        (899.9, Standing.STALE),
        (900.0, Standing.UNKNOWN),
    ],
)
def test_positive_answers_age(age, standing):
    """A grant is fresh for 10 s, then usable in an outage until 15 min."""
    cache = AuthCache()
    cache.grant("q", "ada", now=1000.0)
    found, value = cache.look_up("q", now=1000.0 + age)
    assert found is standing
    assert value == (None if standing is Standing.UNKNOWN else "ada")


def test_grants_end_with_the_token():
    """No answer outlives the token's expiry, not even a fresh one."""
    cache = AuthCache()
    cache.grant("q", "ada", now=1000.0, expires_at=1005.0)
    assert cache.look_up("q", now=1004.9)[0] is Standing.FRESH
    assert cache.look_up("q", now=1005.0)[0] is Standing.UNKNOWN


def test_refusals_replace_grants_and_pass():
    """A refusal ends a grant at once, and is forgotten after 2 s."""
    cache = AuthCache()
    cache.grant("q", "ada", now=1000.0)
    cache.refuse("q", now=1011.0)
    assert cache.look_up("q", now=1012.9) == (Standing.REFUSED, None)
    assert cache.look_up("q", now=1013.0) == (Standing.UNKNOWN, None)


def test_a_clock_set_back_grants_nothing():
    """An answer from the future is not believed."""
    cache = AuthCache()
    cache.grant("q", "ada", now=1000.0)
    assert cache.look_up("q", now=999.0)[0] is Standing.UNKNOWN


def test_the_least_recently_used_goes_first():
    """The cache is bounded; what is used stays."""
    cache = AuthCache(entries=2)
    cache.grant("a", 1, now=0.0)
    cache.grant("b", 2, now=0.0)
    cache.look_up("a", now=1.0)
    cache.grant("c", 3, now=1.0)
    assert len(cache) == 2
    assert cache.look_up("b", now=1.0)[0] is Standing.UNKNOWN
    assert cache.look_up("a", now=1.0)[0] is Standing.FRESH


def test_refusals_push_out_no_grants():
    """However many tokens are refused, known callers stay known, and refusals are bounded."""
    cache = AuthCache(entries=2)
    cache.grant("ada", 1, now=0.0)
    for index in range(5):
        cache.refuse(index, now=1.0)
    assert len(cache) == 3
    assert cache.look_up("ada", now=100.0) == (Standing.STALE, 1)
    assert cache.look_up(4, now=1.0)[0] is Standing.REFUSED
    assert cache.look_up(0, now=1.0)[0] is Standing.UNKNOWN
