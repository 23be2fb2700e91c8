"""What planner-cpu creates in a cluster, and that nothing of it stays."""

import asyncio
import json
from dataclasses import replace

import pytest

from tests.unit.bench.road_builders import INSPECTION, PRICES, SHAPE, documents, forecast_of
from trimtab.bench.open_loop import Endpoint
from trimtab.bench.road import conduct
from trimtab.bench.road.conduct import Conductor
from trimtab.bench.road.ledger import Ledger
from trimtab.bench.road.matrix import Way, blocks
from trimtab.bench.road.stage import CannotServeError, Served, Stage
from trimtab.cli.output import CommandError
from trimtab.kube.errors import ApiError

CLAIM = {"persistentVolumeClaim": {"claimName": "models"}}
HOST = {"hostPath": {"path": "/models/smollm2-135m"}}
INTENTS = "/apis/trimtab.dev/v1alpha1/namespaces/bench/inferenceintents"
TRUE = {"status": "True"}


class FakeCluster:
    """An API server that keeps what is applied, and an operator that serves it at once."""

    manager = "test"

    def __init__(self, *, there=(), conditions=("Ready", "Fingerprinted")):
        self.objects = {path: {"metadata": {"name": path.rsplit("/", 1)[-1]}} for path in there}
        self.conditions = conditions
        self.asked = []

    async def request(self, method, path, *, query=None, body=None, **_):
        self.asked.append((method, path))
        if method == "PATCH":
            kept = self.objects.get(path, {"metadata": {}})
            self.objects[path] = kept | body | {"metadata": kept["metadata"] | body["metadata"]}
            if path.startswith(INTENTS):
                self.objects[path]["status"] = self._status()
        elif method == "DELETE":
            if self.objects.pop(path, None) is None:
                raise ApiError(method=method, path=path, code=404, status={})
        elif path.endswith("/token"):
            return {"status": {"token": "secret"}}
        return {"items": []}

    def _status(self):
        kinds = [{"type": kind, **TRUE} for kind in self.conditions]
        refused = {"type": "Planned", "status": "False", "message": "no room for two threads"}
        return {
            "conditions": [*kinds, *([] if kinds else [refused])],
            "model": {"name": "bench/x"},
        }

    async def get(self, resource, *, namespace, name):
        return self.objects.get(resource.path(namespace=namespace, name=name))

    async def items(self, resource, *, namespace=None, label_selector=""):
        folder = resource.path(namespace=namespace) + "/"
        for path, found in list(self.objects.items()):
            labels = found["metadata"].get("labels") or {}
            if path.startswith(folder) and label_selector.split("=")[0] in labels:
                yield found


def a_stage(cluster, *, source=HOST, **fields):
    said = []
    stage = Stage(
        cluster,
        namespace="bench",
        system_namespace="trimtab-system",
        source=source,
        gateway="http://gateway",
        poll_seconds=0.0,
        say=said.append,
        **{"ready_seconds": 60.0} | fields,
    )
    return stage, said


async def test_everything_created_is_deleted():
    """Namespace, account, rights and intents go; a namespace that was there before stays."""
    for there in ((), ("/api/v1/namespaces/bench",)):
        cluster = FakeCluster(there=there)
        stage, _ = a_stage(cluster)
        await stage.prepare()
        served = await stage.serve("bench-x", {"objective": "MinCost"})
        assert served.public_name == "bench/x"
        assert len(cluster.objects) == 5
        assert await stage.endpoint() == Endpoint(url="http://gateway", token="secret")
        await stage.clean()
        assert set(cluster.objects) == set(there)


async def test_what_serves_is_frozen():
    """An intent that is measured is paused: the load that comes would make the operator plan anew."""
    cluster = FakeCluster()
    stage, _ = a_stage(cluster)
    await stage.serve("bench-x", {"objective": "MinCost"})
    intent = cluster.objects[f"{INTENTS}/bench-x"]
    assert intent["metadata"]["annotations"] == {"trimtab.dev/paused": "true"}
    assert intent["spec"] == {"model": {"source": HOST}, "objective": "MinCost"}


async def test_leftovers_of_an_interrupted_benchmark_are_removed():
    """Intents with the benchmark's label go before a new one begins, other intents stay."""
    cluster = FakeCluster(there=("/api/v1/namespaces/bench", f"{INTENTS}/mine"))
    old, _ = a_stage(cluster)
    await old.serve("bench-old", {})
    new, _ = a_stage(cluster)
    await new.prepare()
    assert f"{INTENTS}/bench-old" not in cluster.objects
    assert f"{INTENTS}/mine" in cluster.objects


async def test_a_claim_needs_its_namespace():
    """A model on a claim cannot be in a namespace that is yet to be made."""
    stage, _ = a_stage(FakeCluster(), source=CLAIM)
    with pytest.raises(CommandError, match="Give --namespace with such a claim"):
        await stage.prepare()


async def test_what_is_never_served_says_what_the_operator_said():
    """The operator's own sentence is the reason why a way is left out."""
    stage, _ = a_stage(FakeCluster(conditions=()), ready_seconds=-1.0)
    with pytest.raises(CannotServeError, match="no room for two threads"):
        await stage.serve("bench-x", {})


