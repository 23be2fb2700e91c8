"""What the operator relies on in kopf 1.45.2, so that an upgrade that moves a fact is seen."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import kopf
import pytest

from tests.contract.operator.fake_api import FakeApi
from trimtab.handlers import watching
from trimtab.kube.resources import DEPLOYMENT, INTENT
from trimtab.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

FINALIZER = "trimtab.dev/finalizer"


class Hands:
    """Takes hand-offs in place of the operator."""

    def __init__(self) -> None:
        self.settings = Settings(network_error_seconds=3.0)
        self.events: list[tuple[str, str | None, str, str]] = []
        self.loops: list[str] = []
        self.ended: list[str] = []

    def event(self, plural: str, kind: str | None, body: Mapping[str, Any]) -> None:
        meta = body["metadata"]
        self.events.append((plural, kind, meta["name"], meta["resourceVersion"]))

    async def run_intent(self, uid: str, *, stopped: Callable[[], bool]) -> None:
        self.loops.append(uid)
        while not stopped():  # noqa: ASYNC110 - kopf gives a flag to look at
            await asyncio.sleep(0.02)
        self.ended.append(uid)


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as found:
        yield found


@pytest.fixture
def token(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The token that the next login reads."""
    current = ["first"]

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(server=api.url, scheme="Bearer", token=current[0])

    monkeypatch.setattr(watching, "login", login)
    return current


@contextlib.asynccontextmanager
async def running(hands: Hands) -> AsyncIterator[asyncio.Task[None]]:
    """Run kopf with our registry and settings."""
    stop = asyncio.Event()
    settings = kopf.OperatorSettings()
    settings.queueing.idle_timeout = 0.1  # a queue that idles holds the stop up
    task = asyncio.create_task(
        kopf.operator(
            registry=watching.register(hands),  # type: ignore[arg-type]
            clusterwide=True,
            standalone=True,
            settings=settings,
            stop_flag=stop,
        )
    )
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait({task}, timeout=15)
        with contextlib.suppress(Exception):
            await task


async def until(look: Callable[[], Any], what: str, *, seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"not seen within {seconds} s: {what}")


def an_intent(name: str = "chat", **meta: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "n", "uid": f"uid-{name}"} | meta, "spec": {}}


@pytest.mark.usefixtures("token")
async def test_kopf_writes_nothing_but_the_finalizer(api: FakeApi) -> None:
    """One daemon starts per object; kopf's only write is the finalizer, no annotation."""
    await api.put(INTENT, an_intent())
    hands = Hands()
    async with running(hands):
        await until(lambda: hands.loops, "the daemon")
        await until(lambda: api.get(INTENT, "chat")["metadata"].get("finalizers"), "finalizer")
        await asyncio.sleep(0.5)
    assert hands.loops == ["uid-chat"]
    (write,) = api.writes()
    assert {op["path"] for op in write.body if op["op"] != "test"} <= {"/metadata/finalizers"}
    assert (api.get(INTENT, "chat") or {})["metadata"]["finalizers"] == [FINALIZER]
    assert "annotations" not in (api.get(INTENT, "chat") or {})["metadata"]


@pytest.mark.usefixtures("token")
async def test_an_object_in_deletion_at_the_start_is_let_go(api: FakeApi) -> None:
    """It gets no daemon and loses the finalizer, so nothing must be done in one."""
    gone = an_intent(finalizers=[FINALIZER], deletionTimestamp="2026-11-23T00:00:00Z")
    await api.put(INTENT, gone)
    hands = Hands()
    async with running(hands):
        await until(lambda: api.get(INTENT, "chat") is None, "the object gone")
    assert hands.loops == []


@pytest.mark.usefixtures("token")
async def test_a_deletion_ends_the_daemon_and_releases_the_object(api: FakeApi) -> None:
    """The stop flag is set at the deletion, and the object goes within seconds."""
    await api.put(INTENT, an_intent())
    hands = Hands()
    async with running(hands):
        await until(lambda: api.get(INTENT, "chat")["metadata"].get("finalizers"), "finalizer")
        body = api.get(INTENT, "chat")
        assert body is not None
        body["metadata"]["deletionTimestamp"] = "2026-11-23T00:00:00Z"
        await api.put(INTENT, body)
        await until(lambda: api.get(INTENT, "chat") is None, "the object gone", seconds=10)
    assert hands.ended == ["uid-chat"]


@pytest.mark.usefixtures("token")
async def test_stopping_the_process_keeps_finalizers(api: FakeApi) -> None:
    """A daemon that ends because the process stops leaves its object protected."""
    await api.put(INTENT, an_intent())
    hands = Hands()
    async with running(hands):
        await until(lambda: api.get(INTENT, "chat")["metadata"].get("finalizers"), "finalizer")
    body = api.get(INTENT, "chat")
    assert body is not None
    assert body["metadata"]["finalizers"] == [FINALIZER]


