"""The node level: containerd, kubelet, kube-proxy and CoreDNS in namespaces of their own, as root on Linux."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.cluster import (
    cgroups,
    embedded,
    hostimage,
    images,
    namespaces,
    network,
    node_config,
    paths,
    probes,
    state,
)
from e2e.cluster.control_plane import ControlPlane, kubeconfig
from e2e.cluster.errors import ClusterError
from e2e.cluster.images import Entry
from e2e.cluster.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable

    from e2e.cluster.state import State

MEMBERS = ("coredns", "kube-proxy", "kubelet", "containerd")
CREATED = "created-folders.json"


def _folder(st: State) -> Path:
    return st.folder / "node"


def _pid(processes: Processes) -> int:
    pid = namespaces.inner_pid(processes)
    if pid is None:
        raise ClusterError(
            "The node's namespaces are gone. Remedy: `python -m e2e.cluster up` again."
        )
    return pid


def recover(st: State, processes: Processes) -> None:
    """After a crash of any of the node's components take the rest of the node down, as a reboot would.

    The containers' records stay; kubelet starts the pods anew.
    """
    held = namespaces.inner_pid(processes)
    dead = [one for one in MEMBERS if processes.get(one) and not processes.alive(one)]
    if not processes.get(namespaces.HOLDER) or (held and not dead):
        return
    namespaces.end(processes, members=MEMBERS)
    if st.network:
        network.disconnect(st.network)
    cgroups.remove(st.name)


def prepare(st: State) -> None:
    """Make the namespaces and the link, whose address the API server listens on."""
    processes, folder = Processes(st.folder), _folder(st)
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    with paths.locked(paths.clusters() / ".network.lock"):
        if not st.network:
            others = [other for name in state.names() if (other := state.load(name))]
            taken = [int(other.network["number"]) for other in others if other.network]
            st.network = network.choose(network.used_networks(), taken)
            st.save()
        _create_shadowed_folders()
        if namespaces.inner_pid(processes) is None:
            pid = namespaces.hold(processes, folder=folder, pause=st.binaries["pause"])
            network.connect(st.network, namespace_pid=pid, enter=namespaces.enter(pid))


def _create_shadowed_folders() -> None:
    """Make the folders that components insist on, and write down which were ours, before."""
    wanted = [path for text in namespaces.SHADOWED if not (path := Path(text)).exists()]
    if wanted:
        record = paths.clusters() / f".{CREATED}"
        known = json.loads(record.read_text()) if record.exists() else []
        paths.write_atomically(record, json.dumps(sorted({*known, *map(str, wanted)})))
        for path in wanted:
            path.mkdir(parents=True)


def _remove_created_folders(name: str) -> None:
    """Remove the folders made for the components, unless another node-level cluster is there.

    Removing a folder takes the mount on it from everybody, in whatever namespace.
    """
    record = paths.clusters() / f".{CREATED}"
    others = [st for one in state.names() if one != name and (st := state.load(one))]
    if record.exists() and not any(st.level == "node" for st in others):
        for text in json.loads(record.read_text()):
            with contextlib.suppress(OSError):
                Path(text).rmdir()
        record.unlink()


def _snapshotter(folder: Path) -> str:
    """Return overlayfs where the state's file system can carry one (not on another overlay), else native."""
    parts = {name: folder / "overlay-test" / name for name in ("lower", "upper", "work", "merged")}
    for path in parts.values():
        path.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
    script = f"mount -t overlay overlay -o '{options}' '{parts['merged']}'"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, check=False
    )
    return "native" if done.returncode else "overlayfs"


def _write_configuration(st: State, plane: ControlPlane) -> None:
    folder = _folder(st)
    (folder / "cni-conf").mkdir(exist_ok=True)
    (folder / "volume-plugins").mkdir(exist_ok=True)
    files = {
        "containerd.toml": node_config.containerd(
            folder=folder,
            runc=st.binaries["runc"],
            cni_binaries=Path(st.binaries["bridge"]).parent,
            snapshotter=_snapshotter(folder),
        ),
        "cni-conf/10-trimtab.conflist": node_config.cni(pod_cidr=st.network["pod_cidr"]),
        "resolv.conf": "# nothing outside the cluster is asked\n",
        "kubelet.json": node_config.kubelet(
            folder=folder,
            pki=plane.pki,
            cgroup_root=f"/{cgroups.folder_name(st.name)}",
            network=st.network,
        ),
        "kubelet.kubeconfig": kubeconfig(
            st, "kubelet", ca=plane.pki / "ca.crt", client=plane.pki / "kubelet-client"
        ),
        "kube-proxy.json": node_config.kube_proxy(
            kubeconfig=st.folder / "kube-proxy.kubeconfig",
            node=plane.node_name,
            network=st.network,
        ),
        "Corefile": node_config.corefile(
            network=st.network, kubeconfig=st.folder / "coredns.kubeconfig"
        ),
    }
    for name, text in files.items():
        paths.write_atomically(folder / name, text, mode=0o600)
    (folder / "resolv.conf").chmod(0o644)


