"""The one way to dial a pod: an aiohttp connector that honours `TRIMTAB_ADDRESS_REWRITE`.

The API server refuses loopback addresses in EndpointSlices, so the stand-in node announces
192.0.2.n for a process that listens on 127.0.2.n (docs/design/20261123-contracts.md, section 1).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.resolver import ThreadedResolver

if TYPE_CHECKING:
    import socket

    from aiohttp.abc import ResolveResult


class AddressRewriteError(ValueError):
    """`TRIMTAB_ADDRESS_REWRITE` is not FROM_PREFIX:TO_PREFIX."""


def rewrite_address(host: str, *, rule: str) -> str:
    """Return `host` with the prefix of `rule` replaced; other hosts are returned unchanged.

    Args:
        host: An IP address as text.
        rule: `FROM_PREFIX:TO_PREFIX`, both IPv4 prefixes, or the empty string for no rule.

    Raises:
        AddressRewriteError: The rule has no colon or an empty prefix; names the value.
    """
    if not rule:
        return host
    before, colon, after = rule.partition(":")
    if not (before and colon and after):
        raise AddressRewriteError(
            f"TRIMTAB_ADDRESS_REWRITE is {rule!r}; write FROM_PREFIX:TO_PREFIX, "
            "for example 192.0.2.:127.0.2."
        )
    return after + host.removeprefix(before) if host.startswith(before) else host


class _RewritingResolver(ThreadedResolver):
    def __init__(self, rule: str) -> None:
        super().__init__()
        self._rule = rule

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = 0,  # type: ignore[assignment]  # aiohttp's own default
    ) -> list[ResolveResult]:
        return await super().resolve(rewrite_address(host, rule=self._rule), port, family)


class _PodConnector(aiohttp.TCPConnector):
    """aiohttp resolves no literal addresses, so the rewrite happens before that shortcut."""

    def __init__(self, *, rule: str, limit: int) -> None:
        super().__init__(limit=limit, resolver=_RewritingResolver(rule))
        self._rule = rule

    async def _resolve_host(
        self, host: str, port: int, traces: object = None
    ) -> list[ResolveResult]:
        return await super()._resolve_host(rewrite_address(host, rule=self._rule), port, traces)  # type: ignore[arg-type]  # private type


def pod_connector(*, limit: int = 0) -> aiohttp.TCPConnector:
    """Return a connector for requests to pods; `limit` 0 means no limit on connections.

    Raises:
        AddressRewriteError: `TRIMTAB_ADDRESS_REWRITE` is malformed.
    """
    rule = os.environ.get("TRIMTAB_ADDRESS_REWRITE", "")
    rewrite_address("", rule=rule)
    return _PodConnector(rule=rule, limit=limit)


def bind_address() -> str:
    """Return the address to listen on: `TRIMTAB_BIND_ADDRESS`, by default all of them."""
    return os.environ.get("TRIMTAB_BIND_ADDRESS", "0.0.0.0")  # noqa: S104 - pods listen on all addresses
