"""Which cluster is used: a given one, kind on a Docker engine, or the embedded one, in that order."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2e.cluster import build, embedded, state, toolchain
from e2e.cluster.errors import ClusterError
from e2e.cluster.state import State
from e2e.cluster.versions import LEVELS, NEEDED, PARTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

VARIABLE = "TRIMTAB_KUBECONFIG"


def _tools() -> dict[str, str]:
    """Return kubectl and helm from the cache, where they are built already."""
    go = toolchain.cached()
    found = {}
    for part, binary in NEEDED["control-plane"]:
        if go and binary in {"kubectl", "helm"}:
            path = build.binary_path(PARTS[part], binary, go_version=go.version)
            if path.exists():
                found[binary] = str(path)
    return found


def _given(kubeconfig: Path | None) -> Path | None:
    text = os.environ.get(VARIABLE)
    chosen = kubeconfig or (Path(text) if text else None)
    if chosen and not chosen.is_file():
        raise ClusterError(
            f"The kubeconfig {chosen} ({VARIABLE} or --kubeconfig) is not a file. "
            "Remedy: give the path of one that works with kubectl, or leave it out."
        )
    return chosen


def _facts(st: State) -> dict[str, Any]:
    return {
        "name": st.name, "provider": st.provider, "level": st.level, "why": st.why,
        "kubeconfig": st.kubeconfig, "state_dir": st.folder, "binaries": st.binaries,
    }  # fmt: skip


def facts(name: str) -> dict[str, Any] | None:
    """Return the fields of `Cluster` for a cluster that is up, or None."""
    st = state.load(name)
    return _facts(st) if st and st.ready else None


def kind() -> Any | None:
    """Return the kind provider's module, or None in a tree without it."""
    found = importlib.util.find_spec("e2e.cluster.kind")
    return importlib.import_module("e2e.cluster.kind") if found else None


def _kind_problem() -> str | None:
    module = kind()
    return (
        str(problem) if (problem := module.available() if module else "no kind provider") else None
    )


def up(
    *,
    name: str,
    level: str,
    kubeconfig: Path | None,
    console: Console | None,
    report: Callable[[str], None],
    owned: bool,
) -> dict[str, Any]:
    """Start or reuse a cluster and return the fields of `Cluster`."""
    if level not in {"auto", "kind", *LEVELS}:
        raise ClusterError(
            f"There is no level {level!r}; there are auto, kind, {', '.join(LEVELS)}."
        )
    if given := _given(kubeconfig):
        folder = state.state_dir(name)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return {
            "name": name, "provider": "given", "level": "given",
            "why": f"{given} was given ({VARIABLE} or --kubeconfig)", "kubeconfig": given,
            "state_dir": folder, "binaries": _tools(),
        }  # fmt: skip
    existing = state.load(name)
    if level == "auto" and existing:
        level = existing.level
    if level in {"auto", "kind"}:
        problem = _kind_problem()
        if problem is None:
            return _facts(_up_kind(name, report))
        if level == "kind":
            raise ClusterError(f"kind cannot be used: {problem}")
        level, why = embedded.highest_level()
        why = f"(embedded; kind cannot be used: {problem}) {why}".strip()
    else:
        why = existing.why if existing else "(embedded; the level was asked for)"
    st = embedded.up(name=name, level=level, why=why, console=console, report=report, owned=owned)
    return _facts(st)


def _up_kind(name: str, report: Callable[[str], None]) -> State:
    module = kind()
    if module is None:
        raise ClusterError("This tree has no kind provider.")
    st = state.load(name) or State(name=name, provider="kind", level="kind")
    st.why = "(kind: a Docker engine answers)"
    st.binaries = _tools()
    st.save()
    path = module.up(name=name, state_dir=st.folder, report=report)
    if path != st.kubeconfig:
        st.kubeconfig.unlink(missing_ok=True)
        st.kubeconfig.symlink_to(path)
    st.ready = True
    st.save()
    return st


def down(name: str, *, report: Callable[[str], None]) -> bool:
    """Remove a cluster by the provider that made it."""
    st = state.load(name)
    module = kind() if st and st.provider == "kind" else None
    if module:
        module.down(name=name, state_dir=state.state_dir(name))
    return embedded.down(name, report=report)


def helm_values(name: str, *, provider: str, level: str) -> dict[str, Any]:
    """Return the chart values for a cluster."""
    if provider == "given":
        return {}
    if provider == "kind":
        return dict(kind().helm_values(name=name, state_dir=state.state_dir(name)))  # type: ignore[union-attr]
    if level == "process":
        from e2e.cluster import process

        return dict(process.helm_values())
    if level == "node":
        from e2e.cluster import hostimage

        return hostimage.helm_values()
    return {}


def load_image(name: str, archive: Path, *, provider: str, level: str) -> None:
    """Import a docker-archive tar where pods of the cluster can use it."""
    if not archive.is_file():
        raise ClusterError(f"The image archive {archive} is not a file.")
    if provider == "kind":
        kind().load_image(name=name, archive=archive)  # type: ignore[union-attr]
    elif level == "node":
        from e2e.cluster import node

        node.load_image(name, archive)
    else:
        raise ClusterError(
            f"The cluster {name} (provider {provider}, level {level}) runs no images, so {archive} "
            "cannot be loaded. Remedy: a cluster of the node level."
        )
