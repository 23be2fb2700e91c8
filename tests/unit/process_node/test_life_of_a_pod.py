"""Pods on a stand-in node, against a fake API server and with real processes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from fake_api import NODE, a_pod

from e2e.cluster.process.logs import find
from e2e.cluster.process.processes import Process

SERVER = """
import http.server, os, pathlib, signal, sys
def stop(*_):
    pathlib.Path(sys.argv[2]).write_text("stopped") if len(sys.argv) > 2 else None
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *a): pass
http.server.HTTPServer((os.environ["TRIMTAB_BIND_ADDRESS"], int(sys.argv[1])), Handler).serve_forever()
"""
PORT = 18080


def a_server(name="one", *, arguments=(), **spec):
    probe = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 0.05}
    extra = {
        "ports": [{"name": "http", "containerPort": PORT}],
        "readinessProbe": probe,
        "args": ["-c", SERVER, str(PORT), *arguments],
    }
    return a_pod(name, command=["python"], container=extra, **spec)


def ready(api, path):
    conditions = api.objects.get(path, {}).get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def restarts(api, path):
    statuses = api.objects[path]["status"].get("containerStatuses") or [{"restartCount": 0}]
    return statuses[0]["restartCount"]


def child(node, uid="uid-one"):
    folders = (node.settings.state_dir / "pods" / uid).glob("containers/main/*/pids.json")
    newest = max(folders, key=lambda p: int(p.parent.name))
    return Process.found(newest.parent)


async def test_node_registers_as_a_stand_in_with_a_lease(api, start_node):
    """The node says in label, annotation, version and condition that it is a stand-in."""
    await start_node()
    node = await api.until(lambda: api.objects.get(f"/api/v1/nodes/{NODE}"))
    await api.until(
        lambda: any("leases" in path and method == "POST" for method, path in api.requests)
    )
    assert node["metadata"]["labels"]["trimtab.dev/stand-in"] == "true"
    assert "stand-in" in node["status"]["nodeInfo"]["kubeletVersion"]
    assert "nothing limits CPU or memory" in node["status"]["conditions"][0]["message"]


async def test_server_becomes_ready_at_its_announced_address(api, start_node):
    """A pod is Ready once its probe passes, announces 192.0.2.n and listens on loopback."""
    path = api.create(a_server())
    await start_node()
    await api.until(lambda: ready(api, path))
    status = api.objects[path]["status"]
    assert status["phase"] == "Running"
    assert status["podIP"].startswith("192.0.2.")
    assert status["containerStatuses"][0]["state"]["running"]


async def test_deletion_lets_the_process_end_by_itself(api, start_node, tmp_path):
    """A deleted pod's process gets SIGTERM and ends, then the object goes."""
    mark = tmp_path / "mark"
    path = api.create(a_server(arguments=[str(mark)]))
    node = await start_node()
    await api.until(lambda: ready(api, path))
    process = child(node)
    api.ask_to_delete(path, grace_seconds=10)
    await api.until(lambda: path not in api.objects)
    assert mark.read_text() == "stopped"
    assert not process.child.alive()
    assert find(node.settings.state_dir, "team-a/one").read_text() == ""


async def test_deaf_process_is_killed_after_its_grace_period(api, start_node):
    """A process that ignores SIGTERM gets SIGKILL, and its children die with it."""
    code = "import signal,subprocess,sys,time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); "
    code += "subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    path = api.create(a_pod(command=["python", "-c", code]))
    node = await start_node()
    await api.until(lambda: ready(api, path))
    process = child(node)
    api.ask_to_delete(path, grace_seconds=0)
    await api.until(lambda: path not in api.objects)
    assert not process.child.alive()


