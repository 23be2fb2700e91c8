"""The few options of an intent whose queues are simulated before one of them is chosen (planner.md §6).

The closed form is optimistic where requests queue, and how much differs from option to option. So the
option that looks best is simulated and takes its place among the others again, until the best one
has been simulated or the short list is full. What runs is simulated before all of them: beside an
estimate in closed form a simulated option looks slow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.planning.objectives import Judged, first, judge, rank
from trimtab.planning.plan import Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.queue_figures import with_queue
from trimtab.planning.simulations import Simulations
from trimtab.planning.snapshot import FleetSnapshot, IntentView, ModelView
from trimtab.planning.sources import Sources
from trimtab.planning.survey import is_priced
from trimtab.planning.workload import PlannedLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortList:
    """All options in order of preference, those that were simulated with what requests met.

    Attributes:
        ranked: The options; of those that meet the objective the simulated ones come first.
        running: What runs now.
        waits: The plan's budget was used up before the best option was simulated.
    """

    ranked: tuple[Judged, ...]
    running: Judged | None = None
    waits: bool = False


def short_list(
    intent: IntentView,
    model: ModelView,
    every: Sequence[Judged],
    *,
    running: Judged | None,
    load: PlannedLoad,
    fits: Callable[[Option], bool],
    simulations: Simulations,
    sources: Sources,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
) -> ShortList:
    """Return the options with the best of them simulated.

    Args:
        intent: Whose objective counts.
        model: What it serves.
        every: All options in closed form.
        running: What runs now in closed form; None if nothing does.
        load: What is planned for; without a rate nothing queues.
        fits: Whether the fleet has room for an option at all.
        simulations: The plan's, with what is left of its budget.
        sources: The plan's.
        snapshot: What is planned for.
        policy: Budgets.
    """
    options = list(every)
    run = Trials(
        intent,
        model,
        load,
        simulations=simulations,
        sources=sources,
        snapshot=snapshot,
        policy=policy,
    )
    if running is not None and run.open:
        here = next((n for n, j in enumerate(options) if j.option == running.option), None)
        running = run.simulated(running) or running
        if here is not None:
            options[here] = running
    for _ in range(policy.short_list):
        if not run.open:
            break
        best = first(intent, options, fits=fits, policy=policy)
        if best is None or best.option.simulated:
            break
        refined = run.simulated(best)
        if refined is None:
            break
        options[next(n for n, j in enumerate(options) if j is best)] = refined
    return ShortList(
        ranked=tuple(_proven_first(rank(intent, options, policy=policy))),
        running=running,
        waits=run.waits,
    )


class Trials:
    """The simulations of one intent at one load.

    Attributes:
        waits: The plan's budget was used up before an option was simulated.
    """

    def __init__(
        self,
        intent: IntentView,
        model: ModelView,
        load: PlannedLoad,
        *,
        simulations: Simulations,
        sources: Sources,
        snapshot: FleetSnapshot,
        policy: PlannerPolicy,
    ) -> None:
        self._intent, self._model, self._load = intent, model, load
        self._simulations, self._sources = simulations, sources
        self._snapshot, self._policy = snapshot, policy
        self._priced = is_priced(snapshot)
        self._left = policy.intent_events if load.rate > 0 else 0
        self.waits = False

    @property
    def open(self) -> bool:
        """Whether another option may be simulated."""
        return self._left > 0 and not self.waits

    def simulated(self, judged: Judged) -> Judged | None:
        """Return an option with what requests meet; None where that cannot be found out."""
        option, predicted = judged.option, judged.option.predicted
        # What runs may be more than its GPUs hold: edited to a larger model, or their node is gone.
        if option.kv_tokens < option.max_model_len:
            return None
        if predicted.utilisation_permille > self._policy.simulated_utilisation_permille:
            return None
        source = self._sources.of(self._model, option.config).source
        found = self._simulations.of(
            source,
            option,
            load=self._load,
            block_tokens=self._snapshot.capabilities.block_tokens,
            window=self._model.architecture.sliding_window,
            most=self._left,
        )
        if found is None:
            self.waits = True
            return None
        self._left -= found.events
        if found.queue is None:
            return None
        again = with_queue(
            option,
            found.queue,
            overhead_us=self._snapshot.gateway_overhead_us,
            policy=self._policy,
        )
        return judge(self._intent, again, load=self._load, priced=self._priced, policy=self._policy)


def _proven_first(ranked: Sequence[Judged]) -> list[Judged]:
    """Put what was simulated and meets the objective before what only looks as if it did."""
    return sorted(ranked, key=lambda j: (not j.meets, j.meets and not j.option.simulated))
