"""Turns what nobody expected into an error of one model, so that the other models go on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trimtab_workers.engine.errors import EngineError, UnexpectedError

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


def attempt(work: Callable[[], object], *, what: str) -> EngineError | None:
    """Do something and return what went wrong, None if nothing did.

    Args:
        work: What to do.
        what: Subject of the sentence that is returned, as "Model m: its removal".
    """
    try:
        work()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of the Rust tokenizer is no Exception
        return explain(error, what=what)
    return None


def explain(error: BaseException, *, what: str) -> EngineError:
    """Return an error that a model or a request can be ended with; see `attempt`."""
    if isinstance(error, EngineError):
        return error
    log.error("unexpected_error", exc_info=error, extra={"what": what})
    return UnexpectedError(
        f"{what} failed ({type(error).__name__}: {error}). This is a bug; please report it with the "
        "worker's log."
    )


def without_frames(error: EngineError) -> EngineError:
    """Drop what an error that is kept would keep alive: the frames it passed and their tensors."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
