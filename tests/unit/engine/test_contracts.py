"""What others rely on: metric names, the state document, light imports, the model set's fields."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram

from tests.unit.engine.builders import an_engine
from trimtab_workers.engine.config import parse_config
from trimtab_workers.engine.errors import ConfigError
from trimtab_workers.engine.metrics import EngineMetrics

METRICS = Path(__file__).with_name("metrics.json")


def _described(registry: CollectorRegistry) -> dict[str, dict]:
    """Return kind, labels and buckets of every collector, as `metrics.json` has them."""
    found = {}
    for collector in dict.fromkeys(registry._names_to_collectors.values()):
        entry = {"kind": collector._type, "labels": list(collector._labelnames)}
        if isinstance(collector, Histogram):
            entry["buckets"] = [bound for bound in collector._kwargs["buckets"] if bound < math.inf]
        found[collector._name] = entry
    return found


def test_metric_names_kinds_labels_and_buckets():
    """The registry holds exactly the checked-in list, which dashboards and autoscalers rely on.

    After a wanted change: `TRIMTAB_WRITE_GOLDEN=1 pytest tests/unit/engine/test_contracts.py`.
    """
    described = _described(EngineMetrics().registry)
    if os.environ.get("TRIMTAB_WRITE_GOLDEN"):
        rows = (f" {json.dumps(name)}: {json.dumps(described[name])}" for name in sorted(described))
        METRICS.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    assert described == json.loads(METRICS.read_text())


TABLE = """
H time_to_first_token_seconds inter_token_latency_seconds time_per_output_token_seconds
H request_time_per_output_token_seconds e2e_request_latency_seconds request_queue_time_seconds
H request_prefill_time_seconds request_decode_time_seconds request_inference_time_seconds
H request_prompt_tokens request_generation_tokens request_params_max_tokens request_params_n
H iteration_tokens_total
G num_requests_running num_requests_waiting num_requests_waiting_by_reason{reason}
G kv_cache_usage_perc gpu_cache_usage_perc
G cache_config_info{block_size,num_gpu_blocks,slab_bytes,pressure}
C num_preemptions prompt_tokens generation_tokens request_success{finished_reason}
C prefix_cache_queries prefix_cache_hits external_prefix_cache_queries external_prefix_cache_hits
"""


def test_every_row_of_the_designs_table_is_there():
    """engine.md's table under vLLM's names, old ones included, each with vLLM's two labels."""
    golden = json.loads(METRICS.read_text())
    kinds = {"H": "histogram", "G": "gauge", "C": "counter"}
    for line in TABLE.split("\n")[1:-1]:
        kind, *names = line.split()
        for name, labels in ((n.rstrip("}") + "{").split("{")[:2] for n in names):
            found = golden[f"vllm:{name}"]
            assert found["kind"] == kinds[kind], name
            assert found["labels"] == ["model_name", "engine", *filter(None, labels.split(","))]


@pytest.mark.parametrize(
    ("names", "buckets"),
    [
        (
            ("time_to_first_token_seconds",),
            ".001 .005 .01 .02 .04 .06 .08 .1 .25 .5 .75 1 2.5 5 7.5 10 20 40 80 160 640 2560",
        ),
        (
            (
                "inter_token_latency_seconds",
                "time_per_output_token_seconds",
                "request_time_per_output_token_seconds",
            ),
            ".01 .025 .05 .075 .1 .15 .2 .3 .4 .5 .75 1 2.5 5 7.5 10 20 40 80",
        ),
        (
            (
                "e2e_request_latency_seconds",
                "request_queue_time_seconds",
                "request_prefill_time_seconds",
                "request_decode_time_seconds",
                "request_inference_time_seconds",
            ),
            ".3 .5 .8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680",
        ),
    ],
)
def test_buckets_are_vllms(names: tuple[str, ...], buckets: str):
    """Latencies fall into vLLM's buckets, so that its dashboards show them unchanged."""
    golden = json.loads(METRICS.read_text())
    for name in names:
        assert golden[f"vllm:{name}"]["buckets"] == [float(bound) for bound in buckets.split()]


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
    assert state["kv"].keys() >= {"capacity_tokens", "used_tokens"}
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
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": "cuda:"}, "device is 'cuda:'"),
        ({"device": 0}, "device is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"max_batch_tokens": True}, "max_batch_tokens is True"),
        ({"max_seqs": 65, "max_batch_tokens": 64}, "max_seqs is 65, more .* of 64.*Lower max_seqs"),
        ({"pressure": "static:"}, "pressure is 'static:'"),
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
