"""Every command that README and docs show runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]

FENCE = re.compile(r"^```(console|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Commands that other runs are: the demo and the tests cannot run inside themselves.
RUN_ELSEWHERE = {
    "make demo": "e2e/scenarios run the same road; the demo itself is run by hand and in public CI",
    "make test": "is what runs this test",
    "make test-long": "takes minutes of outage on purpose",
    "make down": "tests/control_plane/cluster runs up and down",
}


def commands(text: str) -> Iterator[str]:
    """Yield the commands of fenced blocks: `$ ` lines of console blocks, all lines of sh blocks."""
    for language, body in FENCE.findall(text):
        for raw in body.splitlines():
            line = raw.partition(" #")[0].rstrip()
            if language == "console" and line.startswith("$ "):
                yield line[2:]
            elif language == "sh" and line:
                yield line


def documents() -> list[Path]:
    return [st.ROOT / "README.md", *sorted((st.ROOT / "docs").rglob("*.md"))]


def _shown() -> list[tuple[str, str]]:
    return [
        (str(path.relative_to(st.ROOT)), command)
        for path in documents()
        for command in commands(path.read_text())
        if command.strip() not in RUN_ELSEWHERE
    ]


def test_blocks_are_read_as_a_reader_reads_them() -> None:
    """Console blocks give their `$ ` lines, shell blocks every line, and comments are dropped."""
    text = "```console\n$ a b  # why\noutput\n```\n\n```sh\nc\n\n```\n\n```yaml\nd: 1\n```\n"
    assert list(commands(text)) == ["a b", "c"]


@pytest.mark.parametrize(("document", "command"), _shown())
def test_a_shown_command_runs(
    document: str, command: str, stack: st.Stack, chat: dict[str, Any], tmp_path: Path
) -> None:
    """The command ends with status 0 on the installed system, from the root of the checkout."""
    programs = {str(Path(path).parent) for path in stack.cluster.binaries.values()}
    environment = os.environ | {
        "KUBECONFIG": str(stack.cluster.kubeconfig),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), *programs, os.environ["PATH"]]),
        "TMPDIR": str(tmp_path),
    }
    local = command.replace("/tmp/trimtab", str(tmp_path / "trimtab"))
    if local.startswith("helm upgrade"):
        local += f" --reuse-values --namespace {st.SYSTEM}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", local],
        cwd=st.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{document}: $ {command}\n{done.stdout}\n{done.stderr}"


def test_documents_link_to_files_that_exist() -> None:
    """Relative links in README and docs point at files of the tree."""
    missing = [
        f"{path.relative_to(st.ROOT)}: {target}"
        for path in documents()
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
        if not (path.parent / target).exists()
    ]
    assert missing == []
