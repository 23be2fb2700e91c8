"""Played pods: they say at once what an inspection, a fingerprint or a worker would say, and do nothing.

`python played.py inspect|fingerprint|worker`, run by a stand-in node instead of the real modules, so that
a scenario about the operator takes seconds. Everything they report is made up, and named so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CPU = "Played CPU"
SUBSTITUTES = {
    "trimtab_workers.fingerprint.inspect": "inspect",
    "trimtab_workers.fingerprint": "fingerprint",
    "trimtab_workers.server": "worker",
}


def substitutes() -> dict[str, list[str]]:
    """Return which modules are played, for a stand-in node's `--substitutes`."""
    return {module: ["python", __file__, role] for module, role in SUBSTITUTES.items()}


def inspect(path: str) -> dict[str, object]:
    """Return contracts §3's message for SmolLM2-135M, or the refusal that a file `refusal` asks for.

    Its first line is a reason if it is one word; without that the model is corrupt.
    """
    refusal = Path(path) / "refusal"
    if refusal.exists():
        first, _, rest = refusal.read_text().partition("\n")
        reason, message = (first, rest) if rest and " " not in first else ("ModelCorrupt", first)
        return {"v": 1, "ok": False, "reason": reason, "message": message}
    architecture = {
        "family": "llama", "hidden_size": 576, "intermediate_size": 1536, "attention_heads": 9,
        "kv_heads": 3, "head_dim": 64, "vocab_size": 49152, "tied_embeddings": True,
    }  # fmt: skip
    return {
        "v": 1, "ok": True, "family": "llama", "architecture": architecture, "depth": 30,
        "precision": "bf16", "quantization": None, "format": "safetensors", "parameters": 134515008,
        "weightBytes": 269030016, "contextLength": 2048, "chatTemplate": True, "source": "played",
        "cpuModel": CPU, "cpus": 2,
    }  # fmt: skip


def fingerprint(spec: dict) -> dict[str, object]:
    """Return contracts §4's document with made-up times: 1 ms per layer and a little per token."""
    from trimtab.planning.architecture import Architecture, architecture_hash

    speed = 0.6 if spec["precision"] == "bf16" else 1.0
    speed /= max(1, int(spec["threads"])) ** 0.7

    def times(tokens: int, context: int) -> list[int]:
        layer = speed * (700 + 60 * tokens + 0.05 * context * tokens)
        fixed = speed * (2000 + 90 * min(tokens, 64))
        return [int(fixed + layer), 10, int(fixed + 2 * layer), 10, 20]

    decode = [[b, c, *times(b, c)] for b in (1, 2, 4, 8, 16, 32) for c in (128, 512, 1024)]
    prefill = [[n, c, *times(n, c)] for n in (32, 128, 512) for c in (0, 512)]
    memory = [[depth, 60_000_000 + depth * 7_000_000, 50_000_000, 0, 0] for depth in (1, 2)]
    return {
        "v": 1,
        "key": {
            "architecture": architecture_hash(Architecture.from_dict(spec["architecture"])),
            "layerKind": "full", "product": spec["product"], "cpuModel": CPU,
            "threads": spec["threads"], "precision": spec["precision"],
            "kvPrecision": spec["kvPrecision"], "tensorParallelSize": 1, "engine": "trimtab",
            "engineVersion": "played", "flags": [],
        },
        "source": "Measured", "tpMode": "Real", "depths": [1, 2], "decode": decode,
        "prefill": prefill, "mixed": [], "memory": memory, "collective": [], "notes": [],
        "gpuSeconds": 1, "taken": "2026-01-01T00:00:00Z",
    }  # fmt: skip


def report(message: dict[str, object]) -> None:
    """Leave a message where the kubelet looks for it."""
    path = os.environ.get("TRIMTAB_TERMINATION_LOG", "/dev/termination-log")
    Path(path).write_text(json.dumps(message, separators=(",", ":")))


def state(text: str) -> dict[str, object]:
    """Return contracts §6's state: every model of the set is resident."""
    document = json.loads(text)
    models = [
        {"name": m["name"], "state": "Resident", "error": None, "running": 0, "waiting": 0}
        for m in document["models"]
    ]
    return {
        "v": 1, "revision": document["revision"], "draining": False,
        "engine_version": "played", "models": models, "errors": [], "advice": None,
        "slabs": {"free": 10, "weights": 10, "kv": 10}, "windows": {},
        "kv": {"capacity_tokens": 4096, "used_tokens": 0},
    }  # fmt: skip


def worker(config: Path) -> None:
    """Answer every probe and say that all models of the set are resident, until SIGTERM.

    The set is what was there at the start and at each reload, as in a real worker.
    """
    seen = [config.read_text()]

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            if self.command == "POST":
                seen[0] = config.read_text()
            body = json.dumps(state(seen[0])).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _answer  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    address = os.environ.get("TRIMTAB_BIND_ADDRESS", "127.0.0.1")
    for port in (8000, 8001, 8002):
        server = ThreadingHTTPServer((address, port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        time.sleep(3600)


def main() -> None:
    """Play one part."""
    role, *rest = sys.argv[1:]
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", default="")
    parser.add_argument("--config", type=Path)
    arguments, _ = parser.parse_known_args(rest)
    if role == "inspect":
        report(inspect(arguments.path))
    elif role == "fingerprint":
        report(fingerprint(json.loads(os.environ["TRIMTAB_FINGERPRINT_SPEC"])))
    else:
        worker(arguments.config)


if __name__ == "__main__":
    main()
