"""The accuracy Job: what precisions of fewer bits lose on a fixed text (planner.md §8, "decision").

``python -m trimtab_workers.fingerprint.accuracy --path DIR_OR_FILE --precision P…`` loads the whole
model at the checkpoint's own precision and then at each of the others, and writes what they lose to
``TRIMTAB_TERMINATION_LOG``; a failure writes its reason there and exits with 1.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.planning.accuracy import TEXT_DIGEST, AccuracyKey, AccuracyLoss, dump
from trimtab_workers.engine.capabilities import CAPABILITIES, ENGINE_VERSION
from trimtab_workers.engine.errors import CheckpointError
from trimtab_workers.engine.scoring_text import TEXT
from trimtab_workers.engine.weights.inspect import inspect_checkpoint
from trimtab_workers.fingerprint import machine
from trimtab_workers.fingerprint.job import ENGINE, SpecificationError
from trimtab_workers.termination import fitting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trimtab_workers.engine.scoring import Scores


def measure(
    path: Path,
    *,
    precisions: Sequence[str],
    threads: int,
    text: str,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[AccuracyLoss, ...]:
    """Return what each precision loses against the checkpoint's own.

    Args:
        path: GGUF file or directory.
        precisions: At least one; the checkpoint's own is left out.
        threads: To compute with.
        text: To foretell.
        clock: Seconds from an arbitrary start.

    Raises:
        EngineError: The model cannot be read, loaded or scored.
        SpecificationError: Only the checkpoint's own precision is asked for.
    """
    from trimtab_workers.engine.scoring import difference  # noqa: PLC0415 - torch

    found = inspect_checkpoint(path)
    others = [p for p in dict.fromkeys(precisions) if p != found.precision]
    if not others:
        raise SpecificationError(
            f"{path}: {', '.join(precisions)} is the checkpoint's own precision, which loses nothing "
            "against itself. Name another one with --precision."
        )
    own = _scores(path, precision=found.precision, threads=threads, text=text)
    key = AccuracyKey(
        model=found.source[:32],
        own=found.precision,
        engine=ENGINE,
        engine_version=ENGINE_VERSION,
        text=hashlib.sha256(text.encode()).hexdigest()[: len(TEXT_DIGEST)],
    )
    taken = machine.now()
    losses = []
    for precision in others:
        began = clock()
        apart = difference(_scores(path, precision=precision, threads=threads, text=text), own)
        losses.append(
            AccuracyLoss(
                key=key,
                precision=precision,
                tokens=len(own.nats),
                own_micronats=round(1e6 * own.mean_nats),
                difference_micronats=round(1e6 * apart.nats),
                error_micronats=round(1e6 * apart.error_nats),
                agreement_permille=round(1000 * apart.agreement),
                seconds=round(clock() - began),
                taken=taken,
            )
        )
        machine.log(
            "accuracy_measured",
            precision=precision,
            loss_percent=float(losses[-1].percent),
            error_percent=float(losses[-1].error_percent),
            seconds=losses[-1].seconds,
        )
    return tuple(losses)


def _scores(path: Path, *, precision: str, threads: int, text: str) -> Scores:
    from trimtab_workers.engine.scoring import load, score  # noqa: PLC0415 - torch

    engine = load(path, precision=precision, threads=threads)
    scores = score(engine, text)
    engine.stop()
    del engine
    # Two copies of the weights at once would double what the Job needs.
    gc.collect()
    return scores


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", type=Path, required=True, help="a GGUF file or a directory")
    parser.add_argument(
        "--precision",
        action="append",
        required=True,
        choices=CAPABILITIES.precisions,
        help="may be repeated",
    )
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(argv)
    machine.log("accuracy_started", path=str(given.path), precisions=given.precision)
    try:
        document = dump(
            measure(given.path, precisions=given.precision, threads=given.threads, text=TEXT)
        )
    except (CheckpointError, SpecificationError) as error:
        return _failed(error.reason, str(error))
    except Exception as error:  # noqa: BLE001 - whatever ends the Job, its message says so
        return _failed("MeasuringFailed", f"{type(error).__name__}: {error}")
    machine.report(document)
    return 0


def _failed(reason: str, message: str) -> int:
    machine.log("accuracy_failed", level="error", reason=reason, message=message)
    machine.report(fitting({"v": 1, "ok": False, "reason": reason, "message": message}))
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
