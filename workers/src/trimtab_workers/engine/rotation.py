"""Which of several models with work takes the next step: deficit round robin over seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST_QUANTUM_SECONDS = 1e-3
_SMOOTHING = 0.1


class Rotation:
    """Gives models equal seconds, whatever their steps cost.

    A turn adds one quantum (the mean step) to a model's credit and lasts while credit is left; a
    model in debt is passed over until its turns have paid. A model without work has no account.
    """

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}
        self._last: str | None = None
        self._stays = False
        self._quantum = _LEAST_QUANTUM_SECONDS

    def next(self, ready: Sequence[str]) -> str | None:
        """Return the model whose turn it is, None if none is ready.

        Args:
            ready: Names of models that could step now, always in the same order.
        """
        if not ready:
            return None
        self._credit = {name: self._credit.get(name, 0.0) for name in ready}
        if self._stays and self._last in self._credit and self._credit[self._last] > 0:
            return self._last
        at = ready.index(self._last) if self._last in self._credit else -1
        while True:
            at = (at + 1) % len(ready)
            name = ready[at]
            self._credit[name] = min(self._quantum, self._credit[name] + self._quantum)
            if self._credit[name] > 0:
                self._last = name
                return name

    def charge(self, name: str, seconds: float) -> None:
        """Subtract what a step cost."""
        self._quantum += _SMOOTHING * (seconds - self._quantum)
        self._quantum = max(self._quantum, _LEAST_QUANTUM_SECONDS)
        self._stays = seconds > 0  # a virtual clock may stand still; turns go round all the same
        self._credit[name] = self._credit.get(name, 0.0) - seconds
