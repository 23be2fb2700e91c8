"""What a client hears of a function that raised, and what the log does."""

from __future__ import annotations

import contextlib
import json
import sys

_LONGEST = 2000


def reported(error: BaseException) -> bytes:
    """Write the traceback to stderr; return the body of the answer, which has none of it."""
    import traceback  # noqa: PLC0415 - only for those that fail

    with contextlib.suppress(Exception):  # it is the function's, which may have closed it
        traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()
    document = {
        "error": "FunctionFailed",
        "message": f"{type(error).__name__}: {error}"[:_LONGEST],
        "remedy": "The function's log has the traceback.",
    }
    return json.dumps(document).encode()
