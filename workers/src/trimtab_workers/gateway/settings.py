"""The gateway's environment (docs/design/20261123-contracts.md, section 9)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

AUTH_MODES: Final = ("Kubernetes", "None")


class SettingsError(ValueError):
    """An environment variable has an impossible value; names it, the value and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """How a gateway runs; times are seconds.

    Attributes:
        state_dir: Where the last good routing table is kept; None keeps none.
        hold_seconds: How long a request waits while its model has no ready pod.
        upstream_seconds: How long a worker may take until its answer begins.
        silence_seconds: How long a stream may pause.
        drain_delay_seconds: After SIGTERM, how long new requests are still taken while the
            Service forgets this pod.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    admin_port: int = 8001
    metrics_port: int = 8002
    system_namespace: str = "trimtab-system"
    pod_name: str = "gateway"
    auth: str = "Kubernetes"
    audience: str = "trimtab"
    state_dir: Path | None = None
    max_in_flight: int = 1024
    max_body_bytes_in_flight: int = 128 * 2**20
    hold_seconds: float = 10.0
    upstream_seconds: float = 600.0
    connect_seconds: float = 2.0
    silence_seconds: float = 300.0
    shutdown_seconds: float = 45.0
    drain_delay_seconds: float = 3.0


def from_environment(
    environment: Mapping[str, str] | None = None,
    *,
    host: str,
    port: int = 8080,
    admin_port: int = 8001,
    metrics_port: int = 8002,
) -> GatewaySettings:
    """Read the environment; host and ports are flags.

    Raises:
        SettingsError: A variable has an impossible value.
    """
    source = os.environ if environment is None else environment
    auth = source.get("TRIMTAB_GATEWAY_AUTH") or "Kubernetes"
    if auth not in AUTH_MODES:
        raise SettingsError(
            f"TRIMTAB_GATEWAY_AUTH is {auth!r}; use one of {', '.join(AUTH_MODES)}."
        )
    folder = source.get("TRIMTAB_STATE_DIR")
    return GatewaySettings(
        system_namespace=source.get("TRIMTAB_SYSTEM_NAMESPACE") or "trimtab-system",
        pod_name=source.get("TRIMTAB_POD_NAME") or "gateway",
        auth=auth,
        audience=source.get("TRIMTAB_AUDIENCE") or "trimtab",
        state_dir=Path(folder) if folder else None,
        max_in_flight=int(_number(source, "TRIMTAB_MAX_IN_FLIGHT", 1024, least=1)),
        hold_seconds=_number(source, "TRIMTAB_HOLD_SECONDS", 10.0),
        upstream_seconds=_number(source, "TRIMTAB_UPSTREAM_TIMEOUT_SECONDS", 600.0, least=0.1),
        silence_seconds=_number(source, "TRIMTAB_STREAM_SILENCE_SECONDS", 300.0, least=0.1),
        shutdown_seconds=_number(source, "TRIMTAB_SHUTDOWN_TIMEOUT_SECONDS", 45.0),
        drain_delay_seconds=_number(source, "TRIMTAB_DRAIN_DELAY_SECONDS", 3.0),
        host=host,
        port=port,
        admin_port=admin_port,
        metrics_port=metrics_port,
    )


def _number(source: Mapping[str, str], name: str, default: float, *, least: float = 0.0) -> float:
    text = source.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value < 1e6:
        raise SettingsError(f"{name} is {text!r}; give a number of at least {least:g}.")
    return value
