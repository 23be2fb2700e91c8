"""What is built, from which Go module, at which version, and which level needs it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

GO_LINE = "1.26"
GO_FOLDER = Path(__file__).resolve().parent / "go"
LEVELS = ("control-plane", "process", "node")
"""From the least to the most that a machine must offer."""

KUBERNETES = "v1.37.2"
_VERSION = "k8s.io/component-base/version"
_MAJOR, _MINOR = KUBERNETES.removeprefix("v").split(".")[:2]
_KUBERNETES_STAMP = (
    f"-X {_VERSION}.gitVersion={KUBERNETES}",
    f"-X {_VERSION}.gitMajor={_MAJOR}",
    f"-X {_VERSION}.gitMinor={_MINOR}",
    f"-X {_VERSION}.gitTreeState=clean",
)
_CONTAINERD = "github.com/containerd/containerd/v2"
_PLUGINS = "github.com/containernetworking/plugins/plugins"
_RUNC = "v1.5.2"
_HELM = "v4.3.1"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One upstream: a wrapper module under `go/`, and the binaries built from it.

    `typical_seconds` is a cold build on two cores, for the progress display only.
    """

    name: str
    version: str
    binaries: dict[str, str]
    ldflags: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    cgo: bool = False
    typical_seconds: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Return the folder of the wrapper module."""
        return GO_FOLDER / self.name


def _kubernetes(*commands: str) -> dict[str, str]:
    return {command: f"k8s.io/kubernetes/cmd/{command}" for command in commands}


PARTS = {
    part.name: part
    for part in (
        Part(name="pki", version="own", binaries={"pki": "."}),
        Part(name="pause", version="own", binaries={"pause": "."}),
        Part(
            name="etcd",
            version="v3.7.3",
            binaries={"etcd": "go.etcd.io/etcd/server/v3"},
            typical_seconds={"etcd": 21},
        ),
        Part(
            name="kubernetes",
            version=KUBERNETES,
            binaries=_kubernetes(
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubectl",
                "kubelet",
                "kube-proxy",
            ),
            ldflags=_KUBERNETES_STAMP,
            typical_seconds={"kube-apiserver": 270, "kube-controller-manager": 85, "kubelet": 25},
        ),
        Part(
            name="kwok",
            version="v0.8.0",
            binaries={"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
            ldflags=("-X sigs.k8s.io/kwok/pkg/consts.Version=v0.8.0",),
            typical_seconds={"kwok": 57},
        ),
        Part(
            name="helm",
            version=_HELM,
            binaries={"helm": "helm.sh/helm/v4/cmd/helm"},
            ldflags=(f"-X helm.sh/helm/v4/internal/version.version={_HELM}",),
            typical_seconds={"helm": 40},
        ),
        Part(
            name="containerd",
            version="v2.4.2",
            binaries={
                name: f"{_CONTAINERD}/cmd/{name}"
                for name in ("containerd", "containerd-shim-runc-v2", "ctr")
            },
            ldflags=(f"-X {_CONTAINERD}/version.Version=v2.4.2",),
            tags=("no_btrfs", "no_zfs"),
            typical_seconds={"containerd": 60},
        ),
        Part(
            name="runc",
            version=_RUNC,
            binaries={"runc": "github.com/opencontainers/runc"},
            ldflags=(f"-X main.version={_RUNC.removeprefix('v')}",),
            tags=("seccomp",),
            cgo=True,
            typical_seconds={"runc": 15},
        ),
        Part(
            name="cni",
            version="v1.9.1",
            binaries={
                "bridge": f"{_PLUGINS}/main/bridge",
                "host-local": f"{_PLUGINS}/ipam/host-local",
                "loopback": f"{_PLUGINS}/main/loopback",
                "portmap": f"{_PLUGINS}/meta/portmap",
            },
        ),
        Part(
            name="coredns",
            version="v1.15.0",
            binaries={"coredns": "."},
            typical_seconds={"coredns": 30},
        ),
    )
}

_CONTROL_PLANE = (
    ("pki", "pki"),
    ("etcd", "etcd"),
    ("kubernetes", "kube-apiserver"),
    ("kubernetes", "kube-controller-manager"),
    ("kubernetes", "kube-scheduler"),
    ("kubernetes", "kubectl"),
    ("kwok", "kwok"),
    ("helm", "helm"),
)
_NODE = (
    ("pause", "pause"),
    ("runc", "runc"),
    *(("cni", binary) for binary in PARTS["cni"].binaries),
    ("coredns", "coredns"),
    *(("containerd", binary) for binary in PARTS["containerd"].binaries),
    ("kubernetes", "kubelet"),
    ("kubernetes", "kube-proxy"),
)
NEEDED: dict[str, tuple[tuple[str, str], ...]] = {
    "control-plane": _CONTROL_PLANE,
    "process": _CONTROL_PLANE,
    "node": (*_CONTROL_PLANE, *_NODE),
}
"""Level → (part, binary) in the order in which they are built."""
