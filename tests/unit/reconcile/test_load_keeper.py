"""Load histories in their ConfigMaps."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from tests.unit.observe.test_loads import some_traffic
from tests.unit.reconcile.builders import SETTINGS, a_record
from trimtab.kube import names
from trimtab.kube.errors import ApiError
from trimtab.observe.caches import Caches
from trimtab.observe.loads import LoadBook
from trimtab.planning.load_history import parse
from trimtab.reconcile.load_keeper import LoadKeeper


class Town:
    """One intent, its history, and what was written."""

    def __init__(self, caches: Caches | None = None) -> None:
        self.caches = caches or Caches()
        self.applied: list[Any] = []
        self.deleted: list[Any] = []
        self.loads = LoadBook()
        world: Any = SimpleNamespace(caches=self.caches, settings=SETTINGS, loads=self.loads)
        self.keeper = LoadKeeper(world, executor=self)  # type: ignore[arg-type] - applies and deletes

    async def apply(self, manifest: Any) -> None:
        self.applied.append(manifest)
        meta = manifest["metadata"] | {"uid": "m", "resourceVersion": str(len(self.applied))}
        self.caches.configmaps.put(manifest | {"metadata": meta})

    async def delete(self, deletion: Any) -> None:
        self.deleted.append(deletion.name)

    def saw(self, seconds: int, *, then_quiet: int = 0) -> None:
        seen = some_traffic(2.0, seconds=seconds)
        self.loads.update(
            "uid-chat",
            declared=None,
            seen=dataclasses.replace(seen, until=seen.until + then_quiet),
            lengths=None,
            several=False,
            now=0.0,
        )


async def test_what_was_counted_is_written_when_it_changed_and_read_after_a_restart() -> None:
    """Not at the start, not twice, and a new operator knows the hour at once."""
    town = Town()
    town.caches.inferenceintents._store(a_record())
    town.saw(600)
    await town.keeper.step()
    assert town.applied == []
    await town.keeper.step()
    await town.keeper.step()
    (written,) = town.applied
    assert written["metadata"]["name"] == names.load_history("team-a")
    assert parse(written["data"]["load.json"])["chat"] == town.loads.history("uid-chat")
    again = Town(town.caches)
    again.keeper.recall()
    assert again.loads.history("uid-chat") == town.loads.history("uid-chat")


async def test_where_nobody_asks_nothing_is_written() -> None:
    """That time passes is no news: a quiet system writes nothing, and who asks again is written."""
    town = Town()
    town.caches.inferenceintents._store(a_record())
    town.saw(600)
    await town.keeper.step()
    await town.keeper.step()
    town.saw(600, then_quiet=600)
    await town.keeper.step()
    assert len(town.applied) == 1
    town.saw(1800)
    await town.keeper.step()
    assert len(town.applied) == 2


async def test_a_spoilt_history_starts_anew_and_one_of_nobody_goes() -> None:
    """Whoever edits it loses an hour of counts, and nothing stops."""
    town = Town()
    town.caches.inferenceintents._store(a_record())
    town.saw(600)
    await town.keeper.step()
    await town.keeper.step()
    spoilt = town.applied[0] | {"data": {"load.json": "{"}}
    meta = spoilt["metadata"] | {"uid": "m", "resourceVersion": "9"}
    town.caches.configmaps.put(spoilt | {"metadata": meta})
    again = Town(town.caches)
    again.keeper.recall()
    assert not again.loads.history("uid-chat").buckets
    await again.keeper.step()
    await again.keeper.step()
    assert again.deleted == [names.load_history("team-a")]


async def test_a_refused_history_keeps_no_other_from_being_written() -> None:
    """It counts as not written, and is tried again at the next step."""
    town = Town()
    town.caches.inferenceintents._store(a_record())
    town.caches.inferenceintents._store(
        dataclasses.replace(a_record(), namespace="team-b", uid="uid-b")
    )
    seen = some_traffic(2.0, seconds=600)
    for uid in ("uid-chat", "uid-b"):
        town.loads.update(uid, declared=None, seen=seen, lengths=None, several=False, now=0.0)
    write, refused = town.apply, names.load_history("team-a")

    async def apply(manifest: Any) -> None:
        if manifest["metadata"]["name"] == refused:
            raise ApiError(method="PATCH", path="/x", code=422, status={"message": "immutable"})
        await write(manifest)

    town.apply = apply  # type: ignore[method-assign]
    await town.keeper.step()
    await town.keeper.step()
    assert [m["metadata"]["name"] for m in town.applied] == [names.load_history("team-b")]
    town.apply = write  # type: ignore[method-assign]
    await town.keeper.step()
    assert town.applied[-1]["metadata"]["name"] == refused
