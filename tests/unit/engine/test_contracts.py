"""What others rely on: metric names, the state document, light imports, the model set's fields."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.engine.builders import an_engine
from trimtab_workers.engine.config import parse_config
from trimtab_workers.engine.errors import ConfigError
from trimtab_workers.engine.metrics import EngineMetrics

NAMES = {
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:time_per_output_token_seconds": "histogram",
    "vllm:request_time_per_output_token_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_prefill_time_seconds": "histogram",
    "vllm:request_decode_time_seconds": "histogram",
    "vllm:request_inference_time_seconds": "histogram",
    "vllm:request_prompt_tokens": "histogram",
    "vllm:request_generation_tokens": "histogram",
    "vllm:request_params_max_tokens": "histogram",
    "vllm:request_params_n": "histogram",
    "vllm:iteration_tokens_total": "histogram",
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:num_requests_waiting_by_reason": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:gpu_cache_usage_perc": "gauge",
    "vllm:cache_config_info": "gauge",
    "vllm:num_preemptions": "counter",
    "vllm:prompt_tokens": "counter",
    "vllm:generation_tokens": "counter",
    "vllm:request_success": "counter",
    "vllm:prefix_cache_queries": "counter",
    "vllm:prefix_cache_hits": "counter",
    "vllm:external_prefix_cache_queries": "counter",
    "vllm:external_prefix_cache_hits": "counter",
    "trimtab_engine_arena_bytes": "gauge",
    "trimtab_engine_layers": "gauge",
    "trimtab_engine_kv_capacity_tokens": "gauge",
    "trimtab_engine_kv_reachable_tokens": "gauge",
    "trimtab_engine_model_state": "gauge",
    "trimtab_engine_step_seconds": "histogram",
    "trimtab_engine_recomputed_tokens": "counter",
    "trimtab_engine_config_errors": "counter",
    "trimtab_engine_decode_only_steps": "counter",
    "trimtab_engine_decode_only_seconds": "counter",
    "trimtab_engine_decode_only_sequences": "counter",
    "trimtab_engine_decode_only_context_tokens": "counter",
}


def test_metric_names_and_kinds():
    """The registry holds exactly the names and kinds of the design's table."""
    assert {m.name: m.type for m in EngineMetrics().registry.collect()} == NAMES


def test_state_document():
    """The state document has contracts §6's keys and is JSON."""
    state = json.loads(json.dumps(an_engine().state()))
    assert state.keys() >= {
        "v",
        "revision",
        "draining",
        "engine_version",
        "capabilities",
        "models",
        "slabs",
        "kv",
        "advice",
        "errors",
        "windows",
    }
    assert state["slabs"].keys() == {"free", "weights", "kv"}
    assert state["kv"].keys() == {"capacity_tokens", "used_tokens"}
    assert state["models"][0].keys() >= {"name", "state", "error", "running", "waiting"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("engine.engine", ["pydantic", "typer", "structlog", "fastapi", "kopf", "kubernetes"]),
        ("engine.measure", ["pydantic", "typer", "structlog"]),
        ("engine.weights.inspect", ["pydantic", "torch", "gguf", "tokenizers"]),
        ("engine.capabilities", ["pydantic", "torch", "numpy"]),
        ("engine.types", ["pydantic", "torch", "numpy"]),
    ],
)
def test_imports_stay_light(module: str, absent: list[str]):
    """A module imports in an interpreter where what it must not need cannot be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r})); "
        f"import trimtab_workers.{module}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


GOOD = {"v": 1, "revision": 1, "models": [{"name": "m", "path": "a"}]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"v": 2}, "field v is 2"),
        ({"models": []}, "models is"),
        ({"models": [{"name": "m"}]}, r"models\[0\]\.path is None"),
        ({"models": [{"name": "m", "path": "/etc"}]}, r"models\[0\]\.path is '/etc'.*relative"),
        ({"models": [{"name": "m", "path": "a/../../b"}]}, "without '..'"),
        ({"models": [{"name": "m", "path": "a", "dtype": "fp4"}]}, "dtype is 'fp4'.*bf16"),
        ({"models": [{"name": "m", "path": "a"}] * 2}, "names 'm' twice"),
        ({"models": [{"name": "m", "path": "a", "quant": 1}]}, "unknown field 'quant'"),
        ({"device": "cuda"}, "device is 'cuda'"),
        ({"threads": 0}, "threads is 0"),
        ({"max_batch_tokens": True}, "max_batch_tokens is True"),
        ({"max_seqs": 65, "max_batch_tokens": 64}, "max_seqs is 65, more .* of 64.*Lower max_seqs"),
        ({"pressure": "remap"}, "pressure is 'remap'"),
        ({"limits": {"alpha": 1}}, "unknown field 'alpha'"),
        ({"extra": 1}, "unknown field 'extra'"),
    ],
)
def test_bad_model_sets(change: dict, words: str):
    """Every wrong field of a model set is named with its value."""
    with pytest.raises(ConfigError, match=words):
        parse_config(GOOD | change, model_root=Path("/models"))


def test_contract_example():
    """The example of contracts §5 is read."""
    config = parse_config(
        {
            "v": 1,
            "revision": 1,
            "device": "cpu",
            "threads": 1,
            "memory_bytes": 402653184,
            "max_model_len": 2048,
            "max_batch_tokens": 512,
            "max_seqs": 32,
            "pressure": "recompute",
            "limits": {"min_resident_units": 2, "active_cap": 0.25},
            "advice": None,
            "models": [
                {"name": "team-a/chat", "path": "m0/x.gguf", "dtype": "bf16", "chat_template": None}
            ],
        },
        model_root=Path("/models"),
    )
    assert config.models[0].path == Path("/models/m0/x.gguf")
    assert config.limits == {"min_resident_units": 2.0, "active_cap": 0.25}
