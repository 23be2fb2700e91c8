"""The adapter to the catalogue of measured operators, with a catalogue of known times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.planning.architecture import Architecture, architecture_hash
from trimtab.planning.fingerprint import FingerprintInvalidError, parse
from trimtab.planning.step_model import fit
from trimtab_workers.fingerprint import catalogue
from trimtab_workers.fingerprint.catalogue import Catalogue, CatalogueError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
}
PYTHON = os.environ.get("TRIMTAB_CATALOGUE_PYTHON")


def layer_ms(batch, context, chunk, cached, *, ranks):
    work = chunk * (cached + chunk / 2)
    return (0.2 + 1e-3 * (batch + chunk) + 4e-7 * batch * context + 2e-7 * work) / ranks


class Known:
    """An engine whose layers take known times; it saw which configuration it was made from."""

    def __init__(self, folder, system, backend, *, tp_size, **modes):
        config = json.loads((Path(folder) / "config.json").read_text())
        if system == "nowhere":
            raise ValueError("no such system")
        if backend == "vllm" and modes["fmha_quant_mode"] == "fp8":
            raise KeyError("context attention data missing")
        self.depth, self.ranks = config["num_hidden_layers"], tp_size

    def predict_decode_latency(self, bs, isl, osl=2):
        return 0.7 + self.depth * layer_ms(bs, isl, 0, 0, ranks=self.ranks)

    def predict_prefill_latency(self, bs, isl, prefix=0):
        return 0.7 + self.depth * layer_ms(0, 0, isl - prefix, prefix, ranks=self.ranks)


KNOWN = Catalogue(compile_=Known, version_of=lambda *_: "9.9.9", package_version="0.12.0")


def a_question(**fields):
    return {
        "model": "example/model",
        "config": CONFIG,
        "system": "h100_sxm",
        "backend": "trtllm",
        "precision": "fp8",
        "kvPrecision": "fp8",
        "tensorParallelSize": 2,
    } | fields


def test_the_fingerprint_gives_back_the_operators_times():
    """From models of 1 and 2 layers follows the step of all 32, within rounding to 0.1 µs a layer."""
    answer = catalogue.answer(KNOWN, a_question())
    assert answer["ok"], answer
    found = parse(json.dumps(answer["fingerprint"]))
    shallow, deep = found.depths
    for point in (*found.decode, *found.prefill):
        where = (point.batch, point.context, point.chunk, point.cached)
        layer = (point.t2_us - point.t1_us) / (deep - shallow)
        assert layer == pytest.approx(1000 * layer_ms(*where, ranks=2), abs=0.11)
        assert point.t1_us - shallow * layer == pytest.approx(700, abs=0.7)
    assert answer["depth"] == 32
    assert fit(found, depth=32).residual < 0.01


def test_the_key_names_model_machine_engine_and_catalogue():
    """The key is of the full architecture, the engine's version is the catalogue's own."""
    answer = catalogue.answer(KNOWN, a_question())
    key = parse(json.dumps(answer["fingerprint"])).key
    assert key.architecture == architecture_hash(Architecture.from_hf_config(CONFIG))
    assert (key.product, key.engine, key.engine_version) == (
        "NVIDIA-H100-80GB-HBM3",
        "trtllm",
        "9.9.9",
    )
    assert (key.precision, key.kv_precision, key.tensor_parallel_size) == ("fp8", "fp8", 2)
    assert key.flags == ("attention=fp8", "catalogue=aiconfigurator-0.12.0")


def test_attention_falls_back_where_its_precision_was_not_measured():
    """Without fp8 attention for an engine bf16 is taken, and the key says so."""
    answer = catalogue.answer(KNOWN, a_question(backend="vllm"))
    assert "attention=bfloat16" in answer["fingerprint"]["key"]["flags"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"system": "nowhere"}, "no such system"),
        ({"precision": "fp3"}, "no precision fp3"),
        ({"kvPrecision": "int2"}, "a KV cache of int2"),
        ({"config": CONFIG | {"model_type": "mamba"}}, "model_type is 'mamba'"),
    ],
)
def test_what_the_catalogue_lacks_is_said(fields, words):
    """A refusal is one sentence that names what is missing; the other questions are answered."""
    answer = catalogue.answer(KNOWN, a_question(**fields))
    assert not answer["ok"]
    assert words in answer["message"]


def test_layers_are_cut_with_the_depth():
    """A configuration that lists its layers' kinds keeps as many as it has layers."""
    config = CONFIG | {"layer_types": ["full_attention"] * 32, "max_window_layers": 28}
    shallow = catalogue.cut(config, depth=2)
    assert shallow["num_hidden_layers"] == 2
    assert shallow["layer_types"] == ["full_attention"] * 2
    assert "max_window_layers" not in shallow
    assert config["num_hidden_layers"] == 32


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b"),
        ("nvidia/Qwen3-32B-NVFP4", "qwen3-32b"),
        ("Qwen/Qwen3-VL-32B-Instruct", "qwen3-vl-32b"),
    ],
)
def test_a_checkpoint_is_found_under_its_base_model(name, base):
    """Owner, tuning and precision are no part of an architecture's name; other words are."""
    assert catalogue.base_name(name) == base


def test_a_falling_catalogue_is_refused_when_fitted():
    """Operators that get faster with more work make no step model."""

    class Falling(Known):
        def predict_decode_latency(self, bs, isl, osl=2):
            return 5.0 / bs * self.depth

    fake = Catalogue(compile_=Falling, version_of=lambda *_: "1", package_version="0")
    found = parse(json.dumps(catalogue.answer(fake, a_question())["fingerprint"]))
    with pytest.raises(FingerprintInvalidError, match="time falls"):
        fit(found, depth=32)


def test_an_error_within_the_grid_is_a_refusal():
    """A package that fails on one point gives no half fingerprint."""

    class Gap(Known):
        def predict_prefill_latency(self, bs, isl, prefix=0):
            if prefix:
                raise RuntimeError("outside the table")
            return super().predict_prefill_latency(bs, isl, prefix)

    fake = Catalogue(compile_=Gap, version_of=lambda *_: "1", package_version="0")
    assert "outside the table" in catalogue.answer(fake, a_question())["message"]
    with pytest.raises(CatalogueError):
        fake.fingerprint(
            catalogue.Query(
                model="m",
                config=CONFIG,
                system="h100_sxm",
                backend="trtllm",
                precision="bf16",
                kv_precision="bf16",
                tensor_parallel_size=1,
            ),
            CONFIG,
        )


def test_without_the_package_the_process_says_so():
    """The process ends well and its answer names the package."""
    root = Path(__file__).resolve().parents[3]
    if PYTHON is None and _has_package():
        pytest.skip("aiconfigurator is installed here, so its absence cannot be seen")
    done = subprocess.run(
        [sys.executable, "-m", "trimtab_workers.fingerprint.catalogue"],
        input='{"v":1,"queries":[]}',
        env={"PYTHONPATH": f"{root / 'operator/src'}{os.pathsep}{root / 'workers/src'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    reply = json.loads(done.stdout)
    assert not reply["ok"]
    assert "aiconfigurator is not installed" in reply["message"]


def _has_package():
    import importlib.util

    return importlib.util.find_spec("aiconfigurator") is not None
