"""`python -m trimtab_workers.engine.parallel.follower FD`: a rank that executes and decides nothing.

Started by rank 0, with one end of a pair of sockets as its only argument. When rank 0 has gone, so
has this: its thread that reads the socket ends the process, whatever the others wait for.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from trimtab_workers.engine.parallel.channel import Channel
from trimtab_workers.engine.parallel.wire import (
    Frame,
    Kind,
    document,
    of_document,
    plan_of,
    read_slots,
    read_step,
)
from trimtab_workers.web import logs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab_workers.engine.parallel.following import Following

log = logging.getLogger("trimtab_workers.engine.parallel.follower")

HELLO_SECONDS = 60.0


def _orphaned() -> None:
    log.warning("rank_0_ended", extra={"pid": os.getpid()})
    os._exit(1)


def main(argv: Sequence[str] | None = None) -> int:
    """Follow rank 0 until it says stop; any failure ends this process, and so the group."""
    (descriptor,) = sys.argv[1:] if argv is None else argv
    logs.configure()
    # The kernel and terminals signal whole process groups; rank 0 drains and then says stop.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(descriptor)), on_end=_orphaned)
    hello = document(channel.receive(HELLO_SECONDS))
    try:
        ranks = _join(channel, hello)
        _follow(channel, ranks)
    except Exception:
        log.exception("follower_failed", extra={"rank": hello["rank"]})
        return 1
    channel.close()
    ranks.close()
    return 0


def _join(channel: Channel, hello: dict[str, Any]) -> Following:
    from trimtab_workers.engine.engine import Engine  # noqa: PLC0415 - torch takes seconds
    from trimtab_workers.engine.parallel.following import Following  # noqa: PLC0415 - torch
    from trimtab_workers.engine.parallel.member import config_of  # noqa: PLC0415 - torch

    config = config_of(hello["config"])
    ranks = Following(channel, hello, device=config.device)
    # Its models, arena and caches are made by the same code as rank 0's; the runners keep them.
    Engine(config, ranks=ranks).load()
    return ranks


def _follow(channel: Channel, ranks: Following) -> None:
    while True:
        frame = channel.receive()
        if frame.kind is Kind.STOP:
            return
        if frame.kind is Kind.STEP:
            step = read_step(frame)
            runner = ranks.runners[step.model]
            runner.layers = step.layers
            runner.rank_logits(plan_of(step))
            checksum = ranks.checksum(frame.body).to_bytes(4, "little")
            channel.send(Frame(Kind.DONE, frame.number, checksum))
        elif frame.kind is Kind.CLEAR:
            model, slots = read_slots(frame)
            ranks.runners[model].clear_slots(slots)
        elif frame.kind is Kind.EMPTY_CACHES:
            ranks.empty_caches(document(frame)["bytes"])
            channel.send(of_document(Kind.DONE, {}))
        else:
            raise ValueError(
                f"Rank 0 sent {frame.kind.name} between steps; this is a bug, report it."
            )


if __name__ == "__main__":
    # NB: not `sys.exit`, which would wait for threads of torch.distributed whose peers have gone.
    status = main()
    logging.shutdown()
    os._exit(status)
