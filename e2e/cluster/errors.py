"""What a caller of the test cluster can do something about."""

from __future__ import annotations


class ClusterError(RuntimeError):
    """A cluster could not be started, used or removed; the message names the remedy."""


class LevelUnavailableError(ClusterError):
    """This machine cannot start a level; the message names exactly what is missing."""


class BuildError(ClusterError):
    """A component could not be built from its Go module; the message holds the compiler's last lines."""
