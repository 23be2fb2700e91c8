"""The comparison with a peer: turns, rows, and that both sides are asked for the same work."""

import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from trimtab_workers.engine.bench import cpu_peer, machine, side_ours, side_vllm
from trimtab_workers.engine.bench import one_directory as one_directory_module
from trimtab_workers.engine.bench.cpu_peer import Task, compare, peer_environment, same_start
from trimtab_workers.engine.bench.one_directory import one_directory
from trimtab_workers.engine.bench.sides import Side, SideError
from trimtab_workers.engine.config import ModelSpec
from trimtab_workers.engine.weights.store import open_checkpoint

ECHO = Path(__file__).with_name("echo_side.py")


def echo(folder: Path, name: str = "echo", *, seconds: float = 1.0) -> Side:
    return Side(
        name,
        [sys.executable, "-I", str(ECHO), f"{name}-1", str(seconds)],
        environment={},
        log=folder / f"{name}.log",
    )


def test_rows_hold_medians_and_their_ratio(tmp_path, monkeypatch, capsys):
    """The JSON is a list of batch, ours, peer, ratio; the table marks a size at which we lose."""
    seconds = {"ours": 2.0, "peer": 1.0}

    def side(*_: object, name: str, **__: object) -> Side:
        return echo(tmp_path, name, seconds=seconds[name])

    monkeypatch.setattr(cpu_peer, "our_side", side)
    monkeypatch.setattr(cpu_peer, "peer_side", side)
    monkeypatch.setattr(cpu_peer, "one_directory", lambda path: path)
    monkeypatch.setattr(Side, "idle_share", lambda _: 0.0)
    options = ["--model=m", "--peer-python=p", "--batch=1,3", "--prompt=2", "--output=4", "-o=json"]
    assert cpu_peer.main(options) == 0
    shown = capsys.readouterr()
    rows = json.loads(shown.out)
    assert [(r["batch"], r["ours"], r["peer"], r["ratio"]) for r in rows] == [
        (1, 2.0, 4.0, 0.5),
        (3, 6.0, 12.0, 0.5),
    ]
    assert rows[0]["ratio_range"] == [0.5, 0.5]
    lost = "| 3 | 6.0 (6.0 to 6.0) | 12.0 (12.0 to 12.0) | 0.50 (0.50 to 0.50) **loses** |"
    assert lost in shown.err
    assert "vLLM peer-1" in shown.err


def test_a_side_that_spins_is_stopped_in_the_others_turn(tmp_path, monkeypatch):
    """An idle side that uses a core is found, named, and stopped while the other is measured."""
    with echo(tmp_path, "ours") as ours, echo(tmp_path, "peer") as peer:
        calls = []
        original = peer._signal

        def recorded(number: signal.Signals) -> None:
            calls.append(number)
            original(number)

        monkeypatch.setattr(peer, "_signal", recorded)
        monkeypatch.setattr(peer, "idle_share", lambda: 0.5)
        monkeypatch.setattr(ours, "idle_share", lambda: 0.0)
        found = compare(ours, peer, model=tmp_path, task=Task(batches=(1,), repeats=2))
        assert found["stopped_when_idle"] == ["peer"]
        assert found["idle_cores"] == {"ours": 0.0, "peer": 0.5}
        assert calls == [signal.SIGSTOP, signal.SIGCONT, signal.SIGSTOP]
        assert peer.paused


def test_spinning_is_measured(tmp_path):
    """A process that computes while it waits shows; one that waits does not."""
    with echo(tmp_path, "quiet") as quiet, echo(tmp_path, "busy") as busy:
        quiet.call("load")
        busy.call("spin")
        assert busy.idle_share(0.3) > 0.05
        assert quiet.idle_share(0.1) < 0.02
        busy._process.kill()


def test_a_side_that_dies_is_an_error_with_its_last_words(tmp_path):
    """The end of a side's process names it, its status and what it printed; refusals are named too."""
    with echo(tmp_path, "peer") as peer:
        with pytest.raises(SideError, match="peer: no command dance"):
            peer.call("dance")
        with pytest.raises(SideError, match=r"(?s)peer ended with status 3.*the last words"):
            peer.call("die")


