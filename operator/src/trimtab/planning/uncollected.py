"""No search for cycles of garbage while a plan is made."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Let the cycle collector rest; counting references frees what is done with as ever.

    A fleet's plan makes a million small objects that refer to each other in no circle and mostly stay
    until it is done. The collector would walk all of them again and again, and free nothing.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