def start(
    st: State, processes: Processes, plane: ControlPlane, report: Callable[[str], None]
) -> None:
    """Start what of the node does not run, load its images and wait until it is Ready.

    Raises:
        ClusterError: A component ended or did not become ready; holds the end of its log.
    """
    folder, pid = _folder(st), _pid(processes)
    if not processes.alive("containerd"):
        _write_configuration(st, plane)
    cgroups.create(st.name)
    _start(st, processes, "containerd", ["--config", str(folder / "containerd.toml")])
    _wait(processes, "containerd", lambda: _ctr_answers(st, pid))
    _load_own_images(st, processes)
    report("containerd is ready")
    _start(
        st, processes, "kubelet",
        [
            "--config", str(folder / "kubelet.json"), "--kubeconfig", str(folder / "kubelet.kubeconfig"),
            "--hostname-override", plane.node_name, "--node-ip", st.network["node"],
        ],
    )  # fmt: skip
    _start(st, processes, "kube-proxy", ["--config", str(folder / "kube-proxy.json")])
    _kubectl_apply(st, node_config.dns_objects(network=st.network))
    _start(st, processes, "coredns", ["-conf", str(folder / "Corefile")])
    embedded.wait_node_ready(plane, processes, "kubelet")
    for component in ("kube-proxy", "coredns"):
        _wait(processes, component, lambda component=component: health(st, component) == "healthy")
    report(f"node {plane.node_name} is ready; pods live in {st.network['pod_cidr']}")


def _start(st: State, processes: Processes, component: str, arguments: list[str]) -> None:
    binary = Path(st.binaries[component])
    # containerd finds its shim, and kubelet and kube-proxy their helpers, on the PATH.
    search = f"{Path(st.binaries['containerd']).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    command = [*namespaces.enter(_pid(processes)), "env", f"PATH={search}", str(binary), *arguments]
    # No pinning: what containerd starts would inherit it.
    processes.start(component, command)


def _wait(processes: Processes, component: str, probe: Callable[[], object]) -> None:
    def ended() -> str | None:
        if processes.alive(component):
            return None
        return f"{component} ended; the end of its log:\n{processes.tail(component)}"

    probes.wait_for(
        f"{component} to be ready", probe, seconds=120, fatal=ended,
        seen=lambda: processes.tail(component),
    )  # fmt: skip


def _ctr(st: State, pid: int, *words: str) -> str:
    address = ["--address", node_config.CONTAINERD_SOCKET, "--namespace", "k8s.io"]
    return namespaces.run(pid, [st.binaries["ctr"], *address, *words])


def _ctr_answers(st: State, pid: int) -> bool:
    try:
        _ctr(st, pid, "version")
    except ClusterError:
        return False
    return True


def _load_own_images(st: State, processes: Processes) -> None:
    """Import the pause image and the image of our own processes; equal bytes are imported again for nothing."""
    folder, pid = _folder(st), _pid(processes)
    pause = Entry(content=Path(st.binaries["pause"]).read_bytes())
    images.write(
        folder / "pause.tar",
        tags=[node_config.PAUSE_IMAGE],
        entries={"pause": pause},
        config={"Entrypoint": ["/pause"], "User": "65535:65535"},
    )
    hostimage.write(folder / "host.tar")
    for name in ("pause.tar", "host.tar"):
        _ctr(st, pid, "images", "import", str(folder / name))


def load_image(name: str, archive: Path) -> None:
    """Import a docker-archive or OCI tar into the node's image store.

    Raises:
        ClusterError: The cluster does not run, or the archive is not an image.
    """
    st = state.load(name)
    if st is None:
        raise ClusterError(f"There is no cluster {name}.")
    _ctr(st, _pid(Processes(st.folder)), "images", "import", str(archive.resolve()))


def _kubectl_apply(st: State, objects: list[dict[str, object]]) -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    command = [st.binaries["kubectl"], "--kubeconfig", str(st.kubeconfig), "apply", "-f", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"the DNS Service could not be applied: {done.stderr.strip()}")


HEALTH = {
    "kubelet": "http://127.0.0.1:10248/healthz",
    "kube-proxy": "http://127.0.0.1:10256/healthz",
    "coredns": "http://127.0.0.1:10255/ready",
}


def health(st: State, component: str) -> str:
    """Return whether a component of the node answers its health check, asked inside its namespaces."""
    pid = namespaces.inner_pid(Processes(st.folder))
    if pid is None:
        return "dead"
    if component == namespaces.HOLDER:
        return "running"
    if component == "containerd":
        return "healthy" if _ctr_answers(st, pid) else "unhealthy"
    script = f"import urllib.request as u; u.urlopen({HEALTH[component]!r}, timeout=2).read()"
    done = subprocess.run(
        ["nsenter", "-t", str(pid), "--net", "--", sys.executable, "-I", "-S", "-c", script],
        capture_output=True,
        check=False,
    )
    return "unhealthy" if done.returncode else "healthy"


def remove(st: State, processes: Processes) -> None:
    """Remove the node: namespaces with all their processes and mounts, link, cgroups, created folders."""
    with paths.locked(paths.clusters() / ".network.lock", remove=True):
        namespaces.end(processes, members=MEMBERS)
        if st.network:
            network.disconnect(st.network)
        cgroups.remove(st.name)
        _remove_created_folders(st.name)
