"""`trimtab remap`, as a person runs it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trimtab.cli.app import app

OFFLINE = Path(__file__).resolve().parents[3] / "examples/offline"
THREE = f"--shapes={OFFLINE / 'three-llama-3-8b.yaml'}"
SMOLLM2 = OFFLINE / "smollm2-135m.json"
RUN = CliRunner()


def run(*options: str):
    return RUN.invoke(app, ["remap", *options], terminal_width=200)


def test_idle_models_over_pcie():
    """Three 8B models in 52 GB: two lend, the active one streams nothing, with figures."""
    done = run(THREE, "--memory=52G", "--output=json")
    assert done.exit_code == 0, done.output
    advice = json.loads(done.stdout)["advice"]
    assert advice["verdict"] == "IdleOnly"
    assert advice["lend_units"] == {"billing": 30, "search": 30}
    assert (advice["kv_tokens_before"], advice["kv_tokens_after"]) == (29_144, 228_824)
    assert advice["reasons"][0].startswith("LinkTooSlow")


def test_table_names_verdict_reason_and_tokens():
    """The table shows verdict, what each model lends, tokens before and after, and the reason."""
    done = run(THREE, "--memory=52G")
    assert done.exit_code == 0, done.output
    for text in ("IdleOnly", "30 of 32 layers", "29144 tokens", "228824", "LinkTooSlow:"):
        assert text in done.output


def test_fast_link_streams_and_several_can_be_active():
    """On a GH200 a small KV cache streams layers of the active models named."""
    options = (
        "--hardware=gh200",
        "--memory=50G",
        "--active=chat",
        "--active=search",
        "--output=json",
    )
    done = run(THREE, *options)
    document = json.loads(done.stdout)
    assert document["active"] == ["chat", "search"]
    assert document["advice"]["lend_units"] == {"billing": 30}


def test_a_configuration_is_a_model():
    """A config.json gives SmolLM2's layer of 7,077,888 bytes; on a CPU nothing is streamed."""
    done = run(
        f"--model-config=a={SMOLLM2}",
        f"--model-config=b={SMOLLM2}",
        "--hardware=cpu",
        "--output=json",
    )
    document = json.loads(done.stdout)
    shape = document["models"]["a"]
    assert (shape["layers"], shape["layer_bytes"]) == (30, 7_077_888)
    assert shape["layers"] * shape["layer_bytes"] + shape["fixed_bytes"] == 269_030_016
    assert document["advice"]["verdict"] == "IdleOnly"
    assert "ActiveCapped" in document["advice"]["reasons"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "No model is given"),
        ((THREE, "--hardware=abacus"), "There is no hardware abacus"),
        ((THREE, "--memory=many"), "'many' is no Kubernetes quantity"),
        ((THREE, "--active=ghost"), "active names ghost"),
        ((THREE, "--memory=1G"), "Raise memory_bytes"),
        ((THREE, f"--model-config=chat={SMOLLM2}"), "Model chat is given twice"),
        ((f"--model-config={SMOLLM2}", "--precision=bf17"), "--precision is bf17"),
        ((f"--shapes={SMOLLM2}",), "must hold models"),
        (("--model-config=/nowhere/config.json",), "cannot be read"),
        ((THREE, "--switch-interval=-1"), "switch_interval_s is -1"),
    ],
)
def test_errors_name_what_is_wrong(options, message):
    """A bad file, name or figure ends with one line that names it, and status 1."""
    done = run(*options)
    assert done.exit_code == 1
    assert message in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {a: {layers: 3}}", "models.a is"),
        ("- a", "is no mapping"),
        (
            "models: {a: {layers: 0, layer_bytes: 1, fixed_bytes: 0, read_outside_bytes: 0, kv_bytes_per_token: 1}}",
            "ModelShape: layers is 0",
        ),
    ],
)
def test_bad_shapes(tmp_path, text, message):
    """A shape that lacks a field or has a size of 0 is refused by name."""
    (tmp_path / "shapes.yaml").write_text(text)
    done = run(f"--shapes={tmp_path / 'shapes.yaml'}")
    assert done.exit_code == 1
    assert message in done.stderr
