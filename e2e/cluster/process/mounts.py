"""Where a container's paths really are: mount paths rewritten in its arguments and environment."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PATHS_OF_OTHER_PODS: Final = frozenset(
    {"TRIMTAB_POD_DEFAULTS", "TRIMTAB_SOURCES", "TRIMTAB_FINGERPRINT_SPEC"}
)
"""Variables that speak of the paths of pods yet to be made: rewriting them would misplace those."""

_INSIDE_A_PATH: Final = r"A-Za-z0-9._\-"


def rewriter(mounts: Mapping[str, Path]) -> re.Pattern[str] | None:
    """Return the pattern that finds any of the mount paths where a path begins, longest first."""
    found = sorted((path.rstrip("/") for path in mounts), key=len, reverse=True)
    if not any(found):
        return None
    choice = "|".join(re.escape(path) for path in found if path)
    return re.compile(f"(?<![{_INSIDE_A_PATH}/])({choice})(?![{_INSIDE_A_PATH}])")


def localise(text: str, *, mounts: Mapping[str, Path]) -> str:
    """Return `text` with every mount path replaced by the local path that stands for it.

    A mount path counts where a path can begin (not inside a longer path or a URL) and only as whole
    components: `/model` leaves `/models` alone.
    """
    pattern = rewriter(mounts)
    if pattern is None:
        return text
    local = {path.rstrip("/"): str(target) for path, target in mounts.items()}
    return pattern.sub(lambda match: local[match[1]], text)
