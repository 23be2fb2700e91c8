"""Logs as one JSON object per line on stderr, ours and every library's (contracts §1)."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class LogLevelError(ValueError):
    """TRIMTAB_LOG_LEVEL names no level."""


def _shared() -> list[Processor]:
    return [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]


def _drop_kopf_object(_: Any, __: str, event: EventDict) -> EventDict:
    """Keep names only: kopf hangs its settings and the object's reference on records."""
    record = event.get("_record")
    reference = getattr(record, "k8s_ref", None)
    if isinstance(reference, dict):
        event["namespace"] = reference.get("namespace")
        event["name"] = reference.get("name")
    return event


def configure(level: str) -> None:
    """Send everything to stderr as JSON.

    Raises:
        LogLevelError: Names the value and the levels.
    """
    if level.lower() not in _LEVELS:
        raise LogLevelError(
            f"TRIMTAB_LOG_LEVEL is {level!r}; use one of {', '.join(sorted(_LEVELS))}."
        )
    structlog.configure(
        processors=[*_shared(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level.lower()]),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_shared(),
            processors=[
                _drop_kopf_object,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level.lower()])
    # kopf logs a line per object and event there; our own caches and conditions say it better.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
