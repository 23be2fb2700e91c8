"""What the comparison of pressure policies runs, and what it concludes."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from trimtab_workers.engine.bench import cpu_idle, side_ours, side_vllm
from trimtab_workers.engine.bench.arrivals import Arrival, Load, bursts_on_one
from trimtab_workers.engine.bench.cpu_idle import Policy, Task, run
from trimtab_workers.engine.bench.figures import Figures, figures
from trimtab_workers.engine.bench.idle_report import Run, markdown, summary
from trimtab_workers.engine.bench.replay import Answer

LOAD = Load(
    lengths="azure-conv",
    divisor=64,
    longest=60,
    seconds=0.4,
    burst_seconds=0.2,
    pause_seconds=0.1,
    burst_rate=20,
    visit_seconds=0.3,
)
FIGURES = Figures(
    requests=2,
    failed=0,
    output_tokens=20,
    seconds=2.0,
    tokens_per_second=10.0,
    goodput=1.0,
    ttft_p50=0.1,
    ttft_p99=1.0,
    tbt_p50=0.02,
    tbt_p99=0.2,
)


def a_run(policy: str, number: int, *, preemptions: float, speed: float, tokens=(1, 2)) -> Run:
    return Run(
        policy=policy,
        round=number,
        figures=replace(FIGURES, tokens_per_second=speed),
        counted={
            "vllm:num_preemptions": preemptions,
            "trimtab_engine_recomputed_tokens": 10 * preemptions,
        },
        answers=[Answer(model="a", arrival_seconds=0.0, tokens=list(tokens), token_seconds=[1.0])],
    )


def test_reductions_and_ratios_are_against_each_policy():
    """Preemptions fall by the share of sums, speed is a ratio per round, tokens are compared."""
    result = summary(
        [
            a_run("recompute", 0, preemptions=100, speed=10),
            a_run("remap-idle", 0, preemptions=2, speed=15),
            a_run("remap-idle", 1, preemptions=4, speed=30),
            a_run("recompute", 1, preemptions=100, speed=10, tokens=(1, 3)),
        ]
    )
    against = result["against"]["recompute"]
    assert against["reductions"]["preemptions"] == pytest.approx(0.97)
    assert against["reductions"]["recomputed_tokens"] == pytest.approx(0.97)
    assert against["reductions"]["swapped_bytes"] is None
    assert against["ratios"]["tokens_per_second"] == {"median": 2.25, "range": [1.5, 3.0]}
    assert against["equal_answers"] == [1, 0]
    assert result["policies"]["recompute"]["preemptions"] == {
        "median": 100.0,
        "range": [100.0, 100.0],
    }


class FakeSide:
    """Answers a replay with one token for each arrival, 10 ms after it was due."""

    def __init__(self, counted: float) -> None:
        self.counted, self.calls, self._rows = counted, [], []

    def send(self, do, **arguments):
        self.calls.append((do, arguments))
        self._rows = arguments["arrivals"]

    def receive(self):
        answers = [
            {
                "model": row["model"],
                "arrival_seconds": row["seconds"],
                "token_seconds": [row["seconds"] + 0.01],
                "tokens": [row["seed"] % 7],
            }
            for row in self._rows
        ]
        return {"answers": answers, "counted": {"vllm:num_preemptions": self.counted}}

    def call(self, do, **arguments):
        self.calls.append((do, arguments))
        return {}


def test_policies_alternate_and_peers_share_the_arrivals(monkeypatch, capsys):
    """Each round runs all policies in turns; peer processes get their model's arrivals, one start."""
    monkeypatch.setattr(cpu_idle, "_LEAD_SECONDS", 0.0)
    ours, base = FakeSide(1), FakeSide(40)
    peers = {name: FakeSide(3) for name in "abc"}
    policies = {
        "recompute": Policy({"": base}),
        "remap-idle": Policy({"": ours}),
        "vllm-static": Policy(peers),
    }
    task = Task(repeats=2, warm_seconds=0.0)
    runs = run(policies, LOAD, task)
    assert [r.policy for r in runs] == [*policies, *reversed(policies)]
    arrivals = bursts_on_one("abc", LOAD)
    for found in runs:
        assert [a.arrival_seconds for a in found.answers] == [a.seconds for a in arrivals]
    starts = {side.calls[-1][1]["start_seconds"] for side in peers.values()}
    assert len(starts) == 1
    assert {row["model"] for row in peers["b"].calls[-1][1]["arrivals"]} <= {"b"}
    assert [do for do, _ in ours.calls] == ["replay", "settle"] * 3
    result = summary(runs)
    assert result["against"]["vllm-static"]["reductions"]["preemptions"] == pytest.approx(1 - 1 / 9)
    assert result["against"]["recompute"]["equal_answers"] == [len(arrivals)] * 2
    shown = markdown(
        result
        | {
            "model": "m",
            "task": {"tenants": ["a"], "dtype": "bf16", "threads": 1, "repeats": 2},
            "load": {name: getattr(LOAD, name) for name in Load.__slots__},
            "budget": {"memory_bytes": 1, "weight_slabs": 90, "kv_slabs": 9, "kv_tokens": 2736},
            "conditions": {"cpu": "x", "cpus": 2, "load_average": 0.1},
        }
    )
    assert "- preemptions: -97.5 %\n" in shown
    assert "- preemptions: -88.9 % (target -90 %)" in shown
    assert "- swapped_bytes: nothing to reduce" in shown
    assert "round 2 of 2: recompute" in capsys.readouterr().err


