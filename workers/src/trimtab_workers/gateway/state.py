"""The last good copy on disk: what the gateway serves from when no API server answers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from trimtab_workers.gateway.directory import Directory

log = logging.getLogger(__name__)

FILE_NAME: Final = "routes.json"
SETTLE_SECONDS: Final = 0.2


def write_atomically(path: Path, document: dict[str, Any]) -> None:
    """Write JSON so that a reader, or the next process, sees the old file or the new one.

    Raises:
        OSError: The folder cannot be written.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(document, stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def restore(directory: Directory, *, folder: Path) -> bool:
    """Load the last good copy; False if there is none or it cannot be used."""
    path = folder / FILE_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        directory.restore(document)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("saved_routes_unusable", extra={"path": str(path), "reason": repr(error)})
        return False
    log.info("saved_routes_restored", extra={"models": len(directory.table.models())})
    return True


async def keep_saved(directory: Directory, *, folder: Path) -> None:
    """Save after each change, not more than every 0.2 s; run until cancelled."""
    path = folder / FILE_NAME
    saved: dict[str, Any] | None = None
    while True:
        changed = directory.next_change()
        document = directory.to_dict()
        if directory.live and document != saved:
            try:
                await asyncio.to_thread(write_atomically, path, document)
                saved = document
            except OSError as error:
                log.warning("routes_not_saved", extra={"path": str(path), "reason": str(error)})
        await changed.wait()
        await asyncio.sleep(SETTLE_SECONDS)
