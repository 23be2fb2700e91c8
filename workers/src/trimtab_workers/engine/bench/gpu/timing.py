"""Times work on a GPU by events; the host's clock would count launches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab_workers.engine.bench.gpu.roofline import Spread

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.engine.device import CudaDevice, Stream

REPEATS = 7
_WARM_UPS = 2


def timed(
    device: CudaDevice,
    work: Callable[[], object],
    *,
    repeats: int = REPEATS,
    stream: Stream | None = None,
    inner: int = 1,
) -> Spread:
    """Return seconds of one call of `work`, launched `inner` times between two events.

    Args:
        device: Idle before each sample.
        work: Launches on `stream`, or on the current one.
        repeats: Samples that count; two more before them warm up.
        stream: Where the events are recorded.
        inner: Above 1 where one call is too short for an event's half microsecond.
    """
    place = stream if stream is not None else device.current_stream()
    seconds = []
    for turn in range(_WARM_UPS + repeats):
        began, ended = device.new_event(), device.new_event()
        device.synchronize()
        place.record_event(began)
        for _ in range(inner):
            work()
        place.record_event(ended)
        ended.synchronize()
        if turn >= _WARM_UPS:
            seconds.append(began.elapsed_time(ended) / 1e3 / inner)
    return Spread.of(seconds)