def test_our_side_serves_several_models(glass_en):
    """Our side computes the bytes of three models with a share of KV slabs, and replays on them."""
    side = side_ours.Ours()
    budget = side.budget(model=str(glass_en), dtype="fp32", tenants=3, kv_share=1.5)
    assert budget["kv_slabs"] == round(1.5 * budget["weight_slabs"])
    served = side.serve(
        model=str(glass_en),
        tenants=["a", "b", "c"],
        dtype="fp32",
        threads=1,
        memory_bytes=budget["memory_bytes"],
        max_model_len=64,
        max_seqs=8,
        max_batch_tokens=64,
        pressure="recompute",
    )
    assert served["slabs"]["weights"] == budget["weight_slabs"]
    assert served["slabs"]["kv"] == budget["kv_slabs"]
    arrivals = bursts_on_one("abc", LOAD)
    rows = [arrival.to_dict() for arrival in arrivals]
    found = side.replay(arrivals=rows, start_seconds=0.0)
    answers = [Answer(**answer) for answer in found["answers"]]
    assert [len(a.tokens) for a in answers] == [a.output_tokens for a in arrivals]
    assert figures(answers).failed == 0
    assert side.settle(seconds=0.5)["seconds"] < 0.5
    with pytest.raises(ValueError, match="send serve first"):
        side_ours.Ours().replay(arrivals=[], start_seconds=0.0)


def test_the_peer_replays_the_same_arrivals(monkeypatch):
    """VLLM is stepped as our engine is: requests enter when due, deltas carry their times."""

    class Engine:
        model_config = SimpleNamespace(get_vocab_size=lambda: 50)

        def __init__(self) -> None:
            self.live = {}

        def has_unfinished_requests(self) -> bool:
            return bool(self.live)

        def add_request(self, name, prompt, params):
            assert len(prompt["prompt_token_ids"]) == 3
            self.live[name] = params["max_tokens"]

        def step(self):
            done = []
            for name in list(self.live):
                self.live[name] -= 1
                output = SimpleNamespace(token_ids=[9])
                done.append(SimpleNamespace(request_id=name, outputs=[output]))
                if not self.live[name]:
                    del self.live[name]
            return done

    preemptions = iter([2.0, 5.0])
    metric = SimpleNamespace(name="vllm:num_preemptions")
    peer = side_vllm.Peer()
    peer._llm = SimpleNamespace(
        llm_engine=Engine(),
        get_metrics=lambda: [SimpleNamespace(name="other"), metric],
    )
    monkeypatch.setattr(
        peer._llm,
        "get_metrics",
        lambda: [SimpleNamespace(name=metric.name, value=next(preemptions))],
    )
    kinds = SimpleNamespace(DELTA="delta")
    vllm = SimpleNamespace(SamplingParams=lambda **a: a)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(
        sys.modules, "vllm.sampling_params", SimpleNamespace(RequestOutputKind=kinds)
    )
    rows = [
        Arrival(seconds=s, model="a", prompt_tokens=3, output_tokens=2, seed=1).to_dict()
        for s in (0.0, 0.02)
    ]
    found = peer.replay(arrivals=rows, start_seconds=side_vllm.time.perf_counter())
    assert [answer["tokens"] for answer in found["answers"]] == [[9, 9], [9, 9]]
    assert found["answers"][1]["token_seconds"][0] >= 0.02
    assert found["counted"] == {"vllm:num_preemptions": 3.0}
    json.dumps(found)
