"""Writes are paced and fenced."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from trimtab.kube.errors import ApiError, NotLeadingError
from trimtab.kube.writer import TokenBucket, Writer

CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "n"}}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class PlayedClient:
    manager = "trimtab-operator"

    def __init__(self, error: Exception | None = None) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.error = error

    async def request(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
        self.requests.append((method, path, rest))
        if self.error:
            raise self.error
        return {"metadata": {}}


class Counted:
    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.missing: list[tuple[str, str]] = []

    def wrote(self, *, kind: str, verb: str, result: str) -> None:
        self.rows.append((kind, verb, result))

    def forbidden(self, *, verb: str, resource: str) -> None:
        self.missing.append((verb, resource))


def a_writer(client: PlayedClient, counted: Counted, *, leads: bool = True) -> Writer:
    clock = Clock()
    bucket = TokenBucket(rate_per_second=50, burst=100, clock=clock, sleep=clock.sleep)
    return Writer(client, bucket=bucket, may_write=lambda: leads, observer=counted)  # type: ignore[arg-type]


async def test_a_burst_is_free_and_the_rest_is_paced() -> None:
    """A hundred writes start at once, then fifty per second."""
    clock = Clock()
    bucket = TokenBucket(rate_per_second=50, burst=100, clock=clock, sleep=clock.sleep)
    for _ in range(100):
        await bucket.take()
    assert clock.slept == []
    for _ in range(50):
        await bucket.take()
    assert clock.slept[-1] == pytest.approx(1.0)
    clock.now += 10
    await bucket.take()
    assert len(clock.slept) == 50


async def test_an_old_leader_sends_nothing() -> None:
    """A write does not start once the last renewal is too old."""
    client, counted = PlayedClient(), Counted()
    with pytest.raises(NotLeadingError, match="another replica may lead"):
        await a_writer(client, counted, leads=False).apply(dict(CONFIG_MAP))
    assert client.requests == []


async def test_writes_are_applied_as_the_manager_and_counted() -> None:
    """An apply names its manager, forces its fields, and is counted by kind, verb and result."""
    client, counted = PlayedClient(), Counted()
    await a_writer(client, counted).apply(dict(CONFIG_MAP))
    method, path, rest = client.requests[0]
    assert (method, path) == ("PATCH", "/api/v1/namespaces/n/configmaps/x")
    assert rest["query"] == {"fieldManager": "trimtab-operator", "force": "true"}
    assert rest["content_type"] == "application/apply-patch+yaml"
    assert rest["timeout_seconds"] <= 5
    assert counted.rows == [("ConfigMap", "apply", "ok")]


async def test_a_part_of_an_object_has_a_manager_of_its_own() -> None:
    """Who applies as another manager owns nothing of what the operator applied."""
    client, counted = PlayedClient(), Counted()
    await a_writer(client, counted).apply(dict(CONFIG_MAP), force=False, manager="trimtab-anchors")
    assert client.requests[0][2]["query"] == {"fieldManager": "trimtab-anchors", "force": "false"}


async def test_a_missing_right_is_counted_by_verb_and_resource() -> None:
    """A 403 of RBAC shows in its own metric."""
    message = 'cannot patch resource "configmaps" in API group "" in the namespace "n"'
    error = ApiError(method="PATCH", path="/", code=403, status={"message": message})
    client, counted = PlayedClient(error), Counted()
    with pytest.raises(ApiError):
        await a_writer(client, counted).apply(dict(CONFIG_MAP))
    assert counted.missing == [("patch", "configmaps")]
    assert counted.rows == [("ConfigMap", "apply", "MissingPermission")]


async def test_all_attempts_of_a_write_share_one_time_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A write that is tried again after a 401 must still end before the Lease does."""
    monkeypatch.setattr("trimtab.kube.writer.WRITE_TIMEOUT_SECONDS", 0.01)
    counted = Counted()

    class Slow(PlayedClient):
        async def request(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
            await asyncio.sleep(60)
            return await super().request(method, path, **rest)

    with pytest.raises(TimeoutError):
        await a_writer(Slow(), counted).apply(CONFIG_MAP)
    assert counted.rows == [("ConfigMap", "apply", "Unavailable")]
