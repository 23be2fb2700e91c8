"""The cycle collector rests while a plan is made, and only then."""

import gc

import pytest

from trimtab.planning.uncollected import uncollected


def test_the_collector_rests_and_goes_on_afterwards():
    """It is off inside, and on again behind, also if what was done inside failed."""
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), uncollected():
        1 / 0  # noqa: B018 - fails
    assert gc.isenabled()


def test_a_collector_that_rested_before_is_left_alone():
    """Whoever put it to rest wakes it; an inner plan does not."""
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
