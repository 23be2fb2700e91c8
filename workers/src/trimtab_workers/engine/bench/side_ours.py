"""This engine as a side of a comparison (see `sides`): `load`, then `answer` or `replay`."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from trimtab_workers.engine.bench.sides import REPLY_FD
from trimtab_workers.engine.bench.throughput import EngineWay
from trimtab_workers.engine.capabilities import ENGINE_VERSION


class Ours:
    """The commands; each returns what is answered."""

    def __init__(self) -> None:
        self._way: EngineWay | None = None

    def load(self, **settings: Any) -> dict[str, Any]:
        """Load a model: model, dtype, threads, context, seqs."""
        model = Path(settings.pop("model"))
        self._way = EngineWay(model, **settings)
        shape = self._way.engine.tenant("bench").shape
        return {"vocab": shape.vocab, "version": ENGINE_VERSION}

    def answer(self, *, prompts: list[list[int]], output: int) -> dict[str, Any]:
        """Answer all prompts at once; seconds are from submission to the last token."""
        if self._way is None:
            raise ValueError("answer before load; send load first.")
        began = time.perf_counter()
        answers = self._way.answer(prompts, output)
        return {"seconds": time.perf_counter() - began, "answers": answers}


def main() -> int:
    """Serve commands until standard input ends."""
    side = Ours()
    with os.fdopen(int(os.environ[REPLY_FD]), "w", encoding="utf-8") as replies:
        for line in sys.stdin:
            request = json.loads(line)
            command = getattr(side, request.pop("do"))
            try:
                reply = command(**request)
            except Exception as error:  # noqa: BLE001 - told to the other end, which ends the run
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {error}"}
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
