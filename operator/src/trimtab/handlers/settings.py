"""kopf's settings, each of them for a reason given in operator.md section 4."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Final

import kopf

from trimtab.api.v1alpha1.names import FINALIZER, GROUP
from trimtab.kube.resources import CHILDREN, POD
from trimtab.reconcile.auditing import SELECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST_BACKOFFS: Final = (1, 1, 2, 3, 5, 8, 13, 21)
_REST_SECONDS: Final = 30.0
_SPREAD: Final = 0.2


class Backoffs:
    """Delays of repeated requests, spread by 20 %, up to a total; can be iterated many times.

    A roll-out of API servers takes minutes; a process that ends earlier only comes back to the
    same servers, at the same time as everybody else.
    """

    def __init__(self, *, total_seconds: float, seed: int | None = None) -> None:
        self._total = total_seconds
        self._random = random.Random(seed)  # noqa: S311 - spreads retries, guards nothing

    def __iter__(self) -> Iterator[float]:
        left = self._total
        step = 0
        while left > 0:
            plain = FIRST_BACKOFFS[step] if step < len(FIRST_BACKOFFS) else _REST_SECONDS
            step += 1
            left -= plain
            yield plain * self._random.uniform(1 - _SPREAD, 1 + _SPREAD)


def configure(settings: kopf.OperatorSettings, *, network_error_seconds: float) -> None:
    """Set everything that differs from kopf's defaults, or must not change with them."""
    settings.peering.standalone = True
    settings.posting.level = logging.WARNING
    settings.posting.loggers = False
    settings.persistence.finalizer = FINALIZER
    # Changing these after a release would run every handler again.
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = Backoffs(total_seconds=network_error_seconds)
    settings.watching.chunk_size = 500
    settings.watching.initial_streaming = False
    settings.watching.inactivity_timeout = 70.0
    settings.queueing.worker_limit = None
    settings.scanning.disabled = False
    settings.background.cancellation_polling = 2
    for resource in (*CHILDREN, POD):
        settings.watching.label_selectors[resource.group, resource.version, resource.plural] = (
            SELECTOR
        )
