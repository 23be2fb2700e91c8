"""Trimtab installed on a cluster: what the demo and the scenarios share.

A `Stack` is the chart's release plus a folder of models that the cluster offers as a PersistentVolume.
Every wait ends at its deadline with what it saw last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from e2e.cluster.api import Cluster

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts" / "trimtab"
SYSTEM = "trimtab-system"
RELEASE = "trimtab"
STREAM_TIMEOUT_SECONDS = 120
T = TypeVar("T")

DEMO_PRICES = {
    "currency": "USD",
    "dated": "2026-11-01",
    "gpuHour": {"NVIDIA-H100-*": "4.50", "NVIDIA-A100-80*": "3.50", "NVIDIA-L4": "0.80"},
    "cpuHour": {"*": "0.0400"},
    "memoryGiBHour": "0.0050",
}


class WaitTimeoutError(TimeoutError):
    """Something did not come true before its deadline; the message says what was seen last."""


def wait_for(
    what: str,
    probe: Callable[[], T | None],
    *,
    seconds: float,
    interval_seconds: float = 0.25,
    seen: Callable[[], object] | None = None,
) -> T:
    """Return the first truthy answer of `probe`.

    Raises:
        WaitTimeoutError: None came within `seconds`; names what was awaited and what was seen last.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            last = seen() if seen else answer
            raise WaitTimeoutError(f"{what}: not within {seconds:g} s; last seen: {last}")
        time.sleep(interval_seconds)


def model_folder() -> Path:
    """Return where imported models are kept between runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "trimtab" / "models"


def import_model(source: str, name: str) -> Path:
    """Import `source` with `trimtab model import` unless it is there, and return its folder."""
    target = model_folder() / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "trimtab.cli", "model", "import", source, str(target)],
            check=True,
        )
    return target


def condition(obj: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the condition `kind` of an object as the API server gave it, or an empty one."""
    conditions = obj.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


@dataclasses.dataclass(slots=True, kw_only=True)
class Stack:
    """Trimtab's chart installed on `cluster`; `models` is the folder behind the claim `models`."""

    cluster: Cluster
    models: Path
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return its standard output; its errors are raised with their text."""
        return self.cluster.kubectl(*arguments, stdin=stdin)

    def trimtab(self, *arguments: str, check: bool = True) -> str:
        """Run the `trimtab` command against this cluster and return its standard output."""
        done = subprocess.run(
            [sys.executable, "-m", "trimtab.cli", *arguments],
            env=os.environ | {"KUBECONFIG": str(self.cluster.kubeconfig), "COLUMNS": "160"},
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"trimtab {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        """Return one object, or None where the server has none."""
        text = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def patch(self, kind: str, name: str, namespace: str, patch: Mapping[str, Any]) -> None:
        """Merge-patch one object."""
        self.kubectl(
            "patch", kind, name, "-n", namespace, "--type", "merge", "-p", json.dumps(patch)
        )

    def list(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """Return the objects of a namespace that `selector` picks."""
        chosen = ("-l", selector) if selector else ()
        items = json.loads(self.kubectl("get", kind, "-n", namespace, "-o", "json", *chosen))[
            "items"
        ]
        return list(items)

    def apply(self, *manifests: Mapping[str, Any] | Path, namespace: str | None = None) -> str:
        """Apply manifests, given as objects or files."""
        where = ("-n", namespace) if namespace else ()
        out = []
        for manifest in manifests:
            text = (
                manifest.read_text()
                if isinstance(manifest, Path)
                else yaml.safe_dump(dict(manifest))
            )
            out.append(self.kubectl("apply", *where, "-f", "-", stdin=text))
        return "".join(out)

    def install(self, *, extra: Sequence[Mapping[str, Any]] = (), wait_seconds: int = 180) -> str:
        """Install or upgrade the chart with the values this cluster needs, and wait for it."""
        values: list[Mapping[str, Any]] = [
            self.cluster.helm_values(),
            {"prices": DEMO_PRICES},
            self.values,
            *extra,
        ]
        self.cluster.state_dir.mkdir(parents=True, exist_ok=True)
        files = []
        for number, value in enumerate(values):
            path = self.cluster.state_dir / f"values-{number}.yaml"
            path.write_text(yaml.safe_dump(dict(value)))
            files += ["--values", str(path)]
        return self.cluster.helm(
            "upgrade", "--install", RELEASE, str(CHART), "--namespace", SYSTEM, "--create-namespace",
            "--wait", "--timeout", f"{wait_seconds}s", *files,
        )  # fmt: skip

    def namespace(self, name: str) -> None:
        """Create a namespace that admits restricted pods only, with the claim `models`."""
        labels = {"pod-security.kubernetes.io/enforce": self.cluster.pod_security}
        self.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        )
        volume = f"models-{name}"
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": volume},
                "spec": {
                    "capacity": {"storage": "10Gi"},
                    "accessModes": ["ReadOnlyMany"],
                    "persistentVolumeReclaimPolicy": "Retain",
                    "storageClassName": "",
                    "hostPath": {"path": str(self.models)},
                    "claimRef": {"namespace": name, "name": "models"},
                },
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "models", "namespace": name},
                "spec": {
                    "accessModes": ["ReadOnlyMany"],
                    "storageClassName": "",
                    "volumeName": volume,
                    "resources": {"requests": {"storage": "10Gi"}},
                },
            },
        )

    def wait_condition(
        self, name: str, namespace: str, kind: str, status: str = "True", *, reason: str | None = None,
        seconds: float = 180, generation: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Wait until an intent's condition has `status` (and `reason`), and return the intent."""
        last: dict[str, Any] = {}

        def probe() -> dict[str, Any] | None:
            nonlocal last
            last = self.get("inferenceintent", name, namespace) or {}
            found = condition(last, kind)
            good = found.get("status") == status and reason in (None, found.get("reason"))
            fresh = found.get("observedGeneration", 0) >= (
                generation or last.get("metadata", {}).get("generation", 0)
            )
            return last if good and fresh else None

        def seen() -> str:
            return json.dumps(last.get("status", {}).get("conditions", last), indent=1)

        return wait_for(
            f"InferenceIntent {namespace}/{name} condition {kind}={status} {reason or ''}",
            probe, seconds=seconds, seen=seen,
        )  # fmt: skip

    def token(self, namespace: str, account: str = "default", *, seconds: int = 3600) -> str:
        """Return a ServiceAccount token for the gateway's audience."""
        return self.kubectl(
            "create",
            "token",
            account,
            "-n",
            namespace,
            "--audience",
            "trimtab",
            "--duration",
            f"{seconds}s",
        ).strip()

    def allow(self, namespace: str, account: str = "default") -> None:
        """Let a ServiceAccount invoke every intent of its namespace."""
        self.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": {"name": "invoke", "namespace": namespace},
                "rules": [
                    {
                        "apiGroups": ["trimtab.dev"],
                        "resources": ["inferenceintents"],
                        "verbs": ["invoke"],
                    }
                ],
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": "invoke", "namespace": namespace},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "Role",
                    "name": "invoke",
                },
                "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
            },
        )

    @property
    def gateway(self) -> str:
        """Return the gateway's address as this machine reaches it, without a path."""
        return self.cluster.service_url(SYSTEM, f"{RELEASE}-gateway", 80)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One streamed answer: its text and the client's own timings in seconds."""

    text: str
    tokens: int
    ttft_seconds: float
    tpot_seconds: float | None
    finish_reason: str | None


