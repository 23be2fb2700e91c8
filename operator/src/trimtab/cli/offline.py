"""A fleet plan from files alone: intents, an inventory, prices and fingerprints; no cluster."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from trimtab.api.v1alpha1.inferenceintent import InferenceIntent
from trimtab.api.v1alpha1.manifests import ManifestError, read
from trimtab.cli.model_import import inspect
from trimtab.cli.node_counts import expanded
from trimtab.cli.output import CommandError
from trimtab.observe.capabilities import ASSUMED
from trimtab.observe.inspections import Inspection, ModelFacts, parse_verdict
from trimtab.observe.intents import ObservedIntent
from trimtab.observe.quantities import byte_count, millicores
from trimtab.observe.records import intent as intent_record
from trimtab.planning.accuracy import TEXT_DIGEST, AccuracyInvalidError
from trimtab.planning.accuracy import parse as parse_accuracy
from trimtab.planning.architecture import (
    BYTES_PER_VALUE,
    Architecture,
    UnsupportedArchitectureError,
)
from trimtab.planning.fingerprint import FingerprintInvalidError, parse
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.memory import weight_bytes
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.prices import PriceBook, PriceBookInvalidError, parse_price_book
from trimtab.planning.snapshot import CpuPool, DeviceScore, FleetSnapshot, GpuPool, ModelView
from trimtab.planning.survey import Surveys
from trimtab.reconcile.inferenceintent import status, verdicts
from trimtab.reconcile.snapshot import declared_load, intent_view

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.planning.accuracy import AccuracyLoss
    from trimtab.planning.fingerprint import Fingerprint
    from trimtab.planning.plan import FleetPlan, IntentPlan
    from trimtab.planning.snapshot import Load

JSON = dict[str, Any]  # any: an object as kubectl shows it
ANY: Final = "*"
_NODE_KEYS: Final = frozenset({"name", "cpuModel", "cpu", "memory"})
_GPU_KEYS: Final = frozenset({"name", "memory", "gpu", "gpus", "gpuMemory", "gpuScores"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Nodes to plan on, and what each intent's model is."""

    path: Path
    pools: tuple[CpuPool, ...]
    gpu_pools: tuple[GpuPool, ...]
    scores: tuple[DeviceScore, ...]
    models: dict[str, ModelFacts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One intent of the files: as an object, as parsed, what its model is, the load planned for."""

    body: JSON
    intent: InferenceIntent
    facts: ModelFacts
    load: Load | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A fleet's plan with what it was made from; rows are in the files' order."""

    rows: tuple[Row, ...]
    snapshot: FleetSnapshot
    plan: FleetPlan


def shown(decided: Decided) -> list[JSON]:
    """Return each intent as an operator would leave it: spec and status with plan and alternatives."""
    plans = {plan.uid: plan for plan in decided.plan.intents}
    return [
        row.body | {"status": _status(row, plans[row.body["metadata"]["uid"]])}
        for row in decided.rows
    ]


def decide(
    *,
    intents: Sequence[Path],
    inventory: Path,
    prices: Path | None,
    fingerprints: Path | None,
    accuracy: Path | None = None,
    load_factor: float = 1.0,
    counts: Mapping[str, int] | None = None,
) -> Decided:
    """Return the fleet's plan, for those who go on from it.

    Args:
        intents: Files of InferenceIntents.
        inventory: Nodes and models.
        prices: The price book; None leaves prices unknown.
        fingerprints: Folder of documents; None leaves only rooflines.
        accuracy: Folder of measured losses; None leaves them unknown.
        load_factor: What declared request rates are multiplied by.
        counts: How many there are of a node of the inventory, by its name, instead of its count.

    Raises:
        CommandError: A file is missing or wrong; names file, field and remedy.
    """
    known = _inventory(inventory, counts=counts or {})
    objects = [found for path in intents for found in _intents(path)]
    if not objects:
        raise CommandError("The files given with -f hold no InferenceIntent.")
    losses = _losses(accuracy)
    rows = []
    for number, intent in enumerate(objects):
        body = _identified(intent, number=number)
        facts = _with_losses(_facts(intent, known), losses)
        load = declared_load(intent)
        if load is not None:
            load = replace(load, requests_per_second=load.requests_per_second * load_factor)
        rows.append(
            Row(body=body, intent=InferenceIntent.from_cluster(body), facts=facts, load=load)
        )
    snapshot = FleetSnapshot(
        intents=tuple(
            intent_view(intent_record(row.body), row.intent, model=row.facts.model, load=row.load)
            for row in rows
        ),
        pools=known.pools,
        gpu_pools=known.gpu_pools,
        scores=known.scores,
        capabilities=ASSUMED,
        fingerprints=_fingerprints(fingerprints),
        prices=_prices(prices),
    )
    return Decided(rows=tuple(rows), snapshot=snapshot, plan=_whole_plan(snapshot))


def _whole_plan(snapshot: FleetSnapshot) -> FleetPlan:
    """Return the plan with every queue simulated, however many rounds that takes."""
    known = Surveys()
    while True:
        plan = plan_fleet(snapshot, PlannerPolicy(), surveys=known)
        if not plan.waiting:
            return plan


def _status(row: Row, plan: IntentPlan) -> JSON:
    observed = ObservedIntent(
        record=intent_record(row.body),
        intent=row.intent,
        inspection=Inspection(source_digest="", state="Done", facts=row.facts),
        plan=plan,
        load=row.load,
        load_source="Declared" if row.load else "Assumed",
    )
    verdict = verdicts.planned(observed, violation=None)
    found = status.build(observed, endpoint="", plan_digest="")
    kept: JSON = {key: found[key] for key in ("model", "plan", "alternatives") if key in found}
    condition = {
        "type": str(verdict.type),
        "status": verdict.status,
        "reason": str(verdict.reason),
        "message": verdict.message,
    }
    return {"conditions": [condition], **kept}


def _intents(path: Path) -> list[InferenceIntent]:
    try:
        resources = read(_text(path), origin=str(path))
    except ManifestError as error:
        raise CommandError(str(error)) from error
    return [resource for resource in resources if isinstance(resource, InferenceIntent)]


def _identified(intent: InferenceIntent, *, number: int) -> JSON:
    body = intent.to_manifest()
    body["metadata"] = {
        "namespace": "default",
        **body["metadata"],
        "uid": f"{number:08d}",
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": "1970-01-01T00:00:00Z",
    }
    return body


def _inventory(path: Path, *, counts: Mapping[str, int]) -> Inventory:
    document = _yaml(path)
    unknown = set(document) - {"nodes", "models"}
    if unknown or not isinstance(document.get("nodes"), list):
        raise CommandError(
            f"{path} must hold nodes (a list) and models (intent name: file), and nothing else: "
            f"it holds {', '.join(sorted(map(str, document))) or 'nothing'}."
        )
    cpus: list[CpuPool] = []
    gpus: list[GpuPool] = []
    scores: list[DeviceScore] = []
    for where, node in expanded(document["nodes"], counts=counts, path=path):
        if isinstance(node, dict) and "gpu" in node:
            pool, known = _gpu_pool(node, where=where)
            gpus.append(pool)
            scores += known
        else:
            cpus.append(_pool(node, where=where))
    models = {
        str(name): _read_model(path.parent / Path(str(place)).expanduser())
        for name, place in (document.get("models") or {}).items()
    }
    return Inventory(
        path=path,
        pools=tuple(cpus),
        gpu_pools=tuple(gpus),
        scores=tuple(scores),
        models=models,
    )


def _pool(node: Any, *, where: str) -> CpuPool:  # any: YAML
    if not isinstance(node, dict) or set(node) - _NODE_KEYS or not {"cpu", "memory"} <= set(node):
        raise CommandError(
            f"{where} is {node!r}: give cpu and memory as quantities, and name and cpuModel if "
            "fingerprints or prices depend on them."
        )
    try:
        return CpuPool(
            node=str(node.get("name") or where.rsplit(" ", 1)[-1]),
            cpu_model=str(node.get("cpuModel") or ""),
            millicores=millicores(node["cpu"]),
            memory_bytes=byte_count(node["memory"]),
        )
    except (ValueError, ArithmeticError) as error:
        raise CommandError(f"{where}: {error}. Write quantities such as 2 and 8Gi.") from error


def _gpu_pool(node: JSON, *, where: str) -> tuple[GpuPool, list[DeviceScore]]:
    """Read a node with GPUs, and how slow each of them is where that is known."""
    count = node.get("gpus", 1)
    scores = node.get("gpuScores") or []
    if (
        set(node) - _GPU_KEYS
        or not {"memory", "gpuMemory"} <= set(node)
        or type(count) is not int
        or count < 1
    ):
        raise CommandError(
            f"{where} is {node!r}: give gpu (the product), gpus (how many), gpuMemory and memory as "
            "quantities, and no cpu: a node's CPUs feed its GPUs."
        )
    if not isinstance(scores, list) or not all(type(s) is int and s > 0 for s in scores):
        raise CommandError(
            f"{where}: gpuScores is {scores!r}; give whole numbers, 1000 for the median GPU."
        )
    name = str(node.get("name") or where.rsplit(" ", 1)[-1])
    try:
        pool = GpuPool(
            node=name,
            product=str(node["gpu"]),
            gpus=count,
            gpu_memory_bytes=byte_count(node["gpuMemory"]),
            memory_bytes=byte_count(node["memory"]),
        )
    except (ValueError, ArithmeticError) as error:
        raise CommandError(f"{where}: {error}. Write quantities such as 80Gi.") from error
    return pool, [
        DeviceScore(
            device=f"{name}/{n}",
            node=name,
            product=pool.product,
            compute_permille=score,
            memory_permille=score,
        )
        for n, score in enumerate(scores[:count])
    ]


def _facts(intent: InferenceIntent, inventory: Inventory) -> ModelFacts:
    namespace = intent.metadata.namespace or "default"
    for name in (f"{namespace}/{intent.metadata.name}", intent.metadata.name, ANY):
        if name in inventory.models:
            return inventory.models[name]
    raise CommandError(
        f"{inventory.path}: models have no entry for InferenceIntent {namespace}/"
        f"{intent.metadata.name}: add `{intent.metadata.name}: PATH`, or `'*': PATH` for all."
    )


def _read_model(path: Path) -> ModelFacts:
    """Read a model's folder or file, the message of an inspection, or a bare config.json."""
    if path.suffix != ".json":
        found = parse_verdict(json.dumps(inspect(path, shown_as=str(path))))
    else:
        document = _yaml(path)
        if "model_type" in document:
            return _from_config(document, path=path)
        found = parse_verdict(json.dumps(document))
    if not isinstance(found, ModelFacts):
        raise CommandError(f"{path}: {found.message}")
    return found


def _from_config(config: JSON, *, path: Path) -> ModelFacts:
    """Read the facts from Hugging Face's configuration, for models that are not here."""
    try:
        architecture = Architecture.from_hf_config(config)
        depth = int(config["num_hidden_layers"])
    except (UnsupportedArchitectureError, KeyError, ValueError) as error:
        raise CommandError(f"{path}: {error}") from error
    precision = {"float32": "fp32", "float16": "fp16"}.get(
        str(config.get("dtype") or config.get("torch_dtype")), "bf16"
    )
    weights = weight_bytes(architecture, depth=depth, precision=precision)
    return ModelFacts(
        model=ModelView(
            architecture=architecture,
            depth=depth,
            precision=precision,
            weight_bytes=weights,
            context_length=int(config.get("max_position_embeddings") or 2048),
        ),
        family=str(config["model_type"]),
        quantization=None,
        format="safetensors",
        parameters=weights // BYTES_PER_VALUE[precision],
        chat_template=False,
        cpu_model="",
    )


def _fingerprints(folder: Path | None) -> tuple[Fingerprint, ...]:
    if folder is None:
        return ()
    if not folder.is_dir():
        raise CommandError(f"--fingerprints {folder} is no folder: name one with .json documents.")
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(parse(_text(path)))
        except FingerprintInvalidError as error:
            raise CommandError(f"{path}: {error}") from error
    return tuple(found)


def _losses(folder: Path | None) -> tuple[AccuracyLoss, ...]:
    if folder is None:
        return ()
    if not folder.is_dir():
        raise CommandError(f"--accuracy {folder} is no folder: name one with .json documents.")
    found: list[AccuracyLoss] = []
    for path in sorted(folder.glob("*.json")):
        try:
            found += parse_accuracy(_text(path))
        except AccuracyInvalidError as error:
            raise CommandError(f"{path}: {error}") from error
    return tuple(found)


def _with_losses(facts: ModelFacts, losses: Sequence[AccuracyLoss]) -> ModelFacts:
    """Return the facts with what was measured on these very files with this release's engine."""
    model = facts.model
    fitting: dict[str, AccuracyLoss] = {}
    for loss in losses:
        key = loss.key
        same = (key.model, key.own) == (model.source, model.precision)
        if same and (key.engine_version, key.text) == (ASSUMED.version, TEXT_DIGEST):
            fitting[loss.precision] = loss
    return replace(facts, model=replace(model, losses=tuple(fitting.values())))


def _prices(path: Path | None) -> PriceBook:
    if path is None:
        return PriceBook()
    try:
        return parse_price_book(_yaml(path))
    except PriceBookInvalidError as error:
        raise CommandError(f"{path}: {error}") from error


def _yaml(path: Path) -> JSON:
    try:
        document = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise CommandError(f"{path} is not valid YAML: {error}.") from error
    if not isinstance(document, dict):
        raise CommandError(f"{path} must hold an object, not {type(document).__name__}.")
    return document


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} cannot be read: {error}.") from error
