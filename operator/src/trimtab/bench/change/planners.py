"""Who decides in a simulated fleet, and what is true there: both from the product's own planner."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from trimtab.bench.change.values import Decision
from trimtab.planning.estimate import evaluate
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.objectives import judge
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import Config, FleetSnapshot, IntentView
from trimtab.planning.spare import findings
from trimtab.planning.survey import Surveys
from trimtab.planning.workload import PlannedLoad

_HALVINGS = 18
_MOST_RATE = 1000.0


class FleetDecisions:
    """Plans with ``plan_fleet`` and finds out what ``next_step`` needs."""

    def __init__(self, *, policy: PlannerPolicy, clock: Callable[[], float]) -> None:
        """Prepare; ``clock`` tells seconds and is only used to tell how long planning takes."""
        self._policy = policy
        self._clock = clock
        self._surveys = Surveys()
        self._known: dict[FleetSnapshot, Mapping[str, Decision]] = {}

    def __call__(self, snapshot: FleetSnapshot) -> tuple[Mapping[str, Decision], float]:
        """Return the decision of every intent that has one, and the seconds it took.

        Equal snapshots have equal plans: what was planned before takes no time again.
        """
        if snapshot in self._known:
            return self._known[snapshot], 0.0
        began = self._clock()
        plan = plan_fleet(snapshot, self._policy, surveys=self._surveys)
        found = {f.uid: f for f in findings(snapshot, plan, policy=self._policy)}
        took = self._clock() - began
        decisions: dict[str, Decision] = {}
        for one in plan.intents:
            if one.option is None:
                continue
            finding = found.get(one.uid)
            decisions[one.uid] = Decision(
                config=one.option.config,
                replicas=one.option.replicas,
                memory_bytes=one.option.memory_bytes,
                meets=finding.meets if finding else True,
                running_meets=finding.running_meets if finding else True,
                fewest=finding.fewest if finding else one.option.replicas,
                lasts=finding.lasts if finding else True,
            )
        self._known[snapshot] = decisions
        return decisions, took


class Capacities:
    """The truth of the simulation: what one replica carries within the targets, without margin.

    It is the planner's own estimate, so predictions are exact here. The figures are about how plans
    change, not about how well they predict.
    """

    def __init__(self, fleet: FleetSnapshot, *, policy: PlannerPolicy) -> None:
        """Prepare; fingerprints, prices and capabilities are those of ``fleet``."""
        self._fleet = fleet
        self._policy = policy
        self._known: dict[object, float] = {}

    def __call__(self, intent: IntentView, config: Config) -> float:
        """Return the largest rate at which one replica meets the targets, requests per second."""
        load = intent.load
        lengths = (load.prompt_tokens, load.output_tokens) if load else (128, 64)
        key = (intent.uid, intent.targets, lengths, config)
        if key not in self._known:
            self._known[key] = self._search(intent, config, lengths)
        return self._known[key]

    def _search(self, intent: IntentView, config: Config, lengths: tuple[int, int]) -> float:
        model = intent.model
        if model is None:
            return 0.0
        low, high = 0.0, _MOST_RATE
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self._meets(intent, config, lengths, middle):
                low = middle
            else:
                high = middle
        return low

    def _meets(
        self,
        intent: IntentView,
        config: Config,
        lengths: tuple[int, int],
        rate: float,
    ) -> bool:
        if intent.model is None:
            return False
        load = PlannedLoad(rate=rate, prompt=lengths[0], output=lengths[1], assumed=False)
        option = evaluate(
            intent,
            intent.model,
            config,
            replicas=1,
            load=load,
            snapshot=self._fleet,
            policy=self._policy,
        )
        bare = replace(option, margin_permille=0, ttft_margin_permille=0)
        latency = replace(intent, objective="TargetLatency")
        return (
            not option.predicted.overloaded
            and judge(latency, bare, load=load, priced=False, policy=self._policy).meets
        )
