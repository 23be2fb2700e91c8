"""A fleet's life in simulated time: traffic, plans, steps, replicas that are slow to start.

Everything that decides is the product's own: histories, loads, debounce, plans, findings, steps and
the transition budget. What is simulated is the traffic (Poisson counts of 10 s) and the machines.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from trimtab.bench.change.plant import Plant
from trimtab.bench.change.values import Decision, Event, Life, Planner, Story, Sustains, Taken
from trimtab.planning.load_history import BUCKET_SECONDS, Bucket, LoadHistory, join
from trimtab.planning.observed_load import busy_load, next_load
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.replan import Mode, Running, Step, Wanted, next_step
from trimtab.planning.snapshot import Config, CpuPool, FleetSnapshot, IntentView, Load
from trimtab.planning.transition import (
    Candidate,
    admit,
    devices,
    devices_by_product,
    in_transition,
)
from trimtab.planning.triggers import Debounce, SpareWatch, triggers

SECOND_US = 1_000_000
TICK_US = BUCKET_SECONDS * SECOND_US
_MINUTE_US = 60 * SECOND_US


class World:
    """One run of a story."""

    def __init__(
        self,
        story: Story,
        *,
        planner: Planner,
        sustains: Sustains,
        arrivals: Callable[[float], int],
        policy: PlannerPolicy,
        hysteresis: bool = True,
    ) -> None:
        """Prepare.

        Args:
            story: What happens.
            planner: Decides what is wanted.
            sustains: What replicas really carry.
            arrivals: Draws a count with a given mean.
            policy: Of the planner and of ``next_step``.
            hysteresis: Follow ``next_step``; without it every plan is applied as it is.
        """
        self._story = story
        self._planner = planner
        self._sustains = sustains
        self._arrivals = arrivals
        self._policy = policy
        self._hysteresis = hysteresis
        self._fleet = story.fleet
        self._declared = {i.uid: i.load for i in story.fleet.intents}
        self._held: dict[str, Load | None] = {}
        self._busy: dict[str, Load | None] = {}
        self._histories: dict[str, LoadHistory] = {}
        self._debounce = Debounce()
        self._decisions: Mapping[str, Decision] = {}
        self._spare: dict[str, tuple[Config, SpareWatch]] = {}
        self._planned: FleetSnapshot | None = None
        self._began: set[str] = set()
        self.plant = Plant(story.fleet.pools, start_us=policy.reconfiguration_seconds * SECOND_US)
        self.life = Life()

    def run(self) -> Life:
        """Live through the story; replicas of the first plan serve at once, so it begins in peace."""
        self._plan(0)
        self._act(0)
        for one in self.plant.served.values():
            for replica in one.replicas:
                replica.ready_us = 0
        events = sorted(self._story.events, key=lambda e: (e.at_seconds, e.name))
        for now_us in range(TICK_US, self._story.seconds * SECOND_US + 1, TICK_US):
            while events and events[0].at_seconds * SECOND_US <= now_us:
                self._happen(events.pop(0))
            self.plant.advance(now_us)
            self._arrive(now_us)
            self._observe(now_us)
            due = self._debounce.due_us(policy=self._policy)
            # Without rules it looks at the last minute once a minute.
            looks = self._hysteresis or now_us % _MINUTE_US == 0
            if due is not None and due <= now_us and looks:
                self._plan(now_us)
            self._act(now_us)
            self._account(now_us)
        return self.life

    def _happen(self, event: Event) -> None:
        before = self._fleet
        self._fleet = event.change(before)
        if self._fleet.pools != before.pools:
            self.plant.set_pools(self._fleet.pools)
        for intent in self._fleet.intents:
            if intent.load != self._declared.get(intent.uid):
                self._declared[intent.uid] = intent.load
                self._held.pop(intent.uid, None)
        self._debounce = self._debounce.ask(now_us=event.at_seconds * SECOND_US)

    def _arrive(self, now_us: int) -> None:
        second = now_us // SECOND_US
        start = second - BUCKET_SECONDS
        for intent in self._fleet.intents:
            rate = self._story.rates[intent.uid](start)
            count = self._arrivals(rate * BUCKET_SECONDS)
            load = intent.load
            prompt, output = (load.prompt_tokens, load.output_tokens) if load else (128, 64)
            bucket = Bucket(start, count, count * prompt, count * output)
            seen = LoadHistory(since=start, until=second, buckets=(bucket,) if count else ())
            known = self._histories.get(intent.uid)
            self._histories[intent.uid] = seen if known is None else join(known, seen)
            carried = sum(
                n * self._sustains(intent, config)
                for config, n in self.plant.ready_by_config(intent.uid, now_us=now_us).items()
            )
            self.life.arrived += count
            # A queue forgives a burst of seconds; targets are judged by what lasts.
            lasting = max(rate, min(count / BUCKET_SECONDS, self._histories[intent.uid].rate(60)))
            self.life.within += count if lasting <= carried else 0

    def _observe(self, now_us: int) -> None:
        for intent in self._fleet.intents:
            uid, history = intent.uid, self._histories[intent.uid]
            held = self._held.get(uid)
            found = next_load(history, held=held, declared=self._declared[uid], policy=self._policy)
            busy, one = None, self.plant.served.get(uid)
            if one is not None and one.wanted > 1:
                planned = found or self._declared[uid]
                busy = busy_load(
                    history, planned=planned, held=self._busy.get(uid), policy=self._policy
                )
            if found != held or busy != self._busy.get(uid):
                self._debounce = self._debounce.ask(now_us=now_us)
            self._held[uid], self._busy[uid] = found, busy

    def _snapshot(self) -> FleetSnapshot:
        intents = tuple(
            replace(
                intent,
                load=self._held.get(intent.uid) or intent.load,
                busy_load=self._busy.get(intent.uid),
            )
            for intent in self._fleet.intents
        )
        return replace(self._fleet, intents=intents, assignments=self.plant.assignments())

    def _plan(self, now_us: int) -> None:
        snapshot = self._snapshot()
        why = triggers(self._planned, snapshot)
        due = self._debounce.due_us(policy=self._policy)
        waited = 0.0
        if due is not None and self._debounce.first_us is not None:
            waited = (due - self._debounce.first_us) / SECOND_US
        self._debounce = Debounce()
        if not why:
            return
        self._decisions, took = self._planner(snapshot)
        self._planned = snapshot
        self.life.plans.append((now_us // SECOND_US, why, waited, took))
        for uid, decision in self._decisions.items():
            running = self.plant.running(uid, now_us=now_us)
            if running is None:
                continue
            config, watch = self._spare.get(uid, (running.config, SpareWatch()))
            watch = watch if config == running.config else SpareWatch()
            fewest = min(decision.fewest, running.replicas)
            self._spare[uid] = (running.config, watch.seen(fewest, now_us=now_us))

    def _act(self, now_us: int) -> None:
        newcomers = any(self.plant.ready(uid, now_us=now_us) == 0 for uid in self._decisions)
        candidates = [
            candidate
            for intent in self._fleet.intents
            if (candidate := self._candidate(intent, now_us, newcomers=newcomers)) is not None
        ]
        totals = devices_by_product(self.plant.pools.values())
        steps = {c.uid: c.step for c in candidates}
        if self._hysteresis:
            steps = admit(candidates, totals=totals, now_us=now_us, policy=self._policy)
        generations = {i.uid: i.generation for i in self._fleet.intents}
        for candidate in sorted(candidates, key=lambda c: c.uid):
            step = steps[candidate.uid]
            if step.kind == "Keep":
                if step.held == "None":
                    # What an edit wants is what runs.
                    self.plant.served[candidate.uid].generation = generations[candidate.uid]
                continue
            decision = self._decisions[candidate.uid]
            memory = decision.memory_bytes
            if step.kind == "Scale":
                memory = self.plant.served[candidate.uid].memory_bytes
            self.plant.apply(
                candidate.uid,
                step,
                memory_bytes=memory,
                generation=generations[candidate.uid],
                now_us=now_us,
            )
            second = now_us // SECOND_US
            self.life.taken.append(
                Taken(at_seconds=second, uid=candidate.uid, step=step, before=candidate.running)
            )
            # What changed here is an input of the next plan.
            self._debounce = self._debounce.ask(now_us=now_us)

    def _candidate(self, intent: IntentView, now_us: int, *, newcomers: bool) -> Candidate | None:
        decision = self._decisions.get(intent.uid)
        running = self.plant.running(intent.uid, now_us=now_us)
        wanted = None
        if decision is not None:
            watch = self._spare.get(intent.uid, (None, SpareWatch()))[1]
            pins = intent.constraints
            wanted = Wanted(
                config=decision.config,
                replicas=decision.replicas,
                generation=intent.generation,
                least=pins.min_replicas or 1,
                most=pins.max_replicas,
                meets=decision.meets,
                running_meets=decision.running_meets,
                fewest=watch.fewest(now_us=now_us, policy=self._policy),
                fewest_now=decision.fewest,
                lasts=decision.lasts,
                room=self.plant.room(decision.config, memory_bytes=decision.memory_bytes),
                swaps=self.plant.swaps(
                    intent.uid, decision.config, memory_bytes=decision.memory_bytes
                ),
                needed=newcomers and running is not None and _takes_less(decision, running),
            )
        if self._hysteresis:
            step = next_step(running, wanted, now_us=now_us, policy=self._policy)
        else:
            step = _at_once(running, wanted)
        if step is None:
            return None
        return Candidate(
            uid=intent.uid,
            priority=intent.priority,
            created_seconds=intent.created_seconds,
            running=running,
            step=step,
        )

    def _account(self, now_us: int) -> None:
        used, starting = self.plant.devices(now_us=now_us)
        self.life.device_seconds += used * BUCKET_SECONDS
        self.life.starting_device_seconds += starting * BUCKET_SECONDS
        totals = devices_by_product(self.plant.pools.values())
        moving: dict[str, list[int]] = {}
        for uid, one in self.plant.served.items():
            running = self.plant.running(uid, now_us=now_us)
            if running is None:
                continue
            if running.ready:
                self._began.add(uid)
            if not one.lost and uid in self._began:
                self.life.least_ready = min(self.life.least_ready, running.ready)
            if not one.lost:
                count = in_transition(running, now_us=now_us, policy=self._policy)
                moving.setdefault(running.config.product, []).append(count)
        for product, counts in moving.items():
            several = sum(counts) if sum(c > 0 for c in counts) > 1 else 0
            share = several / max(1, totals.get(product, 0))
            self.life.most_in_transition = max(self.life.most_in_transition, share)


def _takes_less(decision: Decision, running: Running) -> bool:
    wanted = decision.replicas * devices(decision.config)
    return wanted < running.replicas * devices(running.config)


def _at_once(running: Running | None, wanted: Wanted | None) -> Step | None:
    """Do what the plan says, as an operator without rules would."""
    if wanted is None:
        return None
    if running is None:
        return Step(kind="Create", config=wanted.config, replicas=wanted.replicas, cause="New")
    if wanted.config != running.config:
        mode: Mode = "MakeBeforeBreak" if wanted.room else "BreakBeforeMake"
        return Step(
            kind="Move", config=wanted.config, replicas=wanted.replicas, cause="Better", mode=mode
        )
    if wanted.replicas != running.replicas:
        return Step(kind="Scale", config=running.config, replicas=wanted.replicas, cause="Better")
    return Step(kind="Keep", config=running.config, replicas=running.replicas)


def without_hysteresis(policy: PlannerPolicy) -> PlannerPolicy:
    """Return the constants of a planner that follows the last minute and moves for any gain."""
    return replace(
        policy,
        switching_cost_permille=0,
        reconfiguration_scale_seconds=10**9,
        load_sigma_milli=0,
        load_low_permille=1000,
        load_high_permille=1000,
        load_low_seconds=60,
        load_rise_seconds=(60,),
        busy_window_seconds=60,
        busy_rate_seconds=60,
        spare_margin_permille=0,
    )


def lose(pools: Iterable[CpuPool], nodes: Sequence[str]) -> tuple[CpuPool, ...]:
    """Return the pools without some nodes."""
    return tuple(pool for pool in pools if pool.node not in nodes)
