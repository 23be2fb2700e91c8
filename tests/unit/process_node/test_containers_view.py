"""What a container is told: variables, arguments, paths, quantities, addresses (all pure)."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.cluster.process import addresses, mounts
from e2e.cluster.process.container import back_off
from e2e.cluster.process.environment import (
    CreateContainerConfigError,
    Machine,
    arguments,
    expand,
    variables,
)
from e2e.cluster.process.images import INTERPRETER, Images, UnknownImageError, substituted
from e2e.cluster.process.probes import Verdict, port_number
from e2e.cluster.process.quantity import QuantityError, in_units, parse

MACHINE = Machine(cpu="2", memory="1024Ki", ephemeral_storage="1Gi")
POD = {
    "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a": "b"}},
    "spec": {"nodeName": "n", "serviceAccountName": "sa"},
}


async def made(container, **objects):
    async def lookup(kind, name):
        return objects.get(f"{kind}_{name}")

    return await variables(
        container, pod=POD, pod_ip="192.0.2.2", host_ip="127.0.0.1", machine=MACHINE, lookup=lookup
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)-$(B)", "1-$(B)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("cost: 5$", "cost: 5$"),
        ("$(A", "$(A"),
    ],
)
def test_references_expand_as_in_a_kubelet(text, expected):
    """Known names are replaced, unknown ones stay, a doubled dollar escapes."""
    assert expand(text, variables={"A": "1"}) == expected


async def test_variables_come_in_order_from_every_source():
    """EnvFrom comes first, env overrides, and a value may refer to those before it."""
    container = {
        "name": "c",
        "resources": {"limits": {"cpu": "1500m"}},
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "all"}}],
        "env": [
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
            {"name": "URL", "value": "http://$(IP):$(P_PORT)"},
            {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Ki"}}},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "t"}}},
            {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y", "optional": True}}},
        ],
    }  # fmt: skip
    found = await made(container, ConfigMap_all={"PORT": "8000"}, Secret_s={"t": "hush"})
    assert found == {
        "P_PORT": "8000", "IP": "192.0.2.2", "LABEL": "b", "URL": "http://192.0.2.2:8000",
        "CPUS": "2", "MEMORY": "1024", "TOKEN": "hush",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"configMapKeyRef": {"name": "x", "key": "y"}}, 'ConfigMap "x" not found'),
        ({"secretKeyRef": {"name": "s", "key": "y"}}, "Secret \"s\" has no key 'y'"),
        ({"fieldRef": {"fieldPath": "spec.magic"}}, "'spec.magic' is not known"),
        ({"fileKeyRef": {}}, "fileKeyRef"),
    ],
)
async def test_missing_sources_are_named(source, message):
    """What keeps a container from starting is said with kind, name and key."""
    container = {"name": "c", "env": [{"name": "A", "valueFrom": source}]}
    with pytest.raises(CreateContainerConfigError, match=message.replace("(", r"\(")):
        await made(container, Secret_s={"t": "hush"})


def test_command_replaces_the_entrypoint_and_args_follow():
    """As with an image: `command` wins over the entrypoint, `args` are appended to either."""
    entrypoint = ("python", "-m", "trimtab")
    both = {"name": "c", "command": ["sh"], "args": ["-c", "echo $(A)"]}
    assert arguments(both, entrypoint=entrypoint, variables={"A": "1"}) == ["sh", "-c", "echo 1"]
    args = {"name": "c", "args": ["--help"]}
    assert arguments(args, entrypoint=entrypoint, variables={})[-1] == "--help"
    with pytest.raises(CreateContainerConfigError, match="give a command"):
        arguments({"name": "c"}, entrypoint=(), variables={})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/models", "/L/m"),
        ("/models/a.gguf", "/L/m/a.gguf"),
        ("--model-root=/models/", "--model-root=/L/m/"),
        ('{"path": "/models/a", "b": "/models"}', '{"path": "/L/m/a", "b": "/L/m"}'),
        ("/models:/models/x", "/L/m:/L/m/x"),
        ("/models2/a", "/models2/a"),
        ("/models-old", "/models-old"),
        ("/srv/models", "/srv/models"),
        ("http://host/models", "http://host/models"),
        ("/models/deep/x", "/L/deep/x"),
    ],
)
def test_mount_paths_are_rewritten_where_a_path_begins(text, expected):
    """Whole components only, the longest mount first, never inside a longer path or a URL."""
    local = {"/models": Path("/L/m"), "/models/deep": Path("/L/deep"), "/": Path("/never")}
    assert mounts.localise(text, mounts=local) == expected


@given(st.text(alphabet='/abms.-=:" ', max_size=40))
def test_rewriting_never_rewrites_its_own_result(text):
    """One pass: a local path that looks like a mount path is left alone."""
    local = {"/a": Path("/b/a"), "/b": Path("/a")}
    once = mounts.localise(text, mounts=local)
    assert once.count("/b/a") >= text.count(" /a ")
    assert mounts.localise("/a /b", mounts=local) == "/b/a /a"


def test_parent_of_a_mount_exists_though_nothing_is_mounted_there(tmp_path):
    """`/models` can be told to a command whose volume is mounted at `/models/m0`; `/etc` stays."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "a.gguf").write_text("weights")
    local = {"/models/m0": volume, "/etc/trimtab": volume}
    found = mounts.parents(tmp_path / "parents", mounts=local)
    assert set(found) == {"/models"}
    assert (found["/models"] / "m0" / "a.gguf").read_text() == "weights"
    assert mounts.parents(tmp_path / "parents", mounts=local) == found
    assert mounts.localise("/etc/hosts /models", mounts=local | found).split()[0] == "/etc/hosts"


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", "0.5"), ("1.5Gi", "1610612736"), ("2", "2"), ("2e3", "2000"), ("3k", "3000"), ("1E", "1e18")],
)  # fmt: skip
def test_quantities_have_their_value(text, value):
    """Decimal and binary suffixes, milli and scientific notation are understood."""
    assert parse(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "Gi", "1Q", "one"])
