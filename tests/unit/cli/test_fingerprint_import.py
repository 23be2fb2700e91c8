"""`trimtab fingerprint import`, as a person runs it."""

import json
from dataclasses import replace

import pytest
import yaml
from typer.testing import CliRunner

from tests.unit.cli import profiles
from tests.unit.reconcile.builders import SETTINGS
from trimtab.cli import catalogue
from trimtab.cli.app import app
from trimtab.cli.catalogue import Answers, Estimated
from trimtab.observe.caches import Caches
from trimtab.planning.architecture import Architecture
from trimtab.planning.fingerprint import parse
from trimtab.planning.sources import best_for
from trimtab.planning.step_model import fit, work_of
from trimtab.reconcile.fingerprint_book import FINGERPRINT_KEY, FingerprintBook

CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
RUN = CliRunner()


def run(folder, out, *options, degree=1):
    fixed = ("--format=llmservingsim", f"--tensor-parallel={degree}", f"--out={out}")
    return RUN.invoke(app, ["fingerprint", "import", str(folder), *fixed, *options])


def imported(folder, out, *options, degree=1):
    done = run(folder, out, *options, degree=degree)
    assert done.exit_code == 0, done.output
    return parse(out.read_text())


@pytest.mark.parametrize("nested", [False, True])
def test_times_are_the_sum_of_the_operators(tmp_path, nested):
    """F is what runs once a step and h what runs once a layer, to a tenth of a microsecond."""
    found = imported(profiles.a_profile(tmp_path / "p", nested=nested), tmp_path / "fp.json")
    shallow, deep = found.depths
    for point in (*found.decode, *found.mixed):
        where = (point.chunk, point.cached, point.batch, point.context)
        layer = (point.t2_us - point.t1_us) / (deep - shallow)
        assert layer == pytest.approx(profiles.layer_us(*where), abs=0.11)
        sampled = point.batch + (1 if point.chunk else 0)
        fixed = profiles.fixed_us(point.tokens, sampled)
        assert point.t1_us - layer == pytest.approx(fixed, abs=0.7)


def test_the_whole_grid_is_kept(tmp_path):
    """Every attention point and every token count of the profile is there, past 4,096 bytes."""
    found = imported(profiles.a_profile(tmp_path / "p"), tmp_path / "fp.json")
    assert len(found.decode) == len(profiles.BATCHES) * len(profiles.KVS)
    assert len(found.mixed) == 2 * len(profiles.CHUNKS) * len(found.decode)
    chunks = {p.chunk for p in found.prefill if not p.cached}
    assert chunks == {*profiles.CHUNKS, *(t for t in profiles.TOKENS if t > profiles.CHUNKS[0])}
    assert (tmp_path / "fp.json").stat().st_size > 4096


def test_the_step_model_follows_the_grid(tmp_path):
    """A model of 32 layers is predicted within 3 % wherever only decoding or only a prompt runs."""
    found = imported(profiles.a_profile(tmp_path / "p"), tmp_path / "fp.json")
    model = fit(found, depth=32)
    for point in (*found.decode, *found.prefill):
        where = (point.chunk, point.cached, point.batch, point.context)
        sampled = point.batch + (1 if point.chunk else 0)
        truth = profiles.fixed_us(point.tokens, sampled) + 32 * profiles.layer_us(*where)
        assert model.step_us(work_of(point)) == pytest.approx(truth, rel=0.03)


def test_the_key_says_what_it_is_valid_for(tmp_path):
    """Product, engine version, precisions, and flags that say import, overhead and eager mode."""
    folder = profiles.a_profile(tmp_path / "p", meta={"variant": "fp8-kvfp8"})
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    found = imported(folder, tmp_path / "fp.json", f"--model-config={config}")
    key = found.key
    assert (key.product, key.engine, key.engine_version) == (
        "NVIDIA-Example-9000",
        "vllm",
        "0.19.0",
    )
    assert (key.precision, key.kv_precision) == ("fp8", "fp8")
    assert key.flags == ("eager", "imported=llmservingsim", "step-overhead-us=0")
    assert len(key.architecture) == 64
    bare = imported(folder, tmp_path / "bare.json").key
    assert bare == replace(key, architecture="")


