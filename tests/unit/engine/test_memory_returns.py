"""A model's memory goes back to the system when the model goes (vllm #47654, #21624)."""

import gc
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


def test_memory_after_removal_is_that_before():
    """A model of 50 MB, added and removed twice, leaves less than a third of itself each time."""
    engine = tenants("a", hf_config=MEDIUM, kv_slabs=14, pressure="remap-idle", max_model_len=64)
    a = engine.tenant("a")
    copy_bytes = a.unit_bytes * len(a.homes)
    model_bytes = copy_bytes + a.fixed_bytes
    assert model_bytes > 50e6
    before = resident_bytes()
    for _ in range(2):
        assert serve_and_remove(engine) - before > 0.8 * copy_bytes
        assert resident_bytes() - before < model_bytes / 3