def test_what_is_no_quantity_is_refused(text):
    """A malformed quantity is an error that names it."""
    with pytest.raises(QuantityError, match=f"{text!r} is not a quantity"):
        parse(text)


def test_downward_quantities_round_up():
    """1500m of CPU in whole cores are 2, as the downward API counts."""
    assert in_units("1500m", divisor="1") == "2"
    assert in_units("1500m", divisor="1m") == "1500"


def test_address_is_the_lowest_that_nobody_has_or_listens_on():
    """Taken addresses and those of another stand-in node's processes are left out."""
    found = addresses.choose(taken=["192.0.2.2"], busy=["127.0.2.3", "127.0.0.1"])
    assert found == "192.0.2.4"
    with pytest.raises(addresses.NoAddressError, match="loopback-prefix"):
        addresses.choose(taken=[f"192.0.2.{n}" for n in range(256)], busy=[])


def test_listeners_are_read_from_the_kernel(tmp_path):
    """Only listening sockets count, with their address in the kernel's byte order."""
    table = tmp_path / "tcp"
    table.write_text(
        "  sl  local_address rem_address   st\n"
        "   0: 0502007F:1F40 00000000:0000 0A 0 0\n"
        "   1: 0602007F:1F40 0100007F:0001 01 0 0\n"
    )
    assert addresses.listening([table]) == {"127.0.2.5"}


def test_restarts_wait_as_a_kubelet_does():
    """The first restart is immediate, then the wait doubles up to five minutes."""
    waits = [back_off(count, first_seconds=10) for count in range(8)]
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]


def test_verdict_needs_its_threshold_in_a_row():
    """One failure among successes changes nothing; a streak does, once."""
    verdict = Verdict({"failureThreshold": 2, "successThreshold": 2}, good=True)
    answers = [False, True, False, False, False, True, True]
    assert [verdict.add(success=answer) for answer in answers] == [
        False, False, False, True, False, False, True,
    ]  # fmt: skip


def test_probe_ports_can_be_named():
    """A probe's port is a number or the name of one of the container's ports."""
    container = {"name": "c", "ports": [{"name": "http", "containerPort": 8000}]}
    assert port_number("http", container=container) == 8000
    with pytest.raises(ValueError, match="no port named 'grpc'"):
        port_number("grpc", container=container)


def test_images_are_mapped_by_name_and_may_be_added(tmp_path):
    """Registry, tag and digest do not matter; what is not known says how to add it."""
    images = Images(tmp_path / "images.json")
    assert (
        images.find("registry/acme/trimtab-worker:1@sha256:ab").entrypoint[-1]
        == "trimtab_workers.server"
    )
    with pytest.raises(UnknownImageError, match="image --state-dir"):
        images.find("registry/acme/other:1")
    images.add("registry/acme/other:1", entrypoint=["sh"], folder=tmp_path)
    assert Images(tmp_path / "images.json").find("registry/acme/other:1").folder == tmp_path


def test_modules_can_be_played_by_other_commands():
    """`python -m MODULE` becomes the command that plays it, with its arguments; others stay."""
    table = {"trimtab_workers.server": ["python", "/stub.py", "worker"]}
    real = ["python", "-m", "trimtab_workers.server", "--config", "x"]
    assert substituted(real, substitutes=table) == [
        INTERPRETER,
        "/stub.py",
        "worker",
        "--config",
        "x",
    ]
    assert substituted(real, substitutes={}) == [INTERPRETER, *real[1:]]
    assert substituted(["sh", "-c", "x"], substitutes=table) == ["sh", "-c", "x"]
