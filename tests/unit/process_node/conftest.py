from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from pathlib import Path

import pytest

from e2e.cluster.process import sweep
from e2e.cluster.process.api import Api, Kubeconfig
from e2e.cluster.process.node import Node, Settings

# importlib mode puts no test folder on the path: the fake is loaded by its file.
_SPEC = importlib.util.spec_from_file_location("fake_api", Path(__file__).with_name("fake_api.py"))
fake_api = importlib.util.module_from_spec(_SPEC)
sys.modules.setdefault("fake_api", fake_api)
_SPEC.loader.exec_module(fake_api)


@pytest.fixture
async def api(tmp_path):
    fake = fake_api.FakeApi()
    fake.kubeconfig = await fake.start(tmp_path)
    yield fake
    await fake.stop()


@pytest.fixture
async def start_node(api, tmp_path):
    """A function that starts a stand-in node on the fake API; everything is swept at the end."""
    state = tmp_path / "state"
    state.mkdir()
    running = []

    async def start(**changes):
        settings = Settings(
            name=fake_api.NODE,
            state_dir=state,
            loopback="127.0.77.",
            back_off_seconds=0.05,
            **changes,
        )
        client = Api(Kubeconfig(api.kubeconfig))
        await client.__aenter__()
        node = Node(settings, api=client)
        task = asyncio.create_task(node.run())
        running.append((task, client))

        async def stop():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await client.__aexit__()

        node.stop = stop
        return node

    yield start
    for task, client in running:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.__aexit__()
    sweep(state, seconds=1.0)