@pytest.mark.usefixtures("token")
async def test_children_are_listed_and_watched_by_label(api: FakeApi) -> None:
    """The selector goes to the server, in lists and in watches; intents have none."""
    async with running(Hands()):
        await until(
            lambda: [r for r in api.requests if "deployments" in r.path and "watch" in r.query],
            "a watch of Deployments",
        )
    of = {"deployments": set(), "inferenceintents": set(), "pods": set()}
    for request in api.requests:
        for plural, selectors in of.items():
            if request.path.endswith(f"/{plural}"):
                selectors.add(request.query.get("labelSelector", ""))
    assert of["deployments"] == of["pods"] == {"app.kubernetes.io/part-of=trimtab"}
    assert of["inferenceintents"] == {""}


@pytest.mark.usefixtures("token")
async def test_a_foreign_edit_is_an_event(api: FakeApi) -> None:
    """Labels and annotations of others reach the cache."""
    await api.put(INTENT, an_intent())
    hands = Hands()
    async with running(hands):
        await until(lambda: hands.loops, "the daemon")
        edited = await api.put(INTENT, an_intent(labels={"team": "blue"}, finalizers=[FINALIZER]))
        version = edited["metadata"]["resourceVersion"]
        await until(lambda: any(e[3] == version for e in hands.events), "the event")


@pytest.mark.usefixtures("token")
async def test_an_expired_watch_lists_again_without_saying_what_vanished(api: FakeApi) -> None:
    """After ERROR 410 kopf lists with type None; what went meanwhile gets no DELETED: we audit."""
    child = {"metadata": {"name": "one", "namespace": "n"}}
    await api.put(DEPLOYMENT, child)
    await api.put(DEPLOYMENT, {"metadata": {"name": "two", "namespace": "n"}})
    hands = Hands()
    async with running(hands) as task:
        await until(lambda: {e[2] for e in hands.events} >= {"one", "two"}, "both")
        await api.remove(DEPLOYMENT, "two", silently=True)
        before = len(hands.events)
        api.in_stream["deployments"] = {"kind": "Status", "code": 410, "message": "expired"}
        await api.drop_watches()
        again = await until(
            lambda: [e for e in hands.events[before:] if e[0] == "deployments"], "a new list"
        )
        assert again[0][1:3] == (None, "one")
        assert not any(e[1] == "DELETED" for e in hands.events)
        assert not task.done()


@pytest.mark.usefixtures("token")
async def test_a_watch_goes_on_where_it_was(api: FakeApi) -> None:
    """Events between two watches are replayed, deletions included."""
    await api.put(DEPLOYMENT, {"metadata": {"name": "one", "namespace": "n"}})
    hands = Hands()
    async with running(hands):
        await until(lambda: any(e[2] == "one" for e in hands.events), "the list")
        await api.remove(DEPLOYMENT, "one")
        await until(lambda: any(e[1:3] == ("DELETED", "one") for e in hands.events), "DELETED")


async def test_a_refused_token_is_read_again(api: FakeApi, token: list[str]) -> None:
    """After a 401 the login handler is asked again, and the rotated token works."""
    hands = Hands()
    async with running(hands) as task:
        await until(
            lambda: [r for r in api.requests if "deployments" in r.path and "watch" in r.query],
            "a watch",
        )
        token[0] = "second"
        api.tokens = {"second"}
        await api.put(INTENT, an_intent())
        api.in_stream["inferenceintents"] = {"kind": "Status", "code": 410, "message": "expired"}
        await api.drop_watches()
        await until(lambda: hands.loops, "the daemon")
        assert not task.done()
    assert any(r.authorization == "Bearer second" for r in api.requests)


async def test_the_same_refused_token_ends_the_process(api: FakeApi, token: list[str]) -> None:
    """A login that brings the refused token again is the end: the process restarts."""
    hands = Hands()
    async with running(hands) as task:
        await until(
            lambda: [r for r in api.requests if "deployments" in r.path and "watch" in r.query],
            "a watch",
        )
        api.tokens = {"another"}
        api.in_stream["inferenceintents"] = {"kind": "Status", "code": 410, "message": "expired"}
        await api.drop_watches()
        await until(task.done, "the end", seconds=30)
        assert token == ["first"]
        assert task.exception() is not None


@pytest.mark.usefixtures("token")
async def test_a_list_that_expires_ends_the_process(api: FakeApi) -> None:
    """410 on a LIST is past kopf's repair: crash-only, with one clear end."""
    hands = Hands()
    async with running(hands) as task:
        await until(
            lambda: [r for r in api.requests if "deployments" in r.path and "watch" in r.query],
            "a watch",
        )
        api.faults.append(("GET", "/deployments", 410))
        api.in_stream["deployments"] = {"kind": "Status", "code": 410, "message": "expired"}
        await api.drop_watches()
        await until(task.done, "the end", seconds=30)
        assert task.exception() is not None