def test_overhead_is_added_to_every_step_and_named(tmp_path):
    """A figure with a source lengthens each step by itself; without a source it is refused."""
    folder = profiles.a_profile(tmp_path / "p")
    plain = imported(folder, tmp_path / "a.json")
    options = ("--step-overhead-us=700", "--step-overhead-source=own engine on the same host")
    slower = imported(folder, tmp_path / "b.json", *options)
    pairs = zip((*plain.decode, *plain.mixed), (*slower.decode, *slower.mixed), strict=True)
    assert all(b.t1_us - a.t1_us == 700 and b.t2_us - a.t2_us == 700 for a, b in pairs)
    assert "step-overhead-source=own engine on the same host" in slower.key.flags
    refused = run(folder, tmp_path / "c.json", "--step-overhead-us=700")
    assert refused.exit_code == 1
    assert "without a source" in refused.output
    assert not (tmp_path / "c.json").exists()


def test_a_group_without_all_reduce_is_never_planned_on(tmp_path):
    """Sharded shapes alone warn and serve no plan; with a curve each layer pays two all-reduces."""
    folder = profiles.a_profile(tmp_path / "p", degree=2)
    config, curve = tmp_path / "config.json", tmp_path / "link.csv"
    config.write_text(json.dumps(CONFIG))
    curve.write_text("bytes,time_us\n1,30\n1000000000,30\n")
    options = (f"--model-config={config}",)
    done = run(folder, tmp_path / "a.json", *options, degree=2)
    assert "warning: no all-reduce" in done.output
    alone = parse((tmp_path / "a.json").read_text())
    assert alone.tp_mode == "Emulated"
    assert best_for(alone.key, [alone]) is None
    both = imported(folder, tmp_path / "b.json", *options, f"--all-reduce={curve}", degree=2)
    assert best_for(both.key, [both]) is both
    for a, b in zip(alone.decode, both.decode, strict=True):
        assert b.t2_us - a.t2_us == 2 * 30 * both.depths[1]


