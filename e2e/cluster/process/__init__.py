"""A stand-in node: runs Trimtab's pods as local processes, without root and without containers.

It is a stand-in for a kubelet and is called so everywhere it shows itself. Nothing is isolated and
nothing limits CPU or memory. Linux only: it needs /proc, pidfds and the whole of 127.0.0.0/8.
"""

from e2e.cluster.process.sweeping import sweep

__all__ = ["helm_values", "sweep"]


def helm_values() -> dict[str, object]:
    """Return the chart values that a cluster with a stand-in node needs beyond the cluster's own."""
    return {}
