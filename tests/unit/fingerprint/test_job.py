import json

import pytest

from tests.unit.planning.builders import SMOLLM2
from trimtab.planning.fingerprint import parse
from trimtab.planning.step_model import fit
from trimtab_workers.fingerprint import __main__ as job_main
from trimtab_workers.fingerprint import machine
from trimtab_workers.fingerprint.job import Specification, SpecificationError, key_of

TINY = {
    "family": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "attention_heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "tied_embeddings": True,
}


def _spec(**changes):
    base = {
        "v": 1,
        "architecture": SMOLLM2.to_dict(),
        "precision": "bf16",
        "kvPrecision": "bf16",
        "threads": 1,
        "product": "cpu",
        "tensorParallelSize": 1,
        "grid": "quick",
        "maxSeconds": 60,
    }
    return json.dumps(base | changes)


def test_a_specification_is_read():
    """Everything a Job is asked for arrives."""
    spec = Specification.parse(_spec(threads=2))
    assert spec.architecture == SMOLLM2
    assert (spec.threads, spec.max_seconds, len(spec.points)) == (2, 60, 7)
    spec = Specification.parse(_spec(threads=2, tensorParallelSize=2))
    assert (spec.threads, key_of(spec).threads, key_of(spec).tensor_parallel_size) == (2, 2, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        (_spec(v=2), "no field v of 1"),
        (_spec(precision="fp8"), "precision is 'fp8'; this engine measures bf16, fp32"),
        (_spec(kvPrecision="fp32"), "kvPrecision is 'fp32'"),
        (_spec(product="NVIDIA-L4"), "product is 'NVIDIA-L4'"),
        (_spec(tensorParallelSize=3), "tensorParallelSize is 3; this engine measures 1, 2, 4"),
        (_spec(tensorParallelSize=2, threads=3), "threads is 3, which its tensorParallelSize of 2"),
        (_spec(threads=0), "threads is 0"),
        (_spec(grid="all"), "grid is 'all'"),
        (_spec(architecture={}), "lacks"),
    ],
)
def test_a_wrong_specification_names_its_field(text, said):
    """Field, value and what is possible are in the message."""
    with pytest.raises(SpecificationError, match=said):
        Specification.parse(text)


def test_a_failed_job_says_why_in_its_message(monkeypatch, tmp_path, capsys):
    """A bad specification ends with 1 and a reason that the operator can show."""
    log = tmp_path / "termination-log"
    monkeypatch.setenv("TRIMTAB_TERMINATION_LOG", str(log))
    monkeypatch.setenv("TRIMTAB_FINGERPRINT_SPEC", _spec(precision="fp8"))
    assert job_main.main() == 1
    message = json.loads(log.read_text())
    assert (message["ok"], message["reason"]) == (False, "InvalidSpecification")
    assert "fp8" in message["message"]
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["event"] == "fingerprint_failed"


def test_a_tiny_model_is_measured_in_the_engine(monkeypatch, tmp_path, capsys):
    """The whole Job: random models in the engine, every step run, a document that fits a model.

    Steps take what a formula says: a busy machine's real times of so small a model may not grow
    with the context, and such a document is refused.
    """
    pytest.importorskip("torch")
    from trimtab_workers.fingerprint.bench import EngineBench

    run, ran = EngineBench.step_seconds, set()

    def step_seconds(bench, point, *, depth):
        assert run(bench, point, depth=depth) > 0
        ran.add((point, depth))
        tokens = point.batch * point.context + (point.cached + point.chunk) * point.chunk
        return 1e-6 * (50 + depth * (20 + tokens))

    monkeypatch.setattr(EngineBench, "step_seconds", step_seconds)
    log = tmp_path / "termination-log"
    monkeypatch.setenv("TRIMTAB_TERMINATION_LOG", str(log))
    grid = {"decode": [[1, 16], [1, 48], [4, 16]], "prefill": [[8, 0], [32, 0], [8, 32]]}
    monkeypatch.setenv(
        "TRIMTAB_FINGERPRINT_SPEC", _spec(architecture=TINY, grid=grid, maxSeconds=2)
    )
    monkeypatch.setattr(machine, "cache_bytes", lambda: 1 << 20)
    assert job_main.main() == 0, capsys.readouterr().err
    text = log.read_text()
    assert len(text.encode()) <= 4096
    fingerprint = parse(text)
    assert fingerprint.key.cpu_model == machine.cpu_model()
    assert [(p.batch, p.context) for p in fingerprint.decode] == [(1, 16), (1, 48), (4, 16)]
    assert [row.depth for row in fingerprint.memory] == [1, 2]
    assert fingerprint.memory[0].non_torch > 0
    assert fit(fingerprint, depth=8).kinds[0].layers == 8
    assert len(ran) >= 2 * (len(fingerprint.decode) + len(fingerprint.prefill))
    events = [json.loads(x)["event"] for x in capsys.readouterr().err.splitlines() if x[:1] == "{"]
    assert {"fingerprint_started", "fingerprint_progress", "fingerprint_measured"} <= set(events)


def test_the_cpu_is_named_as_its_kernel_names_it(tmp_path):
    """Runs of spaces collapse; an unreadable file falls back to the architecture."""
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: AMD  EPYC 7763   64-Core\n")
    assert machine.cpu_model(info) == "AMD EPYC 7763 64-Core"
    assert machine.cpu_model(tmp_path / "missing")


def test_the_largest_cache_counts(tmp_path):
    """The last level decides what stays in cache; an unknown one counts as 64 MiB."""
    for index, size in enumerate(["32K", "1024K", "32M"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert machine.cache_bytes(tmp_path) == 32 << 20
    assert machine.cache_bytes(tmp_path / "missing") == 64 << 20
