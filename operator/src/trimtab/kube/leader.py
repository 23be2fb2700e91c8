"""Lease election by an injected monotonic clock.

Not the `LeaderElection` of `kubernetes.aio`: in 37.0.2 it cannot create its Lease, goes on
leading after a refused connection, and measures by wall clock (operator.md, section 7).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp
import structlog

from trimtab.kube.errors import ApiError
from trimtab.kube.resources import LEASE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from trimtab.kube.client import KubeClient
    from trimtab.kube.resources import Manifest

_log = structlog.get_logger(__name__)
_REQUEST_TIMEOUT_SECONDS: Final = 5.0


class LeadershipLostError(RuntimeError):
    """The Lease could not be renewed in time; the process must end (crash-only)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """How long a Lease holds and when its holder falls silent, in seconds."""

    lease_seconds: float = 15.0
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0


class Elector:
    """Acquires, renews and releases one Lease.

    A write may start only while `now < start of the last good renewal + renew deadline`; with
    writes of at most 5 s the old leader is silent before a new one can start.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        times: LeaseTimes,
        clock: Callable[[], float],
        utcnow: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._times = times
        self._clock = clock
        self._utcnow = utcnow
        self._sleep = sleep
        self._renewed_at: float | None = None
        self._last_read_at: float | None = None
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0
        self._lease: Manifest | None = None

    @property
    def identity(self) -> str:
        """Who holds the Lease when this replica leads."""
        return self._identity

    def may_write(self) -> bool:
        """Whether a write may start now."""
        return (
            self._renewed_at is not None
            and self._clock() < self._renewed_at + self._times.renew_deadline_seconds
        )

    def leads(self) -> bool:
        """Whether this replica acquired the Lease and has not lost or released it."""
        return self._renewed_at is not None

    def can_read(self) -> bool:
        """Whether the Lease was read within three retries: what a standby's readiness means."""
        return (
            self._last_read_at is not None
            and self._clock() - self._last_read_at < 3 * self._times.retry_seconds + 5
        )

    async def acquire(self) -> None:
        """Return once this replica holds the Lease."""
        while not await self._attempt():
            await self._sleep(self._times.retry_seconds)
        _log.info("leadership_acquired", lease=self._name, identity=self._identity)

    async def keep(self) -> None:
        """Renew until leadership is lost.

        Raises:
            LeadershipLostError: Another replica holds the Lease, or none of the renewals of the
                last `renew_deadline_seconds` succeeded.
        """
        while True:
            await self._sleep(self._times.retry_seconds)
            renewed = await self._attempt()
            if renewed:
                continue
            if self._holder() not in ("", self._identity):
                self._renewed_at = None
                raise LeadershipLostError(
                    f"Lease {self._namespace}/{self._name} is held by {self._holder()}; "
                    "this replica ends and comes back as a standby."
                )
            if not self.may_write():
                self._renewed_at = None
                raise LeadershipLostError(
                    f"Lease {self._namespace}/{self._name} could not be renewed for "
                    f"{self._times.renew_deadline_seconds:g} s; this replica ends and comes back "
                    "as a standby."
                )

    async def release(self) -> None:
        """Give the Lease up, so that a standby need not wait for it to expire; never raises."""
        if self._renewed_at is None:
            return
        self._renewed_at = None
        try:
            # Read again: a renewal that was cut off may have reached the server.
            lease = await self._client.get(LEASE, namespace=self._namespace, name=self._name)
            spec = (lease or {}).get("spec") or {}
            if lease is None or spec.get("holderIdentity") != self._identity:
                return
            released = spec | {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._put(lease | {"spec": released})
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            _log.warning("lease_not_released", lease=self._name, error=str(error))
        else:
            _log.info("leadership_released", lease=self._name, identity=self._identity)

    def _holder(self) -> str:
        spec = (self._lease or {}).get("spec") or {}
        return spec.get("holderIdentity") or ""

    async def _attempt(self) -> bool:
        """Try once; True if this replica holds the Lease as of the start of the attempt."""
        started = self._clock()
        try:
            acquired = await self._try(started)
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            if not (isinstance(error, ApiError) and error.code == 409):
                _log.warning("lease_unavailable", lease=self._name, error=str(error))
            return False
        if acquired:
            self._renewed_at = started
        return acquired

    async def _try(self, started: float) -> bool:
        lease = await self._client.get(LEASE, namespace=self._namespace, name=self._name)
        self._last_read_at = self._clock()
        self._lease = lease
        if lease is None:
            self._lease = await self._client.request(
                "POST",
                LEASE.path(namespace=self._namespace),
                body={
                    "apiVersion": LEASE.api_version,
                    "kind": LEASE.kind,
                    "metadata": {"name": self._name, "namespace": self._namespace},
                    "spec": self._spec({}),
                },
                timeout_seconds=_REQUEST_TIMEOUT_SECONDS,
            )
            return True
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder not in ("", self._identity) and not self._expired(spec, started):
            return False
        self._lease = await self._put(lease | {"spec": self._spec(spec)})
        return True

    def _expired(self, spec: Manifest, now: float) -> bool:
        """Whether the holder was silent for the Lease's length *by our own clock*.

        Times in the Lease are another machine's wall clock: they are only compared for change.
        """
        version = (spec.get("holderIdentity") or "", str(spec.get("renewTime")))
        if version != self._seen:
            self._seen = version
            self._seen_at = now
        length = float(spec.get("leaseDurationSeconds") or self._times.lease_seconds)
        return now - self._seen_at >= length

    def _spec(self, before: Manifest) -> Manifest:
        now = self._utcnow().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        same = before.get("holderIdentity") == self._identity
        transitions = int(before.get("leaseTransitions") or 0)
        return {
            "holderIdentity": self._identity,
            # The API wants whole seconds; shortened times of tests round up.
            "leaseDurationSeconds": max(1, -int(-self._times.lease_seconds // 1)),
            "acquireTime": before["acquireTime"] if same and before.get("acquireTime") else now,
            "renewTime": now,
            "leaseTransitions": transitions if same or not before else transitions + 1,
        }

    async def _put(self, lease: Manifest) -> Manifest:
        return await self._client.request(
            "PUT",
            LEASE.path(namespace=self._namespace, name=self._name),
            body=lease,
            timeout_seconds=_REQUEST_TIMEOUT_SECONDS,
        )