class FakeStage:
    """Serves everything at once; `stop_after` breaks off after so many ways."""

    def __init__(self, *, stop_after=99, refuse=()):
        self.serving, self.served, self.left = None, [], []
        self.stop_after, self.refuse = stop_after, refuse

    async def serve(self, name, spec):
        assert self.serving is None, "one way at a time"
        self.serving = name
        if len(self.served) == self.stop_after:
            raise asyncio.CancelledError
        if name in self.refuse:
            raise CannotServeError("no room")
        self.served.append((name, spec))
        pins = spec["constraints"]
        plan = {
            "precision": pins["precisions"][0],
            "replicas": pins["minReplicas"],
            "threadsPerReplica": 1,
            "confidence": {"source": "Measured", "fingerprint": f"fp-{pins['precisions'][0]}"},
        }
        meta = {"namespace": "bench", "name": name, "uid": "1"}
        body = {"metadata": meta, "status": {"plan": plan}}
        return Served(name=name, public_name="bench/x", body=body)

    async def remove(self, name):
        assert self.serving == name
        self.serving = None

    async def config_map(self, name, _key):
        texts = dict(zip(("fp-bf16", "fp-fp32"), documents(), strict=True))
        return texts.get(name) or (PRICES if name == "trimtab-prices" else INSPECTION)

    async def endpoint(self):
        return Endpoint(url="http://gateway")

    async def counters(self, _name):
        return {}

    async def nodes(self, _name):
        return ["n0"]

    async def overhead_us(self, _public_name):
        return 1500


SMALL = replace(SHAPE, loads=(0.5,), repeats=1, capacity_seconds=0.0, preempt=False)


@pytest.fixture
def no_traffic(monkeypatch):
    """No request is sent, and none is answered."""

    async def drive(_endpoint, _arrivals, **_):
        return []

    monkeypatch.setattr(conduct, "drive", drive)


def a_conductor(stage, path, *, shape=SMALL):
    return Conductor(
        stage=stage, ledger=Ledger(path), model="m", shape=shape, source=HOST, say=lambda _: None
    )


@pytest.mark.usefixtures("no_traffic")
async def test_an_interrupted_benchmark_goes_on(tmp_path):
    """What was measured is kept, and the second start measures the rest at the same rates."""
    path = tmp_path / "r.jsonl"
    first = a_conductor(FakeStage(stop_after=3), path)
    with pytest.raises(asyncio.CancelledError):
        await first.measure()
    assert list(first.ledger.rows) == ["bf16-x1/load-0.5/0"]
    stage = FakeStage()
    second = a_conductor(stage, path)
    await second.measure()
    assert [name for name, _ in stage.served] == ["bench-fp32-x1"]
    assert second.ledger.opening == first.ledger.opening
    assert len(second.ledger.rows) == 2
    assert stage.serving is None


@pytest.mark.usefixtures("no_traffic")
async def test_ways_are_pinned_by_constraints_and_one_thread_by_its_cost(tmp_path):
    """Precision and replicas are constraints; the budget leaves no room for a second thread."""
    stage = FakeStage()
    await a_conductor(stage, tmp_path / "r.jsonl").measure()
    name, spec = stage.served[-1]
    opening = Ledger(tmp_path / "r.jsonl").opening
    option = forecast_of(opening).option(
        Way(precision="fp32", replicas=1), 0.5 * opening.rates.base
    )
    assert name == "bench-fp32-x1"
    assert spec["constraints"]["precisions"] == ["fp32"]
    assert (spec["constraints"]["minReplicas"], spec["constraints"]["maxReplicas"]) == (1, 1)
    budget = float(spec["targets"]["costPerHour"])
    assert option.cost_per_hour_micro_usd / 1e6 < budget < 0.08


@pytest.mark.usefixtures("no_traffic")
async def test_a_way_without_room_is_left_out(tmp_path):
    """One way that the cluster cannot serve does not end the others; its reason is kept."""
    stage = FakeStage(refuse=("bench-bf16-x1",))
    conductor = a_conductor(stage, tmp_path / "r.jsonl")
    await conductor.measure()
    assert list(conductor.ledger.rows) == ["fp32-x1/load-0.5/0"]
    assert conductor.ledger.skipped["bf16-x1"].why == "no room"


@pytest.mark.usefixtures("no_traffic")
async def test_the_opening_foretells_every_run(tmp_path):
    """Rates come from predictions alone: loads are shares of the slower precision's capacity."""
    with pytest.raises(asyncio.CancelledError):
        await a_conductor(FakeStage(stop_after=2), tmp_path / "r.jsonl").measure()
    opening = Ledger(tmp_path / "r.jsonl").opening
    forecast = forecast_of(opening)
    capacities = [
        forecast.capacity(Way(precision=p, replicas=1), planned_rate=0.5 * opening.rates.base)
        for p in SMALL.precisions
    ]
    assert opening.rates.base == pytest.approx(min(capacities), rel=0.02)
    assert opening.overhead_us == 1500
    assert json.loads(opening.inspection)["cpus"] == opening.conditions["cpus"] == 2
    assert [run.rate for _, runs in blocks(SMALL, opening.rates) for run in runs] == [
        0.5 * opening.rates.base
    ] * 2
