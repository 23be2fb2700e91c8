"""Templates, rights and leadership on a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.control_plane.operator.lab import VERDICT, an_intent
from tests.unit.reconcile.builders import a_plan as a_unit_plan
from tests.unit.reconcile.builders import a_record, an_observed, an_option
from trimtab.kube.finalizers import release_all
from trimtab.kube.leader import Elector, LeaseTimes
from trimtab.kube.rbac import LEASE_NAME_PLACEHOLDER, RULES
from trimtab.kube.resources import INTENT, LEASE, resource_of
from trimtab.observe.inspections import Inspection
from trimtab.reconcile.inferenceintent.decide import decide
from trimtab.reconcile.inferenceintent.jobs import fingerprint_job
from trimtab.settings import HubPolicy, ImagePolicy, PodDefaults, Settings, Sources

if TYPE_CHECKING:
    from pathlib import Path

    from tests.control_plane.operator.lab import Lab
    from trimtab.kube.client import KubeClient

pytestmark = pytest.mark.control_plane

SOURCES = {
    "claim": {"persistentVolumeClaim": {"claimName": "models", "path": "a/b.gguf"}},
    "image": {"image": {"reference": "example.com/model:1", "path": "m"}},
    "hub": {
        "huggingFace": {
            "repository": "acme/model",
            "revision": "0" * 40,
            "tokenSecretRef": {"name": "hub", "key": "token"},
        }
    },
}


@pytest.mark.parametrize("source", SOURCES, ids=list(SOURCES))
async def test_every_object_passes_a_dry_run_in_a_restricted_namespace(
    lab: Lab, source: str
) -> None:
    """Jobs, Deployment and their friends are valid, admitted, and need no exception."""
    settings = Settings(
        system_namespace=lab.system,
        pod_defaults=PodDefaults(
            image="trimtab:1",
            tolerations=({"key": "x", "operator": "Exists"},),
            nodeSelector={"pool": "a"},
        ),
        sources=Sources(
            huggingFace=HubPolicy(enabled=True, endpoint="http://127.0.0.1:8085"),
            image=ImagePolicy(enabled=True),
        ),
    )
    record = a_record(model={"source": SOURCES[source]})
    record = type(record)(
        **{f: getattr(record, f) for f in record.__dataclass_fields__}
        | {"namespace": lab.namespace}
    )
    reading = an_observed(
        record, plan=None, inspection=Inspection(source_digest="s", state="Absent")
    )
    serving = an_observed(record, plan=a_unit_plan(record, option=an_option(replicas=2)))
    manifests = [
        *decide(reading, settings=settings).desired,
        *decide(serving, settings=settings).desired,
    ]
    assert {m["kind"] for m in manifests} == {
        "NetworkPolicy", "Job", "ConfigMap", "Service", "Deployment", "PodDisruptionBudget",
    }  # fmt: skip
    for manifest in manifests:
        await _dry_run(lab, manifest)
        template = manifest.get("spec", {}).get("template")
        if template is not None and manifest["kind"] in ("Deployment", "Job"):
            await _dry_run(lab, _a_pod(manifest))


async def test_a_fingerprint_job_passes_a_dry_run(lab: Lab) -> None:
    """The Job of the system namespace is admitted as well."""
    from tests.control_plane.operator.lab import a_need

    seen = an_observed()
    assert seen.inspection is not None
    view = type(
        "View", (), {"model": seen.inspection.facts.model if seen.inspection.facts else None}
    )
    settings = Settings(system_namespace=lab.system)
    job = fingerprint_job(need=a_need(view), attempt=0, contended=False, settings=settings)  # type: ignore[arg-type]
    await _dry_run(lab, job)
    await _dry_run(lab, _a_pod(job))


def _a_pod(manifest: dict[str, Any]) -> dict[str, Any]:
    """The pod itself: Pod Security only warns about templates."""
    template = manifest["spec"]["template"]
    meta = template["metadata"] | {
        "name": "dry-run",
        "namespace": manifest["metadata"]["namespace"],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}


async def _dry_run(lab: Lab, manifest: dict[str, Any]) -> None:
    meta = manifest["metadata"]
    answer = await lab.client.request(
        "PATCH",
        resource_of(manifest).path(namespace=meta["namespace"], name=meta["name"]),
        query={
            "fieldManager": "test",
            "force": "true",
            "dryRun": "All",
            "fieldValidation": "Strict",
        },
        body=manifest,
        content_type="application/apply-patch+yaml",
    )
    assert answer["metadata"]["name"] == meta["name"]


async def _an_account(lab: Lab, tmp_path: Path, cluster: Any) -> Path:
    """A kubeconfig of a ServiceAccount that has exactly the rights of the table."""
    name = lab.system
    meta = {"name": name}
    groups: dict[str, list[dict[str, Any]]] = {"cluster": [], "system": []}
    for rule in RULES:
        if rule.subject != "operator":
            continue
        row: dict[str, Any] = {
            "apiGroups": [rule.api_group],
            "resources": [rule.resource],
            "verbs": list(rule.verbs),
        }
        if rule.resource_names:
            row["resourceNames"] = [
                n.replace(LEASE_NAME_PLACEHOLDER, "lease") for n in rule.resource_names
            ]
        groups[rule.scope].append(row)
    subject = {"kind": "ServiceAccount", "name": "operator", "namespace": lab.system}
    api = "rbac.authorization.k8s.io/v1"
    here = meta | {"namespace": lab.system}
    role = {"apiGroup": "rbac.authorization.k8s.io", "name": name}
    objects = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": here | {"name": "operator"}},
        {"apiVersion": api, "kind": "ClusterRole", "metadata": meta, "rules": groups["cluster"]},
        {"apiVersion": api, "kind": "Role", "metadata": here, "rules": groups["system"]},
        {"apiVersion": api, "kind": "ClusterRoleBinding", "metadata": meta, "subjects": [subject], "roleRef": role | {"kind": "ClusterRole"}},
        {"apiVersion": api, "kind": "RoleBinding", "metadata": here, "subjects": [subject], "roleRef": role | {"kind": "Role"}},
    ]  # fmt: skip
    for item in objects:
        await asyncio.to_thread(cluster.kubectl, "apply", "-f", "-", stdin=json.dumps(item))
    token = await asyncio.to_thread(
        cluster.kubectl, "create", "token", "operator", "-n", lab.system, "--duration=1h"
    )
    view = json.loads(
        await asyncio.to_thread(
            cluster.kubectl, "config", "view", "--raw", "--minify", "-o", "json"
        )
    )
    view["users"][0]["user"] = {"token": token.strip()}
    path = tmp_path / "operator.kubeconfig"
    path.write_text(json.dumps(view))
    return path


async def test_the_process_lives_with_the_rights_of_the_table(
    lab: Lab, cluster: Any, tmp_path: Path
) -> None:
    """`python -m trimtab` with a ServiceAccount of exactly those rights brings an intent to its children, and stops cleanly."""
    path = await _an_account(lab, tmp_path, cluster)
    environment = os.environ | {
        "KUBECONFIG": str(path),
        "TRIMTAB_SYSTEM_NAMESPACE": lab.system,
        "TRIMTAB_LEASE_NAME": "lease",
        "TRIMTAB_BIND_ADDRESS": "127.0.0.1",
        "TRIMTAB_HEALTH_PORT": "0",
        "TRIMTAB_METRICS_PORT": "0",
        "TRIMTAB_POLICY_TIME_DIVISOR": "20",
    }
    log = (tmp_path / "log").open("w+b")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "trimtab", env=environment, stderr=log
    )
    try:
        await lab.apply(an_intent(lab.namespace))
        await lab.end_job(lab.namespace, "inspection", VERDICT)

        async def planned() -> Any:
            found = ((await lab.intent()).get("status") or {}).get("conditions") or ()
            ready = [c for c in found if c["type"] == "Planned"]
            # Without a node there is no estimate or no capacity; the planner has answered either way.
            done = ready and ready[0]["reason"] not in ("Inspecting", "Inspected", "Planning")
            return ready if done else None

        await lab.wait("an answer of the planner", planned, seconds=90)
        lease = await lab.client.get(LEASE, namespace=lab.system, name="lease")
        assert lease is not None
        assert lease["spec"]["holderIdentity"].startswith("trimtab-operator_")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
        lease = await lab.client.get(LEASE, namespace=lab.system, name="lease")
        assert lease is not None
        assert lease["spec"]["holderIdentity"] == ""
        meta = (await lab.intent())["metadata"]
        assert meta["finalizers"] == ["trimtab.dev/finalizer"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await asyncio.to_thread(
            cluster.kubectl, "delete", "clusterrole,clusterrolebinding", lab.system
        )
        log.seek(0)
        lines = [json.loads(line) for line in log.read().splitlines() if line.startswith(b"{")]
        log.close()
    assert not [line for line in lines if line["level"] == "error"], lines
    assert not [line for line in lines if "forbidden" in json.dumps(line)], lines


async def test_one_of_two_electors_leads_and_the_other_follows(lab: Lab) -> None:
    """On a real Lease the standby takes over at once after a release, and never before."""

    def an_elector(identity: str, client: KubeClient) -> Elector:
        times = LeaseTimes(lease_seconds=4, renew_deadline_seconds=2, retry_seconds=0.2)
        return Elector(
            client,
            namespace=lab.system,
            name="lease",
            identity=identity,
            times=times,
            clock=time.monotonic,
            utcnow=lambda: datetime.now(UTC),
        )

    first, second = an_elector("one", lab.client), an_elector("two", lab.client)
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    following = asyncio.create_task(second.acquire())
    await asyncio.sleep(5)
    assert not following.done()
    assert first.may_write()
    assert second.can_read()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await first.release()
    await asyncio.wait_for(following, 3)
    assert second.may_write()
    assert not first.may_write()


async def test_finalizers_are_released_for_good(lab: Lab) -> None:
    """`trimtab finalizers release` frees every object and keeps finalizers of others."""
    manifest = an_intent(lab.namespace)
    manifest["metadata"]["finalizers"] = ["trimtab.dev/finalizer", "example.com/other"]
    await lab.apply(manifest)
    told: list[str] = []
    count = await release_all(lab.client, on_released=lambda _k, _n, name: told.append(name))
    assert count >= 1
    assert "chat" in told
    left = await lab.client.get(INTENT, namespace=lab.namespace, name="chat")
    assert left is not None
    assert left["metadata"]["finalizers"] == ["example.com/other"]
