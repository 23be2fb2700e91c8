"""Set-up that every tier needs."""

import asyncio

import pytest
from hypothesis import Phase, settings

pytest_plugins = ("e2e.cluster.pytest_plugin",)


def pytest_configure(config: pytest.Config) -> None:
    """Say that the main thread has no event loop, before anybody asks for one.

    NB: without this pytest-asyncio 1.5 calls `asyncio.get_event_loop()`, which opens a loop that
    nobody closes; as warnings are errors, whichever test runs at the next collection fails.
    """
    asyncio.set_event_loop(None)
    # A shared machine makes single examples slow; a test that hangs is ended by its time-out.
    # Explaining traces every line: minutes on top of a failure that was found in seconds.
    phases = [phase for phase in Phase if phase is not Phase.explain]
    settings.register_profile("trimtab", deadline=None, phases=phases)
    settings.load_profile("trimtab")
