"""The fingerprint Job: ``python -m trimtab_workers.fingerprint``, specification in the environment.

Measures the 1- and (1+d)-layer versions of an architecture in the engine and writes the document to
``TRIMTAB_TERMINATION_LOG``; a failure writes its reason there and exits with 1.
"""

from __future__ import annotations

import json
import os

from trimtab.planning.fingerprint import dump
from trimtab_workers.fingerprint import machine
from trimtab_workers.fingerprint.job import Specification, SpecificationError, fingerprint


def main() -> int:
    """Measure what ``TRIMTAB_FINGERPRINT_SPEC`` asks for."""
    try:
        spec = Specification.parse(os.environ.get("TRIMTAB_FINGERPRINT_SPEC", ""))
        machine.log(
            "fingerprint_started",
            cpu_model=machine.cpu_model(),
            cpus=machine.cpus(),
            threads=spec.threads,
            precision=spec.precision,
            points=len(spec.points),
            max_seconds=spec.max_seconds,
            cache_bytes=machine.cache_bytes(),
        )
        document = dump(fingerprint(spec))
    except SpecificationError as error:
        return _failed(error.reason, str(error))
    except Exception as error:  # noqa: BLE001 - whatever ends the Job, its message says so
        return _failed("MeasuringFailed", f"{type(error).__name__}: {error}")
    machine.report(document)
    return 0


def _failed(reason: str, message: str) -> int:
    machine.log("fingerprint_failed", level="error", reason=reason, message=message)
    machine.report(json.dumps({"v": 1, "ok": False, "reason": reason, "message": message[:3000]}))
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
