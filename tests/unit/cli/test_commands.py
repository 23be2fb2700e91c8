"""The commands that need no cluster, as a person runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.unit.api.manifest_cases import an_intent, named
from tests.unit.planning.builders import SMOLLM2, a_loss
from trimtab import __version__
from trimtab.cli import bench as bench_module
from trimtab.cli.app import app
from trimtab.planning.accuracy import dump

ROOT = Path(__file__).resolve().parents[3]
RUN = CliRunner()
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what `crds generate` writes."""
    for folder in ("crds", "charts/trimtab/files/crds"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def test_version_is_printed() -> None:
    """`trimtab version` prints the distribution's version and nothing else."""
    assert RUN.invoke(app, ["version"]).stdout == f"{__version__}\n"


def test_start_up_stays_light() -> None:
    """Help and version import no pydantic, Kubernetes client, numpy or torch."""
    code = (
        "import sys; from trimtab.cli.app import app\n"
        "heavy = {'pydantic', 'kubernetes', 'numpy', 'torch', 'aiohttp', 'kopf'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_checked_in_definitions_are_up_to_date() -> None:
    """`crds/` and the chart's copy hold what the models say, byte for byte."""
    done = RUN.invoke(app, ["crds", "generate", "--check", "--repository", str(ROOT)])
    assert done.exit_code == 0, done.output


def test_check_names_files_that_differ(checkout: Path) -> None:
    """A changed, a missing and a stale file are each named, and generating repairs all of them."""
    (checkout / "crds/gpuprofiles.yaml").write_text("changed")
    (checkout / "charts/trimtab/files/crds/inferenceintents.yaml").unlink()
    (checkout / "crds/old.yaml").write_text("stale")
    done = RUN.invoke(app, ["crds", "generate", "--check", "--repository", str(checkout)])
    assert done.exit_code == 1
    for name in (
        "crds/gpuprofiles.yaml",
        "charts/trimtab/files/crds/inferenceintents.yaml",
        "crds/old.yaml",
    ):
        assert name in done.stderr
    assert RUN.invoke(app, ["crds", "generate", "--repository", str(checkout)]).exit_code == 0
    again = RUN.invoke(app, ["crds", "generate", "--check", "--repository", str(checkout)])
    assert again.exit_code == 0
    assert not (checkout / "crds/old.yaml").exists()


def test_generate_refuses_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    """Nothing is written beside a folder that holds no chart."""
    done = RUN.invoke(app, ["crds", "generate", "--repository", str(tmp_path)])
    assert done.exit_code == 1
    assert "holds no charts/trimtab" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_printed_definitions_are_those_checked_in() -> None:
    """`trimtab crds print` gives the three definitions as one stream for kubectl."""
    documents = list(yaml.safe_load_all(RUN.invoke(app, ["crds", "print"]).stdout))
    names = {document["metadata"]["name"] for document in documents}
    assert names == {f"{path.stem}.trimtab.dev" for path in (ROOT / "crds").glob("*.yaml")}


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A node of two threads and a bare config.json."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    node = {"name": "a", "cpuModel": "EPYC", "cpu": "2", "memory": "8Gi"}
    (tmp_path / "fleet.yaml").write_text(
        yaml.safe_dump({"nodes": [node], "models": {"*": "config.json"}})
    )
    (tmp_path / "prices.yaml").write_text(
        yaml.safe_dump({"dated": "2026-11-01", "cpuHour": {"*": "0.04"}, "memoryGiBHour": "0.005"})
    )
    return tmp_path


def _plan(folder: Path, *intents: dict, prices: bool = True) -> list[str]:
    (folder / "intents.yaml").write_text(yaml.safe_dump_all(intents))
    words = ["plan", "-f", str(folder / "intents.yaml"), "--inventory", str(folder / "fleet.yaml")]
    return [*words, *(["--prices", str(folder / "prices.yaml")] if prices else [])]


LOAD = {"requestsPerSecond": "0.1", "promptTokens": 64, "outputTokens": 64}


def test_a_fleet_of_gpus_is_planned_from_files() -> None:
    """The example's intent gets whole GPUs of the product that it names, at the price of the file."""
    offline = ROOT / "examples/offline"
    words = ["plan", "-f", str(ROOT / "examples/gpu.yaml"), "-o", "json"]
    words += ["--inventory", str(offline / "gpu-fleet.yaml")]
    done = RUN.invoke(app, [*words, "--prices", str(offline / "prices.yaml")])
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)
    assert found["planned"]["status"] == "True"
    assert "GPU" in found["planned"]["message"]
    assert "NVIDIA-H100-80GB-HBM3" in found["planned"]["message"]


def test_plan_from_files_explains_each_intent(fleet: Path) -> None:
    """Two intents on two threads: each gets an option with prediction, cost and alternatives."""
    words = _plan(
        fleet,
        an_intent(load=LOAD),
        named(an_intent(objective="MinLatency", load=LOAD), "second"),
    )
    done = RUN.invoke(app, [*words, "-o", "json"])
    assert done.exit_code == 0, done.output
    first, second = json.loads(done.stdout)
    assert first["object"] == "InferenceIntent default/subject"
    for found in (first, second):
        assert found["planned"]["status"] == "True"
        assert found["plan"]["product"] == "cpu"
        assert float(found["plan"]["costPerHour"]) > 0
        assert float(found["plan"]["predicted"]["timePerOutputTokenMilliseconds"]) > 0
        assert found["alternatives"]


def test_plan_judges_precisions_by_measured_losses(fleet: Path, tmp_path: Path) -> None:
    """A folder of documents decides which precisions a limit admits; another model's say nothing."""
    message = {
        "v": 1, "ok": True, "family": "llama", "architecture": SMOLLM2.to_dict(), "depth": 30,
        "precision": "bf16", "weightBytes": 269030016, "contextLength": 2048, "source": "abc",
    }  # fmt: skip
    (fleet / "config.json").write_text(json.dumps(message))
    folder = tmp_path / "accuracy"
    folder.mkdir()
    (folder / "one.json").write_text(dump([a_loss("int8", percent=0.4)]))
    other = a_loss("int4", percent=0.1)
    other = replace(other, key=replace(other.key, model="other"))
    (folder / "two.json").write_text(dump([other]))
    intent = an_intent(load=LOAD, constraints={"maxAccuracyLossPercent": "1"})
    words = [*_plan(fleet, intent), "--accuracy", str(folder), "-o", "json"]
    done = RUN.invoke(app, words)
    assert done.exit_code == 0, done.output
    [found] = json.loads(done.stdout)
    options = [found["plan"], *found["alternatives"]]
    losses = {o["precision"]: o.get("accuracyLossPercent") for o in options}
    assert (losses["int8"], losses["int4"], losses["bf16"]) == ("0.4", None, None)
    [refused] = [o for o in options if o["reason"] == "AccuracyLoss"]
    assert (refused["precision"], "not measured yet" in refused["message"]) == ("int4", True)
    (folder / "bad.json").write_text("{}")
    done = RUN.invoke(app, words)
    assert done.exit_code == 1
    assert "bad.json: Accuracy field v is None" in done.output


def test_what_a_precision_loses_is_measured_by_the_jobs_own_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command runs the Job's module, shows its figures, and leaves no file where it failed."""
    out = tmp_path / "chat.json"
    words = ["fingerprint", "accuracy", "--model", str(tmp_path / "none"), "--precision", "int8"]
    done = RUN.invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 1
    assert not out.exists()
    asked: list[list[str]] = []

    def run(command: list[str], *, env: dict[str, str], **_: object) -> object:
        asked.append(command)
        Path(env["TRIMTAB_TERMINATION_LOG"]).write_text(dump([a_loss("int8", percent=0.4)]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    done = RUN.invoke(app, [*words, "--out", str(out), "--threads", "2"])
    assert (done.exit_code, done.stdout.split(" of ")[0]) == (0, "int8 loses 0.4 %")
    assert asked[0][-4:] == ["--threads", "2", "--precision", "int8"]
    assert out.exists()


def test_plan_as_a_table_shows_every_option(fleet: Path) -> None:
    """People see the options with figures, and a sentence for each that lost."""
    done = RUN.invoke(app, _plan(fleet, an_intent(load=LOAD)), env={"COLUMNS": "180"})
    assert done.exit_code == 0, done.output
    assert "Options considered" in done.stdout
    assert "1 x cpu, 1 thread, bf16" in done.stdout
    assert "lost" in done.stdout


def test_plan_without_prices_says_that_the_price_is_unknown(fleet: Path) -> None:
    """A cost objective without a price is not planned, and the message names the key."""
    done = RUN.invoke(app, [*_plan(fleet, an_intent(load=LOAD), prices=False), "-o", "json"])
    (found,) = json.loads(done.stdout)
    assert found["planned"]["reason"] == "PriceUnknown"
    assert "cpuHour" in found["planned"]["message"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("intents.yaml", "kind: InferenceIntent", "expected trimtab.dev/v1alpha1"),
        ("intents.yaml", "", "hold no InferenceIntent"),
        ("fleet.yaml", "nodes: 3", "must hold nodes (a list)"),
        ("fleet.yaml", "nodes: [{cpu: 2}]", "nodes[0] is {'cpu': 2}: give cpu and memory"),
        ("fleet.yaml", "nodes: [{cpu: two, memory: 1Gi}]", "Write quantities such as 2 and 8Gi"),
        ("fleet.yaml", "nodes: [{gpu: X, memory: 1Gi}]", "give gpu (the product), gpus (how many)"),
        (
            "fleet.yaml",
            "nodes: [{gpu: X, memory: 1Gi, gpuMemory: 80Gi, gpuScores: [fast]}]",
            "1000 for the median GPU",
        ),
        ("fleet.yaml", "nodes: []\nmodels: {other: config.json}", "add `subject: PATH`"),
        ("config.json", '{"model_type": "mamba"}', "model_type is 'mamba'"),
        ("prices.yaml", "cpuHuor: {}", "cpuHuor"),
    ],
)
def test_plan_names_file_field_and_remedy(fleet: Path, file: str, text: str, message: str) -> None:
    """A wrong file ends in one sentence, never in a traceback."""
    words = _plan(fleet, an_intent(load=LOAD))
    (fleet / file).write_text(text)
    done = RUN.invoke(app, words)
    assert done.exit_code == 1
    assert message in done.stderr
    assert file.split(".", maxsplit=1)[0] in done.stderr or "The files given" in done.stderr


def test_benchmark_passes_its_options_through(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The name and options after it, --help included, reach the module; its status is the command's."""
    module = tmp_path / "a_bench.py"
    module.write_text(
        "import sys, pathlib\npathlib.Path(sys.argv[2]).write_text(str(sys.argv[1::2]))\nsys.exit(3)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(
        bench_module, "BENCHES", {"mine": bench_module.Bench(module="a_bench", doc="mine")}
    )
    out = tmp_path / "out"
    done = RUN.invoke(app, ["bench", "mine", str(out), "--batch", "1,8", "-o", "json", "--help"])
    assert done.exit_code == 3
    assert out.read_text() == "['mine', '--batch', '-o', '--help']"


def test_unknown_benchmark_names_the_known_ones() -> None:
    """A typo is answered with the list."""
    done = RUN.invoke(app, ["bench", "engine-troughput"])
    assert done.exit_code == 1
    assert "engine-throughput" in done.stderr
    assert "engine-throughput:" in RUN.invoke(app, ["bench", "list"]).stdout


def test_kubectl_plugin_calls_itself_by_its_name() -> None:
    """Help of the plug-in says `kubectl trimtab`, as the user typed."""
    code = "import sys; sys.argv = ['kubectl-trimtab', '--help']\nfrom trimtab.cli import kubectl_plugin; kubectl_plugin()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: kubectl trimtab" in done.stdout


def test_example_of_an_offline_plan_works() -> None:
    """The files under examples/offline plan every inference example, on CPUs at least."""
    words = ["plan", "-f", str(ROOT / "examples/chat.yaml"), "-f"]
    words += [str(ROOT / "examples/two-models.yaml"), "-o", "json"]
    words += ["--inventory", str(ROOT / "examples/offline/fleet.yaml")]
    words += ["--prices", str(ROOT / "examples/offline/prices.yaml")]
    done = RUN.invoke(app, words)
    assert done.exit_code == 0, done.output
    assert {found["planned"]["status"] for found in json.loads(done.stdout)} == {"True"}
