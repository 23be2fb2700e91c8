"""What scenarios are built from: intents, chart values, a client that never stops asking."""

from __future__ import annotations

import threading
from typing import Any

from e2e import stack as st

TEAM = "team-a"
QUICK = {"operator": {"fingerprintGrid": "quick"}, "gateway": {"replicas": 1}}
SOURCES = {
    "sources": {
        "hostPath": {"enabled": True, "allowedPrefixes": [str(st.model_folder())]},
        "huggingFace": {"enabled": True},
        "image": {"enabled": True},
    }
}


def an_intent(name: str, **spec: Any) -> dict[str, Any]:
    """An InferenceIntent that costs little and serves SmolLM2 from the claim `models`."""
    source = {"persistentVolumeClaim": {"claimName": "models", "path": "smollm2-135m"}}
    base = {
        "model": {"source": source},
        "objective": "MinCost",
        "load": {"requestsPerSecond": "0.1", "promptTokens": 32, "outputTokens": 32},
    }
    return {
        "apiVersion": "trimtab.dev/v1alpha1",
        "kind": "InferenceIntent",
        "metadata": {"name": name, "namespace": TEAM},
        "spec": base | spec,
    }


def a_shared(language: str, *, name: str = "", **spec: Any) -> dict[str, Any]:
    """A Shared intent of a model so small that the scenario is about who serves it."""
    source = {"persistentVolumeClaim": {"claimName": "models", "path": f"glassllm-{language}"}}
    base = {
        "model": {"source": source},
        "sharing": "Shared",
        "load": {"requestsPerSecond": "0.2", "promptTokens": 16, "outputTokens": 24},
    }
    return an_intent(name or f"glass-{language}", **base | spec)


class Client(threading.Thread):
    """Streams one answer after another until told to stop; remembers every failure.

    The gateway's address is looked up once: each look is a process, and the API server may be away.
    """

    def __init__(
        self, stack: st.Stack, *, token: str, model: str, pause_seconds: float = 0.0
    ) -> None:
        super().__init__(daemon=True)
        self.answers: list[st.Answer] = []
        self.failures: list[str] = []
        self._gateway, self._token, self._model = stack.gateway, token, model
        self._pause_seconds = pause_seconds
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(self._pause_seconds):
            try:
                self.answers.append(
                    st.stream_chat(
                        self._gateway, token=self._token, model=self._model,
                        prompt="Count to ten.", max_tokens=24,
                    )
                )  # fmt: skip
            except (st.StreamFailedError, OSError) as exc:
                self.failures.append(str(exc))

    def stop(self) -> None:
        self._stopping.set()
        self.join(timeout=120)
