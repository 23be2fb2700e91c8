"""An InferenceIntent as an operator leaves it: planned, placed, serving, one alternative each way."""

from __future__ import annotations

from typing import Any


def a_served_intent() -> dict[str, Any]:
    """A Ready intent with a chosen option and two that lost."""
    now = "2026-11-01T00:00:00Z"

    def condition(kind: str, status: str, reason: str, message: str) -> dict[str, Any]:
        return {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": 2,
            "lastTransitionTime": now,
        }

    return {
        "apiVersion": "trimtab.dev/v1alpha1",
        "kind": "InferenceIntent",
        "metadata": {"name": "chat", "namespace": "team-a", "generation": 2},
        "spec": {
            "model": {"source": {"persistentVolumeClaim": {"claimName": "models"}}},
            "objective": "TargetLatency",
            "targets": {"timePerOutputTokenMilliseconds": 50},
        },
        "status": {
            "conditions": [
                condition("Ready", "True", "Serving", "InferenceIntent team-a/chat serves."),
                condition("Fingerprinted", "True", "Measured", "Measured on one thread."),
                condition("Planned", "True", "Chosen", "The cheapest option within the target."),
                condition("Placed", "True", "Placed", "2 of 2 replicas exist."),
                condition("Serving", "True", "Serving", "InferenceIntent team-a/chat serves."),
                condition(
                    "WithinTarget",
                    "False",
                    "OutsideTarget",
                    "p95 TPOT is 63 ms, the target 50 ms. Raise the target.",
                ),
            ],
            "observedGeneration": 2,
            "endpoint": "http://trimtab-gateway.trimtab-system/v1",
            "model": {"name": "team-a/chat", "family": "llama", "precision": "bf16"},
            "plan": {
                "product": "cpu",
                "tensorParallelSize": 1,
                "precision": "bf16",
                "threadsPerReplica": 1,
                "replicas": 2,
                "costPerHour": "0.09",
                "predicted": {
                    "percentile": 95,
                    "timeToFirstTokenMilliseconds": "410",
                    "timePerOutputTokenMilliseconds": "35.4",
                    "capacityRequestsPerSecond": "1.2",
                    "costPerMillionOutputTokens": "1.95",
                },
                "margin": {"timeToFirstTokenPercent": 20, "timePerOutputTokenPercent": 10},
                "confidence": {
                    "level": "High",
                    "source": "Measured",
                    "reasons": ["Measured in this engine on this CPU."],
                },
                "load": {
                    "source": "Declared",
                    "requestsPerSecond": "0.2",
                    "promptTokens": 64,
                    "outputTokens": 64,
                },
                "reason": "Chosen",
                "message": "The cheapest option within the target.",
            },
            "alternatives": [
                {
                    "product": "cpu",
                    "precision": "fp32",
                    "threadsPerReplica": 2,
                    "replicas": 1,
                    "costPerHour": "0.12",
                    "predicted": {
                        "timeToFirstTokenMilliseconds": "300",
                        "timePerOutputTokenMilliseconds": "52.1",
                    },
                    "margin": {"timePerOutputTokenPercent": 10},
                    "reason": "MissesTarget",
                    "message": "Its TPOT of 52.1 ms plus the margin misses 50 ms.",
                },
                {
                    "product": "NVIDIA-H100-80GB-HBM3",
                    "precision": "fp8",
                    "tensorParallelSize": 2,
                    "reason": "PriceUnknown",
                },
            ],
            "observed": {
                "timeToFirstTokenMilliseconds": "430",
                "timePerOutputTokenMilliseconds": "63",
            },
        },
    }
