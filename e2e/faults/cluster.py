"""The proxy before a cluster of the testbed, and how a process or a pod is led through it."""

from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING, Any

from e2e.cluster.process.api import Kubeconfig
from e2e.faults.thread import ThreadedProxy

if TYPE_CHECKING:
    from pathlib import Path

    from e2e.cluster.api import Cluster

MOUNT = "/etc/trimtab-faults"
SECRET = "trimtab-fault-proxy"


def before(cluster: Cluster, **settings: Any) -> ThreadedProxy:
    """Return a proxy in front of the cluster's API server; enter it to start it.

    An embedded cluster's own certificate is served, so that clients go on to trust what they trusted.
    """
    config = Kubeconfig(cluster.kubeconfig)
    certificate = cluster.state_dir / "pki" / "apiserver.crt"
    if certificate.exists() and "serving" not in settings:
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(certificate, certificate.with_suffix(".key"))
        settings["serving"] = serving
    return ThreadedProxy(config.server, upstream_tls=config.tls(), **settings)


def kubeconfig(cluster: Cluster, *, url: str, token: str | None = None) -> dict[str, Any]:
    """Return the cluster's kubeconfig with its server replaced by `url`, as another user if a token is given."""
    config = Kubeconfig(cluster.kubeconfig)
    entry = {k: v for k, v in config.cluster.items() if k.startswith(("certificate", "insecure"))}
    if "certificate-authority" in entry:
        entry["certificate-authority"] = str(config.folder / entry["certificate-authority"])
    user = {"token": token} if token else config.user
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "faults",
        "contexts": [{"name": "faults", "context": {"cluster": "faults", "user": "faults"}}],
        "clusters": [{"name": "faults", "cluster": {"server": url, **entry}}],
        "users": [{"name": "faults", "user": user}],
    }


def write_kubeconfig(
    cluster: Cluster, path: Path, *, url: str, namespace: str = "", account: str = ""
) -> Path:
    """Write a kubeconfig through the proxy, as a ServiceAccount (so that its rights are real) if given."""
    token = None
    if account:
        token = cluster.kubectl(
            "create", "token", account, "-n", namespace, "--duration", "8h"
        ).strip()
    path.touch(mode=0o600)
    path.write_text(json.dumps(kubeconfig(cluster, url=url, token=token)))
    return path


def operator_values(cluster: Cluster, *, url: str, namespace: str, account: str) -> dict[str, Any]:
    """Lead the operator's own pod through the proxy: makes a Secret and returns chart values.

    The proxy must listen where the pod reaches it: on loopback at the process level, on the bridge's
    address at the node level (`before(cluster, host=…)`).
    """
    token = cluster.kubectl("create", "token", account, "-n", namespace, "--duration", "8h").strip()
    text = json.dumps(kubeconfig(cluster, url=url, token=token))
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": namespace},
        "stringData": {"kubeconfig": text},
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(secret))
    return {
        "operator": {
            "extraEnv": [{"name": "KUBECONFIG", "value": f"{MOUNT}/kubeconfig"}],
            "extraVolumes": [{"name": "faults", "secret": {"secretName": SECRET}}],
            "extraVolumeMounts": [{"name": "faults", "mountPath": MOUNT, "readOnly": True}],
        }
    }
