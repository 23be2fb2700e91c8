"""This engine as a side of a comparison (see `sides`): `load` and `answer`, or `serve` and `replay`."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from trimtab_workers.engine.bench.arrivals import Arrival
from trimtab_workers.engine.bench.replay import counters, difference, replay
from trimtab_workers.engine.bench.sides import REPLY_FD
from trimtab_workers.engine.bench.throughput import EngineWay
from trimtab_workers.engine.capabilities import ENGINE_VERSION
from trimtab_workers.engine.config import BLOCK_TOKENS, parse_config
from trimtab_workers.engine.engine import Engine


class Ours:
    """The commands; each returns what is answered."""

    def __init__(self) -> None:
        self._way: EngineWay | None = None
        self._engine: Engine | None = None

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

    # -- several models under one policy ---------------------------------------------------------

    def budget(self, *, model: str, dtype: str, tenants: int, kv_share: float) -> dict[str, Any]:
        """Return the bytes that hold so many models and, beside their slabs, a share of KV slabs."""
        way = EngineWay(Path(model), dtype=dtype, threads=1, context=64, seqs=1)
        tenant = way.engine.tenant("bench")
        weights = way.engine.state()["slabs"]["weights"]
        slab_bytes = way.engine.arena_bytes // sum(way.engine.state()["slabs"].values())
        home = round(kv_share * tenants * weights)
        unit = tenant.unit
        per_slab = slab_bytes // (unit.block_bytes * unit.layers)
        return {
            "memory_bytes": tenants * tenant.fixed_bytes + (tenants * weights + home) * slab_bytes,
            "slab_bytes": slab_bytes,
            "weight_slabs": tenants * weights,
            "kv_slabs": home,
            "kv_tokens": home * per_slab * BLOCK_TOKENS,
        }

    def serve(self, *, model: str, tenants: list[str], **settings: Any) -> dict[str, Any]:
        """Load one model several times, as a worker's model set says."""
        path = Path(model)
        dtype = settings.pop("dtype")
        document = settings | {
            "v": 1,
            "models": [{"name": name, "path": path.name, "dtype": dtype} for name in tenants],
        }
        config = parse_config(document, model_root=path.parent)
        self._engine = Engine(dataclasses.replace(config, prefix_caching=False))
        self._engine.load()
        for name in tenants:
            error = self._engine.tenant(name).error
            if error is not None:
                raise error
        state = self._engine.state()
        return {"version": ENGINE_VERSION, "slabs": state["slabs"], "kv": state["kv"]}

    def replay(self, *, arrivals: list[dict[str, Any]], start_seconds: float) -> dict[str, Any]:
        """Replay arrivals from a moment of the machine's monotonic clock on."""
        if self._engine is None:
            raise ValueError("replay before serve; send serve first.")
        before = counters(self._engine.registry)
        due = [Arrival(**arrival) for arrival in arrivals]
        answers = replay(self._engine, due, start_seconds=start_seconds)
        counted = difference(counters(self._engine.registry), before)
        return {"answers": [answer.to_dict() for answer in answers], "counted": counted}

    def settle(self, *, seconds: float) -> dict[str, Any]:
        """Step without work, so that what was lent goes home; at most so many seconds."""
        if self._engine is None:
            raise ValueError("settle before serve; send serve first.")
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            if not self._engine.step():
                time.sleep(0.01)
            owners = self._engine.state().get("slabs_by_owner", {})
            if not owners.get("kv_borrowed") and not owners.get("loading"):
                break
        return {"seconds": time.perf_counter() - began}


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
