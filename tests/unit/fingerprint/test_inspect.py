import json
import struct

import pytest

from tests.unit.planning.builders import SMOLLM2
from trimtab.planning.architecture import Architecture
from trimtab_workers.fingerprint.inspect import inspect, main

CONFIG = Architecture.to_hf_config(SMOLLM2, depth=3, context_length=512)


def a_checkpoint(folder, *, dtype="BF16", config=CONFIG, cut=0, template=True):
    """Write a directory whose safetensors hold one tensor: only headers are read."""
    folder.mkdir(parents=True, exist_ok=True)
    size = {"BF16": 2, "F16": 2, "F32": 4}[dtype]
    name = "model.embed_tokens.weight"
    header = json.dumps(
        {name: {"dtype": dtype, "shape": [8, 16], "data_offsets": [0, 128 * size]}}
    ).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(128 * size - cut)
    (folder / "model.safetensors").write_bytes(data)
    (folder / "config.json").write_text(json.dumps(config))
    if template:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{x}}"}))
    return folder


def test_a_directory_is_described_by_its_headers(tmp_path):
    """The message of contracts §3, with the architecture that planning reads."""
    found = inspect(a_checkpoint(tmp_path / "m"))
    assert found["ok"] is True
    assert Architecture.from_dict(found["architecture"]) == SMOLLM2
    assert (found["depth"], found["precision"], found["format"]) == (3, "bf16", "safetensors")
    assert (found["contextLength"], found["quantization"], found["family"]) == (512, None, "llama")
    parameters = SMOLLM2.fixed_parameters() + 3 * SMOLLM2.layer_parameters()
    assert (found["parameters"], found["weightBytes"]) == (parameters, 2 * parameters)
    assert found["chatTemplate"] is True
    assert found["cpuModel"]
    assert found["cpus"] >= 1


@pytest.mark.parametrize(("dtype", "precision"), [("F32", "fp32"), ("F16", "bf16")])
def test_the_precision_is_what_the_engine_holds(tmp_path, dtype, precision):
    """fp32 stays, fp16 is held as bf16."""
    assert inspect(a_checkpoint(tmp_path / "m", dtype=dtype))["precision"] == precision


def test_the_source_digest_follows_the_content(tmp_path):
    """The same files give the same digest wherever they lie; another configuration another."""
    one = inspect(a_checkpoint(tmp_path / "a"))["source"]
    same = inspect(a_checkpoint(tmp_path / "b"))["source"]
    other = inspect(a_checkpoint(tmp_path / "c", config=CONFIG | {"rope_theta": 5.0}))["source"]
    assert one == same != other


@pytest.mark.parametrize(
    ("make", "reason", "said"),
    [
        (lambda p: p / "missing", "ModelNotFound", "no such file or directory"),
        (lambda p: a_checkpoint(p / "m", cut=1), "ModelCorrupt", "is cut"),
        (
            lambda p: a_checkpoint(p / "m", config=CONFIG | {"model_type": "mamba"}),
            "UnsupportedModel",
            "model_type is 'mamba'",
        ),
    ],
)
def test_a_model_that_cannot_be_served_is_a_verdict(tmp_path, make, reason, said):
    """Path, fault and remedy are in the message; nothing is raised."""
    path = make(tmp_path)
    found = inspect(path)
    assert (found["ok"], found["reason"]) == (False, reason)
    assert said in found["message"]
    assert str(path) in found["message"]


def test_the_job_ends_with_0_whenever_it_reached_a_verdict(monkeypatch, tmp_path, capsys):
    """A refusal is a result: the message is written, the exit status is 0."""
    log = tmp_path / "log"
    monkeypatch.setenv("TRIMTAB_TERMINATION_LOG", str(log))
    for path in (a_checkpoint(tmp_path / "m"), tmp_path / "missing"):
        assert main(["--path", str(path)]) == 0
        assert log.stat().st_size <= 4096
        assert json.loads(log.read_text())["v"] == 1
    assert json.loads(capsys.readouterr().err.splitlines()[0])["event"] == "inspected"
