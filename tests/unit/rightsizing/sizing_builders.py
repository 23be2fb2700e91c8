"""Builders for the right-sizer's tests: a function that is a formula, and what it uses."""

from trimtab.rightsizing.simulate import Function, Recorded
from trimtab.rightsizing.sizer import FunctionModel, Layout
from trimtab.rightsizing.types import Features, Ladder, Outcome, PeakKind, Size, Usage

CLASSES = (250, 500, 750, 1000, 1250, 1500, 1750, 2000)
LADDER = Ladder.of(cpu_m=(250, 2000, 250), mem_mib=(128, 2048, 128))
LAYOUT = Layout(numbers=("n",))
ANSWERED = Outcome()


def an_input(*numbers, **fields):
    """Return features of these numbers."""
    return Features(numbers=tuple(float(number) for number in numbers), **fields)


def a_usage(*, cpu_s=10.0, wall_s=10.0, held=False, cpu_m=1000, mem_mib=2048, peak=200.0, **fields):
    """Return what an invocation used; `held`: throttled for half of its time."""
    values = {
        "cpu_s": cpu_s,
        "wall_s": wall_s,
        "throttled_s": wall_s / 2 if held else 0.0,
        "periods_throttled": int(held),
        "peak_anon_mib": peak,
        "peak_kind": PeakKind.RESET,
        "oom": False,
        "alloc": Size(cpu_m, mem_mib),
    }
    return Usage(**(values | fields))


def a_model(**fields):
    """Return a model of one number."""
    return FunctionModel(**{"ladder": LADDER, "layout": LAYOUT} | fields)


def ran(model, number, *, cpu_s, peak=200.0, width=1.0, budget_s=10.0, idle_s=0.0):
    """Decide for an input, run it as a formula says, and let the model learn; return the decision."""
    features = an_input(number)
    decision = model.decide(features, budget_s=budget_s)
    given = decision.size.cpu_m / 1000
    wall = idle_s + cpu_s / min(given, width)
    model.observe(
        features,
        a_usage(
            cpu_s=cpu_s,
            wall_s=wall,
            held=given < width,
            cpu_m=decision.size.cpu_m,
            mem_mib=decision.size.mem_mib,
            peak=peak,
        ),
        budget_s=budget_s,
    )
    return decision


def a_function(works, *, deadline_s=10.0, floors=None, numbers=None, runs=5, width=1.0):
    """Return a recorded function: each input's CPU seconds, which are its feature unless one is given."""
    inputs = tuple(
        Recorded(
            name=f"input-{place}",
            features=an_input(numbers[place] if numbers else work),
            seconds={cpu: (work / min(cpu / 1000, width),) * runs for cpu in CLASSES},
            floor_mib=floors[place] if floors else 128,
        )
        for place, work in enumerate(works)
    )
    return Function(
        name="formula", inputs=inputs, ladder=LADDER, deadlines=(deadline_s,) * len(inputs)
    )
