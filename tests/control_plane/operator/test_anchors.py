"""Anchors beside documents of others, on a real API server."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.control_plane.operator.lab import config_map, running
from tests.unit.planning.builders import a_fingerprint, a_key
from tests.unit.planning.test_anchors import an_anchor
from trimtab.planning.fingerprint import dump
from trimtab.reconcile.labels import shared_labels

if TYPE_CHECKING:
    from e2e.cluster.api import Cluster
    from tests.control_plane.operator.lab import Lab
    from trimtab.kube.resources import Manifest

pytestmark = pytest.mark.control_plane

FINGERPRINT = a_fingerprint(key=a_key())
KEY = FINGERPRINT.key.digest()
USERS = {"fp-server-side": ("--server-side",), "fp-client-side": ()}
MEASURED = f"fp-{KEY}"


def an_import(lab: Lab, name: str, **labels: str) -> Manifest:
    """Return what `trimtab fingerprint manifest` prints."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": lab.system,
            "labels": shared_labels("fingerprint", instance=name) | labels,
        },
        "data": {"fingerprint.json": dump(FINGERPRINT)},
    }


async def test_anchors_take_nothing_from_whoever_wrote_the_fingerprint(
    lab: Lab, cluster: Cluster
) -> None:
    """Users apply their imports again without conflict, a Job's result is renewed, and anchors outlast both."""

    async def applied(**labels: str) -> None:
        for name, options in USERS.items():
            text = json.dumps(an_import(lab, name, **labels))
            await asyncio.to_thread(
                cluster.kubectl, "apply", *options, "-f", "-", stdin=text, timeout=30
            )

    async with running(lab) as run:
        operator = run.operator

        async def measured(seconds: int) -> None:
            document = json.loads(dump(FINGERPRINT)) | {"gpuSeconds": seconds}
            await operator.executor.apply(
                operator.keeper._config_map(KEY, key=KEY, document=document)
            )

        await applied()
        await measured(1)
        names = (*USERS, MEASURED)

        async def known() -> bool:
            maps = operator.caches.configmaps
            return all(maps.get(lab.system, name) is not None for name in names)

        await lab.wait("the documents in the cache", known)
        operator.world.anchors.recall(KEY, [an_anchor(1.1, fingerprint=FINGERPRINT)])

        async def anchored() -> Any:
            # Again each time: an event may come between, and then the next run writes.
            operator._run_job("anchors")
            found = [await config_map(lab, name) or {} for name in names]
            return found if all("anchors" in one["data"] for one in found) else None

        before = await lab.wait("anchors beside all three", anchored)
        await applied(team="blue")
        await measured(2)
        after = [await config_map(lab, name) or {} for name in names]
    assert [one["data"]["anchors"] for one in after] == [one["data"]["anchors"] for one in before]
    assert '"gpuSeconds":2' in after[-1]["data"]["fingerprint.json"]
    for one in after[:-1]:
        assert one["metadata"]["labels"]["team"] == "blue"
        owned = {m["manager"]: m["fieldsV1"] for m in one["metadata"]["managedFields"]}
        assert "trimtab-operator" not in owned
        assert owned["trimtab-anchors"] == {"f:data": {"f:anchors": {}}}
