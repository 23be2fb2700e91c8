"""Addresses and the one link of a node-level cluster: a veth pair into the node's own network namespace.

The pods, the Services and the node live in 10.N.0.0/16, which the host routes through the pair. Nothing
else of the host's network is touched: bridge, nftables and sysctls are the namespace's and end with it.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from typing import TYPE_CHECKING

from e2e.cluster.errors import ClusterError
from e2e.cluster.requirements import which

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CANDIDATES = range(200, 250)


def _ip(*words: str) -> str:
    command = [which("ip") or "ip", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(
            f"`ip {' '.join(words)}` failed: {done.stderr.strip()} "
            "Remedy: `python -m e2e.cluster down`, then `up` again."
        )
    return done.stdout


def used_networks() -> list[ipaddress.IPv4Network]:
    """Return every IPv4 network that this host routes or has an address in, the default route aside."""
    texts = [row["dst"] for row in json.loads(_ip("-4", "-j", "route", "show", "table", "all"))]
    for link in json.loads(_ip("-4", "-j", "addr", "show")):
        texts += [f"{one['local']}/{one['prefixlen']}" for one in link.get("addr_info", [])]
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.IPv4Network(text, strict=False))
        except ValueError:  # `default`
            continue
    return networks


def choose(used: Iterable[ipaddress.IPv4Network], taken: Iterable[int]) -> dict[str, str]:
    """Return the addresses of a new cluster, in the first 10.N.0.0/16 that nobody uses.

    Raises:
        ClusterError: All are in use.
    """
    used, taken = list(used), set(taken)
    for number in CANDIDATES:
        whole = ipaddress.IPv4Network(f"10.{number}.0.0/16")
        if number not in taken and not any(whole.overlaps(network) for network in used):
            return {
                "number": str(number),
                "whole": str(whole),
                "interface": f"trimtab{number}",
                "host": f"10.{number}.255.1",
                "node": f"10.{number}.255.2",
                "pod_cidr": f"10.{number}.0.0/20",
                "service_cidr": f"10.{number}.128.0/20",
                "service_ip": f"10.{number}.128.1",
                "dns_ip": f"10.{number}.128.10",
            }
    raise ClusterError(
        "No free network for the node: every one from 10.200.0.0/16 to 10.249.0.0/16 is routed on this "
        "machine. Remedy: take other clusters down (`python -m e2e.cluster down --all`)."
    )


def exists(network: dict[str, str]) -> bool:
    """Return whether the host's end of the link is there."""
    links = json.loads(_ip("-j", "link", "show"))
    return any(link["ifname"] == network["interface"] for link in links)


def connect(network: dict[str, str], *, namespace_pid: int, enter: Sequence[str]) -> None:
    """Make the link into the network namespace of `namespace_pid`, its addresses and routes.

    `enter` is the command that runs a program inside that namespace.
    """
    disconnect(network)
    name = network["interface"]
    _ip("link", "add", name, "type", "veth", "peer", "name", "uplink", "netns", str(namespace_pid))
    _ip("addr", "add", f"{network['host']}/30", "dev", name)
    _ip("link", "set", name, "up")
    inside = (
        f"ip link set lo up; ip addr add {network['node']}/30 dev uplink; ip link set uplink up; "
        f"ip route add default via {network['host']}; "
        "echo 1 > /proc/sys/net/ipv4/ip_forward; "
        # Without this a pod that reaches itself or a neighbour through a Service gets answers that
        # were bridged past connection tracking, from an address it never asked.
        "for f in /proc/sys/net/bridge/bridge-nf-call-iptables; do [ -e $f ] && echo 1 > $f; done; true"
    )
    script = f"set -e; PATH=$PATH:/usr/sbin:/sbin; {inside}"
    done = subprocess.run([*enter, "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"the node's network could not be set up: {done.stderr.strip()}")
    _ip("route", "replace", network["whole"], "via", network["node"], "dev", name)


def disconnect(network: dict[str, str]) -> None:
    """Remove the link; its addresses and routes go with it.

    The kernel removes the link of a namespace that ended by itself, some time later.
    """
    if exists(network):
        try:
            _ip("link", "delete", network["interface"])
        except ClusterError:
            if exists(network):
                raise
