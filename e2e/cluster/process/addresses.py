"""Which address each pod of the stand-in node announces, and which loopback address it listens on."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

ANNOUNCED: Final = "192.0.2."
"""TEST-NET-1 (RFC 5737): the API server refuses loopback addresses in EndpointSlices, and no packet
may ever go to the announced ones."""
LOOPBACK: Final = "127.0.2."


class NoAddressError(RuntimeError):
    """All addresses of the stand-in node are taken."""


def listening(tables: Iterable[Path] = (Path("/proc/net/tcp"),)) -> set[str]:
    """Return the IPv4 addresses on which some process of this machine listens."""
    found = set()
    for table in tables:
        for line in table.read_text().splitlines()[1:]:
            local, _, state = line.split()[1:4]
            if state == "0A":
                number = int.from_bytes(bytes.fromhex(local.partition(":")[0]), "little")
                found.add(str(ipaddress.IPv4Address(number)))
    return found


def choose(*, taken: Iterable[str], busy: Iterable[str], loopback: str = LOOPBACK) -> str:
    """Return the announced address for a new pod: the lowest that is neither taken nor listened on.

    Args:
        taken: Announced addresses of the node's pods.
        busy: Loopback addresses on which something listens, perhaps another stand-in node's pod.
        loopback: Prefix of the addresses that pods listen on.

    Raises:
        NoAddressError: 253 pods is the most that one stand-in node can run.
    """
    used = set(taken) | {
        ANNOUNCED + a.removeprefix(loopback) for a in busy if a.startswith(loopback)
    }
    for number in range(2, 255):
        if ANNOUNCED + str(number) not in used:
            return ANNOUNCED + str(number)
    raise NoAddressError(
        f"all 253 addresses {loopback}2 to {loopback}254 are taken; delete pods, or start the "
        "stand-in node with another --loopback-prefix"
    )