def test_a_peer_that_cannot_start_ends_with_a_sentence(tmp_path, capsys, glass_en):
    """A Python that does not exist, or no model to load, is exit status 2 and one line."""
    assert cpu_peer.main([f"--model={glass_en}", f"--peer-python={tmp_path / 'none'}"]) == 2
    assert "No such file" in capsys.readouterr().err
    assert cpu_peer.main([f"--model={tmp_path / 'gone'}", f"--peer-python={sys.executable}"]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_common_start():
    """Agreement counts tokens before the first difference."""
    assert same_start([1, 2, 3], [1, 2, 4]) == 2
    assert same_start([1, 2], [1, 2]) == 2
    assert same_start([5], [6]) == 0


def test_our_side_answers(glass_en):
    """Our side loads a directory and gives as many tokens as were asked for, the same each time."""
    side = side_ours.Ours()
    facts = side.load(model=str(glass_en), dtype="fp32", threads=1, context=24, seqs=2)
    assert facts["vocab"] == 1024
    first = side.answer(prompts=[[5, 6, 7], [8, 9, 10]], output=6)
    assert [len(answer) for answer in first["answers"]] == [6, 6]
    assert side.answer(prompts=[[5, 6, 7]], output=6)["answers"] == first["answers"][:1]
    with pytest.raises(ValueError, match="send load first"):
        side_ours.Ours().answer(prompts=[], output=1)


def test_the_peer_is_asked_for_the_same_work(monkeypatch):
    """VLLM gets token ids, no prefix cache, greedy sampling without early end, and bound threads."""
    asked = {}

    class LLM:
        def __init__(self, **arguments: object) -> None:
            asked["llm"] = arguments
            config = SimpleNamespace(get_vocab_size=lambda: 77)
            self.llm_engine = SimpleNamespace(model_config=config)

        def generate(self, prompts, params, *, use_tqdm):
            asked["prompts"], asked["params"] = prompts, params
            assert not use_tqdm
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(1, 2))]) for _ in prompts]

    fake = SimpleNamespace(LLM=LLM, SamplingParams=lambda **a: a, __version__="0.32.0")
    monkeypatch.setitem(sys.modules, "vllm", fake)
    peer = side_vllm.Peer()
    facts = peer.load(model="m", dtype="bf16", context=192, seqs=32)
    assert facts == {"vocab": 77, "version": "0.32.0"}
    assert asked["llm"]["dtype"] == "bfloat16"
    assert asked["llm"]["enable_prefix_caching"] is False
    assert peer.answer(prompts=[[1, 2]], output=2)["answers"] == [[1, 2]]
    assert asked["prompts"] == [{"prompt_token_ids": [1, 2]}]
    assert asked["params"] == {
        "temperature": 0.0,
        "max_tokens": 2,
        "ignore_eos": True,
        "detokenize": False,
    }


def test_peer_environment_follows_its_documentation(tmp_path):
    """Cache size, bound threads, and the OpenMP runtime of its own environment if it is there."""
    python = tmp_path / "bin/python"
    runtime = tmp_path / "lib/libiomp5.so"
    runtime.parent.mkdir()
    runtime.touch()
    environment = peer_environment(python, threads=1)
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == str(machine.cpus()[0])
    assert str(runtime) in environment["LD_PRELOAD"]


def test_one_directory_for_both(tmp_path, glass_en, monkeypatch):
    """A single file becomes a directory with the same weights in bf16; a directory stays itself."""
    assert one_directory(glass_en) == glass_en
    original = open_checkpoint(ModelSpec(name="m", path=glass_en))
    monkeypatch.setattr(one_directory_module, "open_checkpoint", lambda _: original)
    single = glass_en / "model.safetensors"
    written = one_directory(single, cache=tmp_path)
    assert one_directory(single, cache=tmp_path) == written
    assert {path.name for path in written.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    name = "model.layers.3.self_attn.q_proj.weight"
    copy = open_checkpoint(ModelSpec(name="m", path=written))
    assert copy.shape == original.shape
    expected = load_file(single)[name].to(torch.bfloat16)
    assert torch.equal(load_file(written / "model.safetensors")[name], expected)
