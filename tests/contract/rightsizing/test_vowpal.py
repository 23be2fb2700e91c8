"""Parity with Vowpal Wabbit's csoaa, the learner of Shabari: same inputs, same requests, like decisions."""

import os
from pathlib import Path

import numpy as np
import pytest

from trimtab.bench import recorded_runs
from trimtab.rightsizing.policies import Trimtab
from trimtab.rightsizing.policy import SizerPolicy
from trimtab.rightsizing.simulate import draws, replay

vowpalwabbit = pytest.importorskip(
    "vowpalwabbit",
    reason="the wheel vowpalwabbit is not installed: pip install vowpalwabbit==9.11.9",
)

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("TRIMTAB_DATA", ROOT.parent / "shared" / "data")) / "serverless"
CLASSES = (250, 500, 750, 1000, 1250, 1500, 1750, 2000)
REQUESTS = 1500
WARM_UP = 300


class Vowpal:
    """Vowpal Wabbit behind the interface of our learner; it tells only the class."""

    def __init__(self, count):
        self.count = count
        self.weights = np.zeros((count, 1))
        self.workspace = vowpalwabbit.Workspace(f"--csoaa {count} --quiet --learning_rate 0.5")

    def costs(self, x):
        """Return nought for the predicted class and one elsewhere."""
        found = np.ones(self.count)
        found[int(self.workspace.predict(f"| {self._text(x)}")) - 1] = 0.0
        return found

    def learn(self, x, cost, *, weight=1.0):
        """Learn all costs at once."""
        del weight
        labels = " ".join(f"{place + 1}:{value:.6f}" for place, value in enumerate(cost))
        self.workspace.learn(f"{labels} | {self._text(x)}")
        return True

    def _text(self, x):
        return " ".join(f"f{place}:{value:.6f}" for place, value in enumerate(x) if place)


def late_and_learned(function, asked, *, vowpal):
    """Return the shares of late and of learned requests after the warm-up."""
    policy = Trimtab(
        function,
        layout=recorded_runs.layout(function, deadlines=False),
        policy=SizerPolicy(candidates=("learned",), hinges=False),
    )
    if vowpal:
        for resource in (policy.model.cpu, policy.model.memory):
            resource.learner = Vowpal(len(resource.classes))
    found = replay(function, policy, asked)
    kept = [place for place, number in enumerate(found.number) if number >= WARM_UP]
    late = sum(found.cause[place] is not None for place in kept) / len(kept)
    learned = sum(not found.source[place].startswith("default") for place in kept) / len(kept)
    return late, learned


def test_vowpal_wabbit_decides_alike():
    """On real runs both miss within two points of one another, and both decide by themselves."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is absent: set TRIMTAB_DATA to the folder of real measurements")
    functions = recorded_runs.functions(
        recorded_runs.read_runs(DATA / "runs.csv.gz"),
        family="m5",
        classes=CLASSES,
        known=recorded_runs.read_features(DATA / "ocr-input-features.csv"),
        synthetic={"transcode"},
    )
    random = np.random.default_rng(0)
    asked = draws([len(f.inputs) for f in functions], requests=REQUESTS, random=random)
    rates = []
    for recorded, requests in zip(functions, asked, strict=True):
        function = recorded_runs.with_deadlines(recorded, regime="B", factor=1.2)
        if recorded.name == "transcode":
            function = recorded_runs.with_synthetic(
                function, sigma=0.1, split=False, random=np.random.default_rng(1)
            )
        own = late_and_learned(function, requests, vowpal=False)
        other = late_and_learned(function, requests, vowpal=True)
        assert min(own[1], other[1]) > 0.5
        rates.append((own[0], other[0], len(requests)))
    total = sum(count for *_, count in rates)
    own, other = (sum(rate[k] * rate[2] for rate in rates) / total for k in (0, 1))
    assert abs(own - other) <= 0.02
