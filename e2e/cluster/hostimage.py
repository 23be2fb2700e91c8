"""The image in which Trimtab's own processes run on the embedded node: nearly empty.

`/usr`, the interpreter and the virtual environment come from the host, read-only, through the chart's
`podDefaults`, which saves copying gigabytes of torch for every change of a line. Users get Dockerfiles.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster import images
from e2e.cluster.images import Entry
from e2e.cluster.versions import GO_FOLDER

ROOT = GO_FOLDER.parent.parent.parent
CHART = ROOT / "charts" / "trimtab" / "Chart.yaml"
COMPONENTS = ("operator", "gateway", "worker")
USER = 65532
SYSTEM = Path("/usr")
TOP_LEVEL = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


def version() -> str:
    """Return the tag that the chart gives to its images: its appVersion."""
    return str(yaml.safe_load(CHART.read_text())["appVersion"]) if CHART.exists() else "0.1.0"


def tags() -> list[str]:
    """Return the references under which the image is imported, as the chart's defaults name them."""
    return [f"trimtab-{component}:{version()}" for component in COMPONENTS]


def host_folders() -> list[Path]:
    """Return the folders of this machine that the image needs: system, interpreter, environment, sources."""
    wanted = [
        SYSTEM,
        Path(sys.base_prefix),
        Path(sys.prefix),
        ROOT / "operator/src",
        ROOT / "workers/src",
    ]
    wanted += [
        path for name in TOP_LEVEL if (path := Path("/", name)).is_dir() and not path.is_symlink()
    ]
    # Where the interpreter of the environment is a link, its target's folder must be there too.
    wanted.append(Path(sys.executable).resolve().parent.parent)
    chosen: list[Path] = []
    for folder in sorted(
        {path.resolve() for path in wanted}, key=lambda path: (len(path.parts), str(path))
    ):
        if not any(folder.is_relative_to(parent) for parent in chosen):
            chosen.append(folder)
    return chosen


def entries() -> dict[str, Entry]:
    """Return the content of the image: mount points, links as on the host, and who the user is."""
    files = {
        "etc/passwd": f"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/tmp:/sbin/nologin\n",
        "etc/group": f"root:x:0:\nnonroot:x:{USER}:\n",
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }
    found = {name: Entry(content=text.encode(), mode=0o644) for name, text in files.items()}
    found["tmp"] = Entry(mode=0o1777)
    for name in TOP_LEVEL:
        path = Path("/", name)
        if path.is_symlink():
            found[name] = Entry(link=str(path.readlink()))
    for folder in (Path("/etc"), *host_folders()):
        for path in (folder, *folder.parents):
            if path != Path("/"):
                found.setdefault(str(path).lstrip("/"), Entry())
    return found


def write(target: Path) -> None:
    """Write the image for this machine and virtual environment."""
    search = [Path(sys.prefix) / "bin", SYSTEM / "local/bin", SYSTEM / "bin", Path("/bin")]
    environment = {
        "PATH": ":".join(dict.fromkeys(map(str, search))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/tmp",
    }
    config = {
        "Env": [f"{key}={value}" for key, value in environment.items()],
        "User": f"{USER}:{USER}",
        "WorkingDir": "/tmp",
    }
    images.write(target, tags=tags(), entries=entries(), config=config)


def helm_values() -> dict[str, Any]:
    """Return `podDefaults` that mount this machine's folders read-only into every pod of Trimtab."""
    folders = host_folders()
    return {
        "podDefaults": {
            "imagePullPolicy": "Never",
            "extraVolumes": [
                {"name": f"host-{number}", "hostPath": {"path": str(folder), "type": "Directory"}}
                for number, folder in enumerate(folders)
            ],
            "extraVolumeMounts": [
                {"name": f"host-{number}", "mountPath": str(folder), "readOnly": True}
                for number, folder in enumerate(folders)
            ],
        }
    }
