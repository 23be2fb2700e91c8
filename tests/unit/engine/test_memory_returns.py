"""A model's memory goes back to the system when the model goes (vllm #47654, #21624)."""

import gc
import json
import subprocess
import sys
from pathlib import Path

from tests.unit.engine.builders import TINY, submit
from tests.unit.engine.test_remap import ask, reload, settle, tenants
from trimtab_workers.engine.engine import Engine

MEDIUM = TINY | {
    "num_hidden_layers": 6,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "head_dim": 64,
    "intermediate_size": 1024,
    "vocab_size": 8192,
}


def resident_bytes() -> int:
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def serve_and_remove(engine: Engine) -> int:
    """Add model b, let it answer, remove it; return the most bytes that the process had."""
    reload(engine, "ab", hf_config=MEDIUM)
    answer = submit(engine, ask("b", "r", 20, max_tokens=2))
    settle(engine)
    assert len(answer.tokens) == 2
    most = resident_bytes()
    reload(engine, "a", hf_config=MEDIUM)
    engine.step()
    assert [model["name"] for model in engine.state()["models"]] == ["a"]
    return most


def measured() -> dict[str, list[int]]:
    """Add and remove a model twice; return the bytes beyond the start with it and after it."""
    engine = tenants("a", hf_config=MEDIUM, kv_slabs=14, pressure="remap-idle", max_model_len=64)
    a = engine.tenant("a")
    copy_bytes = a.unit_bytes * len(a.homes)
    before = resident_bytes()
    most, left = [], []
    for _ in range(2):
        most.append(serve_and_remove(engine) - before)
        left.append(resident_bytes() - before)
    return {"sizes": [copy_bytes, copy_bytes + a.fixed_bytes], "most": most, "left": left}


def test_memory_after_removal_is_that_before():
    """A model of 50 MB, added and removed twice, leaves less than a third of itself each time."""
    # In a process of its own: what earlier tests freed would go back to the system in between.
    code = f"import json; from {__name__} import measured; print(json.dumps(measured()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    copy_bytes, model_bytes = found["sizes"]
    assert model_bytes > 50e6
    assert min(found["most"]) > 0.8 * copy_bytes
    assert max(found["left"]) < model_bytes / 3
