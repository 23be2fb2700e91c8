"""What a fleet's plan comes to: who is served with what, which devices that takes, what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.cli import why_view
from trimtab.planning.architecture import architecture_hash
from trimtab.planning.transition import devices
from trimtab.reconcile.inferenceintent.status import money

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.cli.offline import Decided
    from trimtab.planning.plan import IntentPlan
    from trimtab.planning.snapshot import Config

JSON = dict[str, Any]  # any: an object as kubectl shows it


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One intent as text."""

    intent: str
    option: str
    outcome: str
    ttft: str
    tpot: str
    cost_per_hour: str
    cost_per_million: str
    used: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """How many devices of a kind, and nodes that have them, the plan takes of how many there are."""

    kind: str
    unit: str
    devices: int
    of_devices: int
    nodes: int
    of_nodes: int


def lines(bodies: Sequence[JSON]) -> list[Line]:
    """Return one line per intent."""
    return [_line(body) for body in bodies]


def _line(body: JSON) -> Line:
    metadata, planned = body["metadata"], body["status"]["conditions"][0]
    options = why_view.option_lines({"status": {"plan": body["status"].get("plan")}})
    chosen = options[0] if options else None
    return Line(
        intent=f"{metadata['namespace']}/{metadata['name']}",
        option=chosen.option if chosen else "-",
        ttft=chosen.ttft if chosen else "",
        tpot=chosen.tpot if chosen else "",
        cost_per_hour=chosen.cost_per_hour if chosen else "",
        cost_per_million=chosen.cost_per_million if chosen else "",
        used=_used(body["status"].get("plan") or {}),
        outcome=str(planned["reason"]),
    )


def _used(plan: JSON) -> str:
    rate = (plan.get("load") or {}).get("requestsPerSecond")
    capacity = (plan.get("predicted") or {}).get("capacityRequestsPerSecond")
    if rate is None or not capacity or not float(capacity):
        return ""
    return f"{100 * float(rate) / float(capacity):.0f} %"


def taken(decided: Decided) -> list[Taken]:
    """Return what the plan takes of each kind of device, sorted by kind."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    have: dict[tuple[str, str], dict[str, int]] = {}
    for pool in decided.snapshot.pools:
        have.setdefault(("threads", pool.cpu_model), {})[pool.node] = pool.millicores // 1000
    for gpus in decided.snapshot.gpu_pools:
        have.setdefault(("GPUs", gpus.product), {})[gpus.node] = gpus.gpus
    for plan in _workers(decided):
        config = plan.option.config if plan.option else None
        if config is None:
            continue
        here = found.setdefault(_kind(config), {})
        for node, replicas in plan.nodes:
            here[node] = here.get(node, 0) + replicas * devices(config)
    return [
        Taken(
            kind=f"cpu {name}".strip() if unit == "threads" else name,
            unit=unit,
            devices=sum(found.get((unit, name), {}).values()),
            of_devices=sum(nodes.values()),
            nodes=sum(count > 0 for count in found.get((unit, name), {}).values()),
            of_nodes=len(nodes),
        )
        for (unit, name), nodes in sorted(have.items())
    ]


def _kind(config: Config) -> tuple[str, str]:
    return ("threads", config.cpu_model) if config.product == "cpu" else ("GPUs", config.product)


def _workers(decided: Decided) -> list[IntentPlan]:
    """Return one plan per worker: members of a group share theirs."""
    found: dict[str, IntentPlan] = {}
    for plan in decided.plan.intents:
        found.setdefault(plan.group.id if plan.group else plan.uid, plan)
    return list(found.values())


def unused(decided: Decided) -> list[str]:
    """Return which fingerprints no option can rest on, and why, a sentence for each reason."""
    snapshot = decided.snapshot
    models = {architecture_hash(row.facts.model.architecture) for row in decided.rows}
    products = {pool.product for pool in snapshot.pools} | {g.product for g in snapshot.gpu_pools}
    cpus = {pool.cpu_model for pool in snapshot.pools}
    of_model, of_product = [], []
    for key in (fingerprint.key for fingerprint in snapshot.fingerprints):
        if key.architecture not in models:
            of_model.append(key)
        elif key.product not in products or (key.product == "cpu" and key.cpu_model not in cpus):
            of_product.append(key)
    said = []
    if of_model:
        said.append(f"{len(of_model)} fingerprints are of no model that is asked for.")
    if of_product:
        names = sorted({key.cpu_model or key.product for key in of_product})
        said.append(
            f"{len(of_product)} fingerprints are of products that the inventory does not name like "
            f"this: {', '.join(names)}."
        )
    return said


def sentences(decided: Decided, *, load_factor: float = 1.0) -> list[str]:
    """Return what it comes to, a sentence each."""
    plans = decided.plan.intents
    served = [plan for plan in plans if plan.option is not None]
    costs = [p.option.cost_per_hour_micro_usd for p in served if p.option]
    known = [cost for cost in costs if cost is not None]
    said = [f"{len(served)} of {len(plans)} intents are planned."]
    if known:
        total = sum(known)
        month = total * 730
        said.append(
            f"They cost {money(total)} USD per hour, {month / 1_000_000:,.2f} USD in 730 hours."
        )
    if len(known) < len(costs):
        said.append(f"{len(costs) - len(known)} of them have no price and are not in that sum.")
    if load_factor != 1.0:
        unloaded = sum(row.load is None for row in decided.rows)
        said.append(f"Declared request rates were multiplied by {load_factor:g}.")
        if unloaded:
            said.append(f"{unloaded} intents declare none: one request at a time is assumed.")
    said += unused(decided)
    return said + [
        f"{one.kind}: {one.devices} of {one.of_devices} {one.unit} on {one.nodes} of "
        f"{one.of_nodes} nodes."
        for one in taken(decided)
    ]
