"""JSON logs on stderr without a dependency: GPU images carry no structlog.

`log.info("model_loaded", extra={"model": "team-a/chat"})` becomes one line
`{"event": "model_loaded", "level": "info", "timestamp": …, "model": "team-a/chat"}`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, Final

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object; `extra` fields become keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its newline."""
        line: dict[str, Any] = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(
                timespec="milliseconds"
            ),
            "logger": record.name,
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(*, level: str | None = None) -> None:
    """Send all logs as JSON to stderr.

    Args:
        level: A logging level's name; by default `TRIMTAB_LOG_LEVEL`, else `info`.

    Raises:
        ValueError: The level is unknown; names the value.
    """
    name = (level or os.environ.get("TRIMTAB_LOG_LEVEL") or "info").upper()
    if name not in logging.getLevelNamesMapping():
        raise ValueError(
            f"TRIMTAB_LOG_LEVEL is {name.lower()!r}; use debug, info, warning or error."
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=name, handlers=[handler], force=True)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