async def test_job_pod_reports_exit_code_and_termination_message(api, start_node):
    """A pod that ends keeps its exit code, its message and the phase that a Job reads."""
    code = "import os,sys; open(os.environ['TRIMTAB_TERMINATION_LOG'],'w').write('{\"v\":1}'); sys.exit(3)"
    path = api.create(a_pod(command=["python", "-c", code], restartPolicy="Never"))
    await start_node()
    await api.until(lambda: api.phase(path) == "Failed")
    ended = api.objects[path]["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["message"], ended["reason"]) == (3, '{"v":1}', "Error")


async def test_crashing_container_backs_off_and_counts(api, start_node):
    """A failing container is restarted with growing waits and shows CrashLoopBackOff."""
    path = api.create(a_pod(command=["python", "-c", "raise SystemExit(1)"]))
    await start_node()
    await api.until(lambda: restarts(api, path) >= 3)
    seen = api.objects[path]["status"]["containerStatuses"][0]
    assert seen["lastState"]["terminated"]["exitCode"] == 1
    reasons = {body["reason"] for path, body in api.objects.items() if "/events/" in path}
    assert "BackOff" in reasons


async def test_liveness_failure_restarts_the_container(api, start_node, tmp_path):
    """A container whose liveness probe fails is stopped and started again."""
    flag = tmp_path / "flag"
    flag.touch()
    probe = {
        "exec": {"command": ["test", "-e", str(flag)]},
        "periodSeconds": 0.05,
        "failureThreshold": 1,
    }
    extra = {"livenessProbe": probe, "command": ["sleep", "600"]}
    path = api.create(a_pod(command=[], container=extra, terminationGracePeriodSeconds=1))
    await start_node()
    await api.until(lambda: ready(api, path))
    flag.unlink()
    await api.until(lambda: restarts(api, path) >= 1)


async def test_init_container_runs_first_and_failure_stops_the_pod(api, start_node, tmp_path):
    """Containers wait for the init containers; with restartPolicy Never a failed one is final."""
    out = tmp_path / "out"
    good = {"name": "a", "image": "busybox", "command": ["sh", "-c", f"echo init >> {out}"]}
    bad = {"name": "b", "image": "busybox", "command": ["sh", "-c", "exit 4"]}
    fine = api.create(a_pod("fine", command=["sh", "-c", f"echo main >> {out}"],
                            initContainers=[good], restartPolicy="Never"))  # fmt: skip
    failing = api.create(a_pod("bad", command=["sh", "-c", f"echo never >> {out}"],
                               initContainers=[bad], restartPolicy="Never"))  # fmt: skip
    await start_node()
    await api.until(lambda: api.phase(fine) == "Succeeded")
    await api.until(lambda: api.phase(failing) == "Failed")
    assert out.read_text() == "init\nmain\n"


async def test_pods_survive_the_node(api, start_node):
    """A node that stops and starts again finds its pods running: same process, no restart."""
    path = api.create(a_server())
    node = await start_node()
    await api.until(lambda: ready(api, path))
    before = child(node)
    await node.stop()
    assert before.child.alive()
    again = await start_node()
    await api.until(lambda: again.pods and ready(api, path))
    assert child(again).child == before.child
    assert restarts(api, path) == 0
    before.kill()
    await api.until(lambda: restarts(api, path) == 1)


async def test_end_that_nobody_saw_is_found_at_the_next_start(api, start_node):
    """A Job's pod that ends while the node is away is reported at its return."""
    code = "import time; time.sleep(0.2)"
    path = api.create(a_pod(command=["python", "-c", code], restartPolicy="Never"))
    node = await start_node()
    await api.until(lambda: ready(api, path))
    process = child(node)
    await node.stop()
    await process.wait()
    assert api.phase(path) == "Running"
    await start_node()
    await api.until(lambda: api.phase(path) == "Succeeded")


async def test_pod_deleted_by_force_is_stopped(api, start_node):
    """A pod whose object vanished does not run on."""
    path = api.create(a_server())
    node = await start_node()
    await api.until(lambda: ready(api, path))
    process = child(node)
    api.remove(path)
    await process.child.ended()
    assert not process.child.alive()


async def test_api_server_outage_leaves_pods_alone(api, start_node):
    """While the API server refuses, pods run on; what happened meanwhile is reported after."""
    path = api.create(a_server())
    node = await start_node()
    await api.until(lambda: ready(api, path))
    before = child(node)
    api.refuse = True
    before.kill()
    await before.wait()
    api.refuse = False
    await api.until(lambda: restarts(api, path) == 1 and ready(api, path))
    assert child(node).child != before.child


async def test_configmap_is_mounted_and_follows_on_a_pod_update(api, start_node, tmp_path):
    """A ConfigMap's folder changes at once when the pod's annotations do, as with a kubelet."""
    source = "/api/v1/namespaces/team-a/configmaps/settings"
    api.put(source, {"metadata": {"name": "settings"}, "data": {"models.json": "1"}})
    volume = {"name": "c", "configMap": {"name": "settings"}}
    extra = {"volumeMounts": [{"name": "c", "mountPath": "/etc/trimtab"}]}
    path = api.create(a_pod(command=["sleep", "600"], container=extra, volumes=[volume]))
    await start_node()
    await api.until(lambda: ready(api, path))
    api.put(source, {"metadata": {"name": "settings"}, "data": {"models.json": "2"}})
    pod = json.loads(json.dumps(api.objects[path]))
    pod["metadata"]["annotations"] = {"trimtab.dev/model-set-revision": "2"}
    api.put(path, pod)
    file = tmp_path / "state/pods/uid-one/volumes/c/models.json"
    async with asyncio.timeout(10):
        while file.read_text() != "2":  # noqa: ASYNC110 - a file has no event to wait for
            await asyncio.sleep(0.01)


async def test_account_token_becomes_a_kubeconfig(api, start_node):
    """A pod with its ServiceAccount mounted gets KUBECONFIG with a token of that account."""
    token = {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}
    volume = {"name": "kube-api-access", "projected": {"sources": [token]}}
    mount = {
        "name": "kube-api-access",
        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
    }
    code = "import os,shutil; shutil.copy(os.environ['KUBECONFIG'], os.environ['TRIMTAB_TERMINATION_LOG'])"
    extra = {"volumeMounts": [mount]}
    path = api.create(a_pod(command=["python", "-c", code], container=extra, volumes=[volume],
                            restartPolicy="Never", serviceAccountName="operator"))  # fmt: skip
    await start_node()
    await api.until(lambda: api.phase(path) == "Succeeded")
    ended = api.objects[path]["status"]["containerStatuses"][0]["state"]["terminated"]
    config = json.loads(ended["message"])
    assert config["clusters"][0]["cluster"]["server"] == api.url
    assert Path(config["users"][0]["user"]["tokenFile"]).name == "token"
    asked = "/api/v1/namespaces/team-a/serviceaccounts/operator/token"
    assert ("POST", asked) in api.requests


async def test_pod_of_others_is_left_alone(api, start_node):
    """A pod that is not Trimtab's stays Pending and its event says why."""
    pod = a_pod(command=["sleep", "1"])
    pod["metadata"]["labels"] = {}
    path = api.create(pod)
    node = await start_node()
    events = await api.until(lambda: [b for p, b in api.objects.items() if "/events/" in p])
    assert events[0]["reason"] == "StandInNode"
    assert api.phase(path) == "Pending"
    assert not node.pods


async def test_missing_configmap_is_said_and_awaited(api, start_node):
    """A pod waits for a ConfigMap that does not exist yet and starts when it does."""
    volume = {"name": "c", "configMap": {"name": "late"}}
    path = api.create(a_pod(command=["sleep", "600"], volumes=[volume]))
    await start_node()
    events = await api.until(lambda: [b for p, b in api.objects.items() if "/events/" in p])
    assert events[0]["message"] == 'configMap "late" not found'
    late = {"metadata": {"name": "late"}, "data": {"a": "b"}}
    api.put("/api/v1/namespaces/team-a/configmaps/late", late)
    await api.until(lambda: api.phase(path) == "Running")


async def test_command_that_does_not_exist_is_a_start_error(api, start_node):
    """A command that cannot be executed ends as StartError with the operating system's words."""
    path = api.create(a_pod(command=["/no/such/program"], restartPolicy="Never"))
    await start_node()
    await api.until(lambda: api.phase(path) == "Failed")
    ended = api.objects[path]["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ended["reason"] == "StartError"
    assert "No such file" in ended["message"]


async def test_unknown_image_is_an_error_to_see(api, start_node):
    """Nothing is pulled: an image that nothing stands for is reported, not guessed."""
    extra = {"image": "ghcr.io/acme/thing:1"}
    path = api.create(a_pod(command=["sleep", "1"], container=extra))
    await start_node()

    def waiting():
        statuses = api.objects[path]["status"].get("containerStatuses") or [{"state": {}}]
        return statuses[0]["state"].get("waiting", {}).get("reason") == "ErrImageNeverPull"

    await api.until(waiting)
