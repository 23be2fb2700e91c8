"""The parts of the scenarios' bench that can be wrong on their own."""

from __future__ import annotations

import json
import time

from e2e.faults import FirstOfEachKind, Match, Seen, played
from e2e.faults.endstate import difference, normal
from e2e.faults.operators import OperatorProcess
from trimtab.planning.architecture import Architecture
from trimtab.planning.fingerprint import MAX_BYTES, parse
from trimtab.planning.step_model import fit


def a_spec(**changes):
    architecture = played.inspect("/nowhere")["architecture"]
    base = {"v": 1, "architecture": architecture, "precision": "bf16", "kvPrecision": "bf16",
            "threads": 1, "product": "cpu", "tensorParallelSize": 1}  # fmt: skip
    return base | changes


def test_played_messages_are_what_the_operator_reads():
    """The made-up inspection and fingerprint are valid, fit a termination message, and can be fitted."""
    verdict = played.inspect("/nowhere")
    assert Architecture.from_dict(verdict["architecture"]).family == "llama"
    text = json.dumps(played.fingerprint(a_spec()), separators=(",", ":"))
    assert len(text) <= MAX_BYTES
    model = fit(parse(text), depth=verdict["depth"])
    assert model.residual < 0.2


def test_played_threads_help_and_precision_costs():
    """More threads and fewer bits make the played model faster, so that plans have a choice."""

    def decode(**changes):
        return played.fingerprint(a_spec(**changes))["decode"][0][2]

    assert decode(threads=2) < decode(threads=1) < decode(precision="fp32")


def test_played_refusal_is_the_files_text(tmp_path):
    """A file named refusal makes the played inspection refuse with its text."""
    (tmp_path / "refusal").write_text("cut in half")
    found = played.inspect(str(tmp_path))
    assert (found["ok"], found["message"]) == (False, "cut in half")


def test_chance_is_removed_and_choice_is_kept():
    """Uids, digests, times and the namespace vanish; replicas, images and other words stay."""

    def an_object(namespace, uid, digest):
        return {
            "metadata": {
                "name": f"chat-{uid[:8]}", "namespace": namespace, "uid": uid,
                "labels": {"owner": uid}, "resourceVersion": digest,
            },
            "spec": {"replicas": 1, "config": f"{namespace}-{digest}", "image": "worker:1"},
        }  # fmt: skip

    one = normal(
        an_object("fault-1", "0a1b2c3d-0000-4000-8000-0a1b2c3d4e5f", "deadbeef"),
        namespace="fault-1",
    )
    other = normal(
        an_object("fault-2", "99999999-1111-4111-9111-999999999999", "cafebabe"),
        namespace="fault-2",
    )
    assert difference(one, other) == ""
    other["spec"]["replicas"] = 2
    assert '+  "replicas": 2' in difference(one, other)


def test_first_of_each_kind_matches_once_per_kind():
    """Only the first write of each verb and resource is befallen, and reads never."""
    match = FirstOfEachKind(Match(mutating=True))
    rows = [
        ("patch", "pods", ""),
        ("get", "pods", ""),
        ("patch", "pods", ""),
        ("patch", "pods", "status"),
    ]
    found = [match(Seen(at=0, verb=v, resource=r, subresource=s)) for v, r, s in rows]
    assert found == [True, False, False, True]
    assert len(match.kinds) == 2


def _until(what):
    deadline = time.monotonic() + 20
    while not what() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert what()


def test_operator_process_is_started_again_and_can_be_held(tmp_path):
    """A run that ends is followed by another, unless it is held down."""
    script = "echo $TRIMTAB_BIND_ADDRESS; test -e held || exit 2; exec sleep 60"
    with OperatorProcess(
        kubeconfig=tmp_path / "none", log=tmp_path / "log", environment={}, restart_seconds=0.01,
        command=("sh", "-c", f"cd {tmp_path}; {script}"),
    ) as operator:  # fmt: skip
        _until(lambda: len(operator.ends) >= 2)
        (tmp_path / "held").touch()
        _until(lambda: operator.alive)
        operator.hold()
        held = operator.starts
        assert not operator.alive
        operator.release()
        _until(lambda: operator.starts > held)
    assert {end.code for end in operator.ends[:2]} == {2}
    assert operator.ends[-1].code == -15
    assert operator.tail(1) == "127.0.0.1"
