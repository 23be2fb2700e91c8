"""Lease election on an injected clock, against a Lease in memory."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from trimtab.kube.errors import ApiError
from trimtab.kube.leader import Elector, LeadershipLostError, LeaseTimes


class Server:
    """One Lease with optimistic locking; refuses, fails or hangs on demand."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.down = False
        self.puts: list[str] = []

    async def get(self, resource: Any, *, namespace: str, name: str) -> dict[str, Any] | None:
        if self.down:
            raise OSError("connection refused")
        return copy.deepcopy(self.lease)

    async def request(self, method: str, path: str, *, body: Any, **_: Any) -> dict[str, Any]:
        if self.down:
            raise OSError("connection refused")
        if method == "PUT" and body["metadata"].get("resourceVersion") != str(self.version):
            raise ApiError(method=method, path=path, code=409, status={})
        if method == "POST" and self.lease is not None:
            raise ApiError(method=method, path=path, code=409, status={})
        self.version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        self.puts.append(body["spec"]["holderIdentity"])
        return copy.deepcopy(self.lease)


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.wall = datetime(2026, 11, 23, tzinfo=UTC)
        self.server = Server()
        self.on_sleep: Any = None

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.wall += timedelta(seconds=seconds)
        if self.on_sleep:
            self.on_sleep()

    def elector(self, identity: str) -> Elector:
        return Elector(
            self.server,  # type: ignore[arg-type]
            namespace="n",
            name="lease",
            identity=identity,
            times=LeaseTimes(),
            clock=lambda: self.now,
            utcnow=lambda: self.wall,
            sleep=self.sleep,
        )


async def test_the_first_replica_creates_the_lease() -> None:
    """Without a Lease the first replica creates it and may write."""
    world = World()
    elector = world.elector("a")
    await elector.acquire()
    assert world.server.lease is not None
    assert world.server.lease["spec"]["holderIdentity"] == "a"
    assert elector.may_write()


async def test_a_standby_waits_for_the_lease_to_expire_by_its_own_clock() -> None:
    """A silent leader is replaced once a whole Lease has passed on the standby's clock."""
    world = World()
    await world.elector("a").acquire()
    began = world.now
    standby = world.elector("b")
    await standby.acquire()
    assert 15 <= world.now - began <= 19
    assert world.server.puts == ["a", "b"]
    assert world.server.lease is not None
    assert world.server.lease["spec"]["leaseTransitions"] == 1


async def test_the_old_leader_is_silent_before_a_new_one_starts() -> None:
    """Cut off, a leader stops writing 10 s after its last renewal, the next one starts after 15."""
    world = World()
    old = world.elector("a")
    await old.acquire()
    world.now += 9.9
    assert old.may_write()
    world.now += 0.2
    assert not old.may_write()


async def test_a_leader_that_cannot_renew_gives_up() -> None:
    """Ten seconds without a renewal end leadership with a sentence."""
    world = World()
    elector = world.elector("a")
    await elector.acquire()
    world.server.down = True
    with pytest.raises(LeadershipLostError, match="could not be renewed"):
        await elector.keep()
    assert not elector.leads()


async def test_a_leader_survives_a_short_outage() -> None:
    """An outage shorter than the deadline costs nothing."""
    world = World()
    elector = world.elector("a")
    await elector.acquire()
    outage = iter([True, True, False])

    def flicker() -> None:
        world.server.down = next(outage, False)
        if len(world.server.puts) > 3:
            assert world.server.lease is not None
            world.server.lease["spec"]["holderIdentity"] = "b"

    world.on_sleep = flicker
    with pytest.raises(LeadershipLostError, match="is held by b"):
        await elector.keep()
    assert len(world.server.puts) > 3


async def test_wall_clock_jumps_do_not_matter() -> None:
    """A clock that jumps by an hour neither expires a Lease nor prolongs one."""
    world = World()
    leader, standby = world.elector("a"), world.elector("b")
    await leader.acquire()
    world.wall += timedelta(hours=1)
    assert not await standby._attempt()
    world.wall -= timedelta(hours=2)
    assert not await standby._attempt()
    assert leader.may_write()


async def test_a_released_lease_is_taken_at_once() -> None:
    """A clean stop hands over without waiting for expiry."""
    world = World()
    leader = world.elector("a")
    await leader.acquire()
    await leader.release()
    assert not leader.may_write()
    began = world.now
    await world.elector("b").acquire()
    assert world.now == began


async def test_a_renewal_that_was_cut_off_does_not_spoil_the_release() -> None:
    """The server took a renewal whose answer was lost; the release reads before it writes."""
    world = World()
    leader = world.elector("a")
    await leader.acquire()
    assert world.server.lease is not None
    await world.server.request("PUT", "/", body=world.server.lease)
    await leader.release()
    assert world.server.lease["spec"]["holderIdentity"] == ""


async def test_a_lease_of_another_is_not_released() -> None:
    """Who lost the Lease without knowing leaves the new holder alone."""
    world = World()
    leader = world.elector("a")
    await leader.acquire()
    assert world.server.lease is not None
    world.server.lease["spec"]["holderIdentity"] = "b"
    await leader.release()
    assert world.server.lease["spec"]["holderIdentity"] == "b"


async def test_two_replicas_cannot_both_acquire() -> None:
    """Of two that see the Lease free, one loses by its resourceVersion."""
    world = World()
    await world.elector("z").acquire()
    assert world.server.lease is not None
    world.server.lease["spec"]["holderIdentity"] = ""
    first, second = world.elector("a"), world.elector("b")
    seen = await world.server.get(None, namespace="n", name="lease")
    assert await first._attempt()
    original = world.server.get

    async def stale(resource: Any, *, namespace: str, name: str) -> dict[str, Any] | None:
        return seen

    world.server.get = stale  # type: ignore[method-assign]
    assert not await second._attempt()
    world.server.get = original  # type: ignore[method-assign]
    assert not second.may_write()