DENSE = ["layer,tokens,time_us"]
SEQUENCES = ["layer,sequences,time_us"]
ATTENTION = ["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"]
BAD = {
    "no such degree": ({}, 4, "holds tensor-parallel degrees 1"),
    "no version": ({"meta": {"vllm_version": None}}, 1, "has no vllm_version"),
    "odd precision": ({"meta": {"variant": "fp6"}}, 1, "precision 'fp6'"),
    "odd repeats": ({"meta": {"measurement_iterations": 0}}, 1, "measurement_iterations is 0"),
    "no column": ({"dense": ["layer,tokens"]}, 1, "lacks time_us"),
    "no rows": ({"attention": ATTENTION}, 1, "holds no measurement"),
    "no number": ({"dense": [*DENSE, "act_fn,x,1"]}, 1, "line 2: tokens is 'x'"),
    "below zero": ({"attention": [*ATTENTION, "0,0,-1,16,2"]}, 1, "n_decode is -1"),
    "no time": ({"dense": [*DENSE, "act_fn,1,nan"]}, 1, "time_us is 'nan'"),
    "free time": ({"dense": [*DENSE, "act_fn,1,0"]}, 1, "time_us is '0'"),
    "short line": ({"dense": [*DENSE, "act_fn,1"]}, 1, "time_us is None"),
    "twice": ({"dense": [*DENSE, "act_fn,1,1", "act_fn,1,2"]}, 1, "line 3: tokens 1"),
    "missing operator": ({"dense": [*DENSE, "act_fn,1,1"]}, 1, "'down_proj'"),
    "no head": ({"per_sequence": [*SEQUENCES, "sampler,1,1"]}, 1, "['lm_head'] are missing"),
    "strange operator": (
        {"per_sequence": [*SEQUENCES, "lm_head,1,1", "sampler,1,1", "draft,1,1"]},
        1,
        "['draft'] are not known",
    ),
    "idle step": ({"attention": [*ATTENTION, "0,0,0,0,2"]}, 1, "computes nothing"),
    "cached alone": ({"attention": [*ATTENTION, "0,16,1,16,2"]}, 1, "kv_prefill 16 needs"),
    "only decode": ({"attention": [*ATTENTION, "0,0,1,16,2"]}, 1, "steps that only prefill"),
    "only prefill": ({"attention": [*ATTENTION, "16,0,0,0,2"]}, 1, "steps that only decode"),
    "falls": (
        {"attention": [*ATTENTION, "16,0,0,0,2", "0,0,1,16,9000", "0,0,1,2048,2"]},
        1,
        "time falls",
    ),
    "experts": ({"moe": ["tokens,activated_experts,time_us", "1,8,4"]}, 1, "operators of moe"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_profile_is_refused_by_name(tmp_path, case):
    """The sentence names file and place; nothing is written."""
    tables, degree, words = BAD[case]
    folder = profiles.a_profile(tmp_path / "p", **tables)
    done = run(folder, tmp_path / "fp.json", degree=degree)
    assert done.exit_code == 1, done.output
    assert words in done.output
    assert str(folder) in done.output
    assert not (tmp_path / "fp.json").exists()


def test_small_operators_without_a_time_are_named(tmp_path):
    """Kernels that a profiler did not see count as nothing; a warning and the key say which."""
    folder = profiles.a_profile(tmp_path / "p", meta={"architecture": "qwen3"})
    done = run(folder, tmp_path / "fp.json")
    assert done.exit_code == 0
    assert "no times of qk_norm" in done.output
    assert "without=qk_norm" in parse((tmp_path / "fp.json").read_text()).key.flags
    assert "warning" not in run(profiles.a_profile(tmp_path / "q"), tmp_path / "b.json").output


def test_other_versions_of_the_profiler_are_read(tmp_path):
    """Without the variant the engine's dtype says the precision, without a GPU the hardware's name."""
    meta = {"variant": None, "gpu": None, "hardware": "RTX4090"}
    meta["engine_effective"] = {"dtype": "bfloat16"}
    key = imported(profiles.a_profile(tmp_path / "p", meta=meta), tmp_path / "fp.json").key
    assert (key.product, key.precision, key.kv_precision) == ("RTX4090", "bf16", "bf16")
    assert "eager" not in key.flags


def test_a_document_becomes_the_object_that_an_operator_reads(tmp_path):
    """The printed ConfigMap gives the operator's snapshot the document, under the name of its key."""
    folder, config, out = profiles.a_profile(tmp_path / "p"), tmp_path / "c.json", tmp_path / "fp"
    config.write_text(json.dumps(CONFIG))
    document = imported(folder, out, f"--model-config={config}")
    words = ["manifest", str(out), "-n", SETTINGS.system_namespace]
    done = RUN.invoke(app, ["fingerprint", *words])
    assert done.exit_code == 0, done.output
    body = yaml.safe_load(done.stdout)
    assert body["metadata"]["name"] == f"fp-{document.key.digest()}"
    caches = Caches()
    caches.configmaps.put({**body, "metadata": {**body["metadata"], "uid": "u"}})
    assert FingerprintBook().read(caches, settings=SETTINGS) == (document,)
    edited = body["data"][FINGERPRINT_KEY].replace('"gpuSeconds":', '"gpuSeconds":1')
    spoilt = {**body, "data": {FINGERPRINT_KEY: edited}}
    caches.configmaps.put({**spoilt, "metadata": {**body["metadata"], "uid": "v"}})
    assert FingerprintBook().read(caches, settings=SETTINGS) == ()


def test_a_document_of_no_model_becomes_no_object(tmp_path):
    """Without the model's configuration no plan could use it, so it is refused with the remedy."""
    imported(profiles.a_profile(tmp_path / "p"), tmp_path / "fp.json")
    done = RUN.invoke(app, ["fingerprint", "manifest", str(tmp_path / "fp.json")])
    assert done.exit_code == 1
    assert "Import it again with --model-config" in done.stderr


def test_a_derived_document_can_name_the_nodes_product(tmp_path, monkeypatch):
    """--product replaces the catalogue's name of a machine by the label of the nodes."""
    found = imported(profiles.a_profile(tmp_path / "p"), tmp_path / "fp.json")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    estimated = Estimated(
        fingerprint=found, architecture=Architecture.from_hf_config(CONFIG), depth=32
    )
    answers = Answers(package="0.12.0", results=(estimated,))
    monkeypatch.setattr(catalogue, "ask", lambda _queries, **_: answers)
    words = ["derive", "--system", "new_sxm", "--backend", "vllm", "--product", "NVIDIA-New-96GB"]
    files = ["--model-config", str(config), "--out", str(tmp_path / "derived.json")]
    done = RUN.invoke(app, ["fingerprint", *words, *files])
    assert done.exit_code == 0, done.output
    assert parse((tmp_path / "derived.json").read_text()).key.product == "NVIDIA-New-96GB"
