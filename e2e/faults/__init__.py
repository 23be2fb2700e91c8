"""Faults between a controller and the API server: one reverse proxy that serves every class of them."""

from e2e.faults.faults import (
    Cut,
    Delay,
    Drop,
    Fault,
    FirstOfEachKind,
    Freeze,
    KillAfterWrite,
    Match,
    Status,
    Swallow,
)
from e2e.faults.proxy import FaultProxy
from e2e.faults.seen import Seen
from e2e.faults.thread import ThreadedProxy
from e2e.faults.writes import Writes, writes

__all__ = [
    "Cut",
    "Delay",
    "Drop",
    "Fault",
    "FaultProxy",
    "FirstOfEachKind",
    "Freeze",
    "KillAfterWrite",
    "Match",
    "Seen",
    "Status",
    "Swallow",
    "ThreadedProxy",
    "Writes",
    "writes",
]