class StreamFailedError(RuntimeError):
    """The gateway or the worker ended a stream with an error; holds the OpenAI error object."""


def stream_chat(
    gateway: str, *, token: str | None, model: str, prompt: str, max_tokens: int = 48,
    on_text: Callable[[str], None] = lambda _: None, **parameters: object,
) -> Answer:  # fmt: skip
    """Ask one question over SSE and return the answer with TTFT and TPOT = (last - first)/(n - 1).

    Raises:
        StreamFailedError: The request was refused, or the stream carried an error.
    """
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        **parameters,
    }
    return _stream(
        f"{gateway}/v1/chat/completions",
        token=token,
        body={"model": model, **body},
        on_text=on_text,
    )


def stream_completion(
    gateway: str,
    *,
    token: str | None,
    model: str,
    prompt: str,
    max_tokens: int,
    **parameters: object,
) -> Answer:
    """Continue a text over SSE; otherwise as `stream_chat`.

    Raises:
        StreamFailedError: The request was refused, or the stream carried an error.
    """
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, **parameters}
    return _stream(f"{gateway}/v1/completions", token=token, body=body, on_text=lambda _: None)


def _stream(
    url: str, *, token: str | None, body: dict[str, object], on_text: Callable[[str], None]
) -> Answer:
    asked = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}} | body
    headers = {"Content-Type": "application/json"} | (
        {"Authorization": f"Bearer {token}"} if token else {}
    )
    request = urllib.request.Request(url, json.dumps(asked).encode(), headers, method="POST")
    start = time.perf_counter()
    texts: list[str] = []
    first = last = None
    tokens, finish = 0, None
    try:
        with urllib.request.urlopen(request, timeout=STREAM_TIMEOUT_SECONDS) as response:
            for event in _events(response):
                if "error" in event:
                    raise StreamFailedError(json.dumps(event["error"]))
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                for choice in event.get("choices", []):
                    finish = choice.get("finish_reason") or finish
                    if text := choice.get("text") or choice.get("delta", {}).get("content"):
                        last = time.perf_counter()
                        first = first or last
                        texts.append(text)
                        on_text(text)
    except urllib.error.HTTPError as exc:
        raise StreamFailedError(f"{exc.code}: {exc.read().decode(errors='replace')}") from exc
    except (http.client.HTTPException, ConnectionError) as exc:
        raise StreamFailedError(f"the connection broke: {exc!r}") from exc
    if first is None or last is None:
        raise StreamFailedError("the stream ended without a token")
    return Answer(
        text="".join(texts), tokens=tokens, ttft_seconds=first - start, finish_reason=finish,
        tpot_seconds=(last - first) / (tokens - 1) if tokens > 1 else None,
    )  # fmt: skip


def _events(lines: Iterator[bytes] | http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith(b"data: ") and (data := line[6:].strip()) != b"[DONE]":
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(data)
