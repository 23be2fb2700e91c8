"""What no watch tells: workers' states, gateways' observations, prices, others' pods."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import structlog
import yaml

from trimtab.api.v1alpha1.names import (
    COMPONENT_LABEL,
    NAME_LABEL,
    OWNER_UID_LABEL,
    PART_OF_LABEL,
)
from trimtab.kube.resources import CONFIG_MAP, POD
from trimtab.observe.anchors import WINDOW_SECONDS
from trimtab.observe.capabilities import newest
from trimtab.observe.intents import Shown
from trimtab.observe.loads import seen_by
from trimtab.observe.requests import Requested, requests
from trimtab.observe.traffic import FEWEST_REQUESTS, Traffic, merge, two_digits
from trimtab.observe.workers import (
    SERVING_STATES,
    AdminClient,
    WorkerState,
    parse_engine,
    parse_state,
)
from trimtab.planning.prices import PriceBook, PriceBookInvalidError, parse_price_book
from trimtab.planning.variation import NOTHING_SEEN
from trimtab.reconcile.inferenceintent.status import judged_at_percentile
from trimtab.reconcile.snapshot import declared_load, parse_intent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trimtab.kube.client import KubeClient
    from trimtab.observe.records import IntentRecord, PodRecord
    from trimtab.reconcile.anchors import AnchorKeeper
    from trimtab.reconcile.world import World

    Answers = Mapping[str, Mapping[str, Any] | None]

_log = structlog.get_logger(__name__)

WORKERS_SECONDS: Final = 15.0
LOADING_SECONDS: Final = 1.0
GATEWAYS_SECONDS: Final = 15.0
PRICES_SECONDS: Final = 15.0
FOREIGN_SECONDS: Final = 300.0
SHOWN_SECONDS: Final = 60.0
SILENT_SECONDS: Final = 300.0
"""So long a gateway that is ready and does not answer keeps loads as they are. Decision."""
PRICES_NAME: Final = "trimtab-prices"
PRICES_KEY: Final = "prices.yaml"
_OVERHEAD_STEP_US: Final = 500
_AT_ONCE: Final = 16
"""Intents whose loads are judged before others have a turn: about a millisecond each."""


def component_pods(world: World, component: str) -> list[PodRecord]:
    """Return the running pods of a component that have an address, sorted by name.

    A gateway counts in Trimtab's own namespace only: labels elsewhere are the tenants'.
    """
    system = world.settings.system_namespace
    found = [
        pod
        for pod in world.caches.pods
        if pod.labels.get(COMPONENT_LABEL) == component
        and pod.labels.get(NAME_LABEL) == "trimtab"
        and (component != "gateway" or pod.namespace == system)
        and pod.address
        and pod.running
        and not pod.deleting
    ]
    return sorted(found, key=lambda p: (p.namespace, p.name))


class WorkerPoller:
    """Asks every worker for its state; wakes the intent whose worker says something new."""

    def __init__(
        self,
        world: World,
        admin: AdminClient,
        *,
        wake: Callable[[str, str], None],
        replan: Callable[[], None],
        moved: Callable[[], None],
        anchors: AnchorKeeper,
    ) -> None:
        """Prepare; `moved` is told that a worker serves other models than before."""
        self._anchors = anchors
        self._world = world
        self._admin = admin
        self._wake = wake
        self._replan = replan
        self._moved = moved
        self._shown_at: dict[str, float] = {}

    async def step(self) -> float:
        """Poll once; soon again while a worker loads."""
        pods = component_pods(self._world, "worker")
        answers = await self._admin.get_all([(p.uid, p.address) for p in pods], "/-/state")
        states = self._world.worker_states
        loading = False
        for pod in pods:
            document = answers[pod.uid]
            if document is None:
                # Silence is no news: readiness says whether the pod serves.
                loading = loading or not pod.ready
                continue
            try:
                state = parse_state(pod.uid, document)
            except (ValueError, TypeError, AttributeError) as error:
                # One pod's nonsense must not keep the others from being heard.
                _log.warning("worker_state_garbled", pod=pod.name, error=repr(error))
                answers[pod.uid] = None
                continue
            loading = loading or not _settled(state)
            self._anchors.take(pod, document)
            news = states.get(pod.uid) != state
            if news:
                states[pod.uid] = state
                self._moved()
            if self._show(pod, document) or news:
                for owner in pod.owner_uids:
                    self._wake(owner, "worker")
        capabilities = newest(answers.values())
        if capabilities != self._world.capabilities:
            self._world.capabilities = capabilities
            self._replan()
        alive = {pod.uid for pod in self._world.caches.pods}
        self._anchors.keep_pods(alive)
        for uid in [uid for uid in states if uid not in alive]:
            del states[uid]
            self._world.engines.pop(uid, None)
            self._shown_at.pop(uid, None)
        if loading:
            return LOADING_SECONDS
        # A window of steps ends at a poll: where tests hurry windows, polls keep up with them.
        window = self._world.settings.policy_seconds(WINDOW_SECONDS)
        return min(WORKERS_SECONDS, max(LOADING_SECONDS, window))

    def _show(self, pod: PodRecord, document: Mapping[str, Any]) -> bool:
        """Take over what statuses show of an engine: at once who can be asked, the rest slowly."""
        world, now = self._world, self._world.clock()
        new, old = parse_engine(document), world.engines.get(pod.uid)
        if new == old:
            return False
        rest = world.settings.policy_seconds(SHOWN_SECONDS)
        soon = old is not None and old.usable == new.usable
        if soon and now - self._shown_at.get(pod.uid, float("-inf")) < rest:
            return False
        world.engines[pod.uid] = new
        self._shown_at[pod.uid] = now
        return True


def _settled(state: WorkerState) -> bool:
    return bool(state.models) and all(
        m.state in SERVING_STATES or m.state == "Failed" for m in state.models
    )


class GatewayPoller:
    """Asks every gateway replica what it saw; keeps loads and the figures that statuses show."""

    def __init__(
        self,
        world: World,
        admin: AdminClient,
        *,
        wake: Callable[[str, str], None],
        replan: Callable[[], None],
    ) -> None:
        self._world = world
        self._admin = admin
        self._wake = wake
        self._replan = replan
        self._shown_at: dict[str, float] = {}
        self._silent_since: float | None = None

    async def step(self) -> None:
        """Poll once."""
        world = self._world
        pods = component_pods(world, "gateway")
        answers = await self._admin.get_all([(p.uid, p.address) for p in pods], "/-/observed")
        documents = [d for d in answers.values() if d is not None]
        answered = bool(documents)
        changed = answered != world.gateway_answers
        world.gateway_answers = answered
        if changed:
            _log.info("gateways_answer" if answered else "gateways_silent", replicas=len(pods))
            for record in world.caches.inferenceintents:
                self._wake(record.uid, "gateway")
        if not answered:
            return
        world.traffic = merge(documents)
        overheads = [t.overhead_ms for t in world.traffic.values() if t.overhead_ms is not None]
        if overheads:
            # Coarse on purpose: it is an input of plans, and plans should not follow noise.
            median = sorted(overheads)[len(overheads) // 2] * 1000
            world.gateway_overhead_us = round(median / _OVERHEAD_STEP_US) * _OVERHEAD_STEP_US
        replan = False
        for record in world.caches.inferenceintents:
            traffic = world.traffic.get(f"{record.namespace}/{record.name}")
            if traffic is not None:
                replan = self._take(record, traffic) or replan
            elif world.shown.pop(record.uid, None) is not None:
                # Every gateway started anew and knows nothing of it: old figures judge nothing.
                self._wake(record.uid, "observed")
        replan = await self._count(pods, answers) or replan
        known = {record.uid for record in world.caches.inferenceintents}
        self._shown_at = {uid: at for uid, at in self._shown_at.items() if uid in known}
        if replan:
            self._replan()

    def _take(self, record: IntentRecord, traffic: Traffic) -> bool:
        world, now = self._world, self._world.clock()
        before = self._shown_at.get(record.uid)
        rest = world.settings.policy_seconds(SHOWN_SECONDS)
        if before is None or now - before >= rest:
            old = world.shown_of(record.uid)
            time = world.utcnow().strftime("%Y-%m-%dT%H:%M:%SZ")
            new = shown(record, traffic, before=old, time=time)
            if new != old:
                world.shown[record.uid] = new
                self._shown_at[record.uid] = now
                self._wake(record.uid, "observed")
        return world.loads.judged(record.uid, within=within(record, traffic), now=now)

    async def _count(self, pods: list[PodRecord], answers: Answers) -> bool:
        """Take in what arrived of every intent, idle ones too; return whether a load changed."""
        world, now = self._world, self._world.clock()
        documents = [d for d in answers.values() if d is not None]
        if all(answers.get(pod.uid) is not None for pod in pods if pod.ready):
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        rest = world.settings.policy_seconds(SILENT_SECONDS)
        if self._silent_since is not None and now - self._silent_since < rest:
            # Half of the gateways' counts would read as half of the load.
            return False
        epoch = world.utcnow().timestamp()
        changed = False
        for n, record in enumerate(sorted(world.caches.inferenceintents, key=lambda r: r.uid)):
            changed = self._load(record, documents, epoch=epoch, now=now) or changed
            if n % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        return changed

    def _load(
        self,
        record: IntentRecord,
        documents: list[Mapping[str, Any]],
        *,
        epoch: float,
        now: float,
    ) -> bool:
        world = self._world
        try:
            declared = declared_load(parse_intent(record))
        except ValueError:
            return False
        name = f"{record.namespace}/{record.name}"
        traffic = world.traffic.get(name)
        lengths = None
        if traffic is not None and traffic.prompt_tokens and traffic.output_tokens:
            lengths = (traffic.prompt_tokens, traffic.output_tokens)
        return world.loads.update(
            record.uid,
            declared=declared,
            seen=seen_by(documents, name, now=epoch),
            lengths=lengths,
            variation=NOTHING_SEEN if traffic is None else traffic.variation,
            several=any(d.replicas > 1 for d in world.caches.deployments.owned_by(record.uid)),
            now=now,
        )


def within(record: IntentRecord, traffic: Traffic) -> bool | None:
    """Return whether the last five minutes met the latency targets; None if that is not known."""
    targets: Mapping[str, Any] = record.spec.get("targets") or {}
    percentile = int(targets.get("percentile") or 95)
    pairs = [
        (targets.get("timeToFirstTokenMilliseconds"), traffic.ttft_ms),
        (targets.get("timePerOutputTokenMilliseconds"), traffic.tpot_ms),
    ]
    known = [(target, samples) for target, samples in pairs if target is not None and samples]
    if not known or traffic.requests < FEWEST_REQUESTS:
        return None
    return all((traffic.percentile(s, percentile) or 0.0) <= target for target, s in known)


def shown(record: IntentRecord, traffic: Traffic, *, before: Shown, time: str) -> Shown:
    """Return the figures for a status; `before` itself where no rounded figure differs."""
    targets: Mapping[str, Any] = record.spec.get("targets") or {}
    percentile = int(targets.get("percentile") or 95)
    at_percentile = judged_at_percentile(record.spec)
    figures: dict[str, str | int] = {
        "requestsPerSecond": two_digits(traffic.requests_per_second),
    }
    if at_percentile:
        figures["percentile"] = percentile
    for field, samples in (
        ("timeToFirstTokenMilliseconds", traffic.ttft_ms),
        ("timePerOutputTokenMilliseconds", traffic.tpot_ms),
    ):
        if samples:
            value = fmean(samples)
            if at_percentile:
                value = traffic.percentile(samples, percentile) or value
            figures[field] = two_digits(value)
    for field, mean in (
        ("promptTokens", traffic.prompt_tokens),
        ("outputTokens", traffic.output_tokens),
    ):
        if mean is not None:
            figures[field] = round(float(two_digits(mean)))
    if traffic.requests:
        figures["errorPermille"] = round(
            float(two_digits(1000 * traffic.errors / traffic.requests))
        )
    old = {k: v for k, v in before.figures.items() if k != "lastObservationTime"}
    enough = traffic.requests >= FEWEST_REQUESTS
    if old == figures and before.enough == enough:
        return before
    return Shown(figures=figures | {"lastObservationTime": time}, enough=enough)


class PricePoller:
    """Reads the price book; a bad one leaves the last valid one in force."""

    def __init__(
        self,
        world: World,
        client: KubeClient,
        *,
        replan: Callable[[], None],
        wake_all: Callable[[str], None],
        invalid: Callable[[Mapping[str, Any], str], Any],
    ) -> None:
        """Prepare; `invalid` is awaited with the ConfigMap and the problem, once per problem."""
        self._world = world
        self._client = client
        self._replan = replan
        self._wake_all = wake_all
        self._invalid = invalid
        self._text: str | None = None

    async def step(self) -> None:
        """Read once."""
        world = self._world
        body = await self._client.get(
            CONFIG_MAP, namespace=world.settings.system_namespace, name=PRICES_NAME
        )
        text = str(((body or {}).get("data") or {}).get(PRICES_KEY) or "")
        if text == self._text:
            return
        try:
            prices = parse_price_book(yaml.safe_load(text))
        except (yaml.YAMLError, PriceBookInvalidError) as error:
            problem = (
                f"ConfigMap {world.settings.system_namespace}/{PRICES_NAME}, key {PRICES_KEY}: "
                f"{error} {self._remains()}"
            )
            _log.warning("price_book_invalid", problem=problem)
            world.price_problem = problem
            await self._invalid(body or {}, problem)
        else:
            world.price_problem = ""
            if prices != world.prices:
                world.prices = prices
                self._replan()
        self._text = text
        self._wake_all("prices")

    def _remains(self) -> str:
        # A restarted operator has not seen the last valid book.
        if self._world.prices == PriceBook():
            return "No prices are known until it is corrected."
        return "The last valid prices stay in force."


_PLANNED_COMPONENTS = frozenset({"worker", "inspection", "fingerprint", "accuracy"})


class ForeignPoller:
    """Sums what others' pods request per node, and GPUs of ours that drain; slow, for it lists every pod of the cluster."""

    def __init__(self, world: World, client: KubeClient, *, replan: Callable[[], None]) -> None:
        self._world = world
        self._client = client
        self._replan = replan

    async def step(self) -> None:
        """List once."""
        used: dict[str, Requested] = {}
        leaving: list[tuple[str, str, Requested]] = []
        waiting: set[str] = set()
        async for pod in self._client.items(
            POD, field_selector="status.phase!=Succeeded,status.phase!=Failed"
        ):
            node = (pod.get("spec") or {}).get("nodeName")
            meta = pod.get("metadata") or {}
            labels = meta.get("labels") or {}
            ours = labels.get(PART_OF_LABEL) == "trimtab"
            planned = ours and labels.get(COMPONENT_LABEL) in _PLANNED_COMPONENTS
            owner = labels.get(OWNER_UID_LABEL, "")
            if planned and not node:
                waiting.add(owner)
            if not node or (planned and not meta.get("deletionTimestamp")):
                continue
            asked = requests(pod.get("spec") or {})
            if planned:
                leaving.append((owner, node, Requested(gpus=asked.gpus)))
                continue
            # Operator and gateway ask for tenths of a core: counted, they would cost a small node a
            # whole thread set. `operator.cpuReserveMillicores` keeps threads back for them.
            asked = replace(asked, millicores=0) if ours else asked
            used[node] = used.get(node, Requested()).plus(asked)
        for owner, node, asked in leaving:
            # No assignment holds the GPUs of a pod that drains. One of its owner's that waits for a
            # node waits for them: counted, its own plan would find no room.
            if asked.gpus and owner not in waiting:
                used[node] = used.get(node, Requested()).plus(asked)
        if used != self._world.foreign:
            self._world.foreign = used
            self._replan()
