import json
import math
import struct
import subprocess
import sys

import pytest

from tests.unit.planning.builders import SMOLLM2
from trimtab.planning.architecture import Architecture
from trimtab_workers.engine.models.names import tensor_shapes
from trimtab_workers.engine.models.shape import LlamaShape
from trimtab_workers.fingerprint.inspect import inspect, main

CONFIG = Architecture.to_hf_config(SMOLLM2, depth=3, context_length=512)


def a_checkpoint(folder, *, dtype="BF16", config=CONFIG, cut=0, template=True):
    """Write a directory whose safetensors are a header and a hole: only headers are read."""
    folder.mkdir(parents=True, exist_ok=True)
    header, at = {}, 0
    for name, shape in tensor_shapes(LlamaShape.from_hf_config(CONFIG, where="test")).items():
        end = at + math.prod(shape) * {"BF16": 2, "F16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at - cut)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
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
        (
            lambda p: a_checkpoint(p / "m", config=CONFIG | {"intermediate_size": 7}),
            "ModelCorrupt",
            "mlp.gate_proj.weight is of shape",
        ),
        (
            lambda p: a_checkpoint(p / "m", config=CONFIG | {"rope_parameters": ["yarn"]}),
            "ModelCorrupt",
            "a value of a wrong kind",
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


def test_a_message_fits_whatever_the_file_is_called(monkeypatch, tmp_path):
    """Foreign names are cut, escapes counted: the kubelet cuts at 4,096 bytes, in mid-JSON."""
    log = tmp_path / "log"
    monkeypatch.setenv("TRIMTAB_TERMINATION_LOG", str(log))
    folder = a_checkpoint(tmp_path / "m", config=CONFIG | {"model_type": "\x01\U0001f600" * 2000})
    assert main(["--path", str(folder)]) == 0
    assert log.stat().st_size <= 4096
    assert json.loads(log.read_text())["reason"] == "UnsupportedModel"


def test_the_job_needs_no_torch():
    """Inspection starts in a fraction of torch's import time, and in images without it."""
    absent = ["torch", "gguf", "tokenizers", "pydantic"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r})); "
        "import trimtab_workers.fingerprint.inspect"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
