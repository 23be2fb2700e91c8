"""Observed intents and plans as tests want them."""

from __future__ import annotations

import json
from typing import Any

from trimtab.observe.inspections import Inspection, ModelFacts, parse_verdict
from trimtab.observe.intents import ObservedIntent
from trimtab.observe.records import IntentRecord, intent
from trimtab.planning.plan import (
    Alternative,
    Confidence,
    IntentPlan,
    Latency,
    Option,
    Prediction,
)
from trimtab.planning.snapshot import Config
from trimtab.reconcile.inferenceintent.jobs import source_digest
from trimtab.reconcile.snapshot import parse_intent
from trimtab.settings import HostPathPolicy, Settings, Sources

SETTINGS = Settings(
    system_namespace="trimtab-system",
    worker_image="worker:1",
    sources=Sources(hostPath=HostPathPolicy(enabled=True, allowedPrefixes=("/srv/models",))),
)
VERDICT = json.dumps(
    {
        "v": 1,
        "ok": True,
        "family": "llama",
        "architecture": {
            "family": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "attention_heads": 9,
            "kv_heads": 3,
            "head_dim": 64,
            "vocab_size": 49152,
            "tied_embeddings": True,
        },
        "depth": 30,
        "precision": "bf16",
        "parameters": 134515008,
        "weightBytes": 269030016,
        "contextLength": 2048,
        "cpuModel": "Test CPU",
    }
)
CLAIM = {"persistentVolumeClaim": {"claimName": "models", "path": "smollm2"}}


def facts() -> ModelFacts:
    found = parse_verdict(VERDICT)
    assert isinstance(found, ModelFacts)
    return found


def a_record(
    name: str = "chat", *, generation: int = 1, status: Any = None, **spec: Any
) -> IntentRecord:
    annotations = spec.pop("annotations", {})
    return intent(
        {
            "metadata": {
                "name": name,
                "namespace": "team-a",
                "uid": f"uid-{name}",
                "generation": generation,
                "resourceVersion": "1",
                "creationTimestamp": "2026-11-23T00:00:00Z",
                "annotations": annotations,
            },
            "spec": {"model": {"source": CLAIM}, "objective": "MinCost"} | spec,
            "status": status or {},
        }
    )


def a_latency(mean_us: int, p95_us: int) -> Latency:
    return Latency(
        mean_us=mean_us,
        p50_us=mean_us,
        p95_us=p95_us,
        p99_us=p95_us,
        percentile=95,
        percentile_us=p95_us,
    )


def an_option(*, precision: str = "bf16", threads: int = 1, **changes: Any) -> Option:
    fields: dict[str, Any] = {
        "config": Config(product="cpu", cpu_model="Test CPU", precision=precision, threads=threads),
        "replicas": 1,
        "memory_bytes": 900 * 2**20,
        "arena_bytes": 384 * 2**20,
        "kv_tokens": 4096,
        "max_model_len": 2048,
        "max_seqs": 8,
        "max_batch_tokens": 512,
        "predicted": Prediction(
            ttft=a_latency(123_400, 234_500),
            tpot=a_latency(20_000, 30_000),
            e2e=a_latency(1_400_000, 2_000_000),
            unloaded_e2e_us=900_000,
            capacity_milli_rps=4000,
            utilisation_permille=250,
            mean_batch_milli=1000,
            overloaded=False,
        ),
        "margin_permille": 150,
        "ttft_margin_permille": 200,
        "confidence": Confidence(level="Medium", reasons=("one anchor",), source="Measured"),
        "cost_per_hour_micro_usd": 45_000,
        "cost_per_million_output_tokens_micro_usd": None,
        "cost_per_million_at_capacity_micro_usd": None,
        "fingerprint": "0123456789abcdef",
    }
    return Option(**(fields | changes))


def a_plan(record: IntentRecord, **changes: Any) -> IntentPlan:
    option = an_option()
    fields: dict[str, Any] = {
        "uid": record.uid,
        "namespace": record.namespace,
        "name": record.name,
        "generation": record.generation,
        "verdict": "Planned",
        "reason": "Chosen",
        "message": "Cheapest that carries the load.",
        "option": option,
        "alternatives": (
            Alternative(
                config=option.config, option=option, reason="Costlier", why_not="Costs more."
            ),
        ),
    }
    return IntentPlan(**(fields | changes))


def an_observed(record: IntentRecord | None = None, **changes: Any) -> ObservedIntent:
    """An intent that was read and planned, and has no objects yet."""
    record = record or a_record()
    parsed = parse_intent(record)
    source = source_digest(parsed.spec.model.source)
    fields: dict[str, Any] = {
        "record": record,
        "intent": parsed,
        "inspection": Inspection(source_digest=source, state="Done", facts=facts()),
        "plan": a_plan(record),
    }
    return ObservedIntent(**(fields | changes))
