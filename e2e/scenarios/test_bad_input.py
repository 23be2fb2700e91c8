"""Bad input ends in a condition with object, field, value and remedy, and touches nobody else."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.scenarios.builders import TEAM, an_intent

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]


def _source(path: str) -> dict[str, Any]:
    return {"source": {"persistentVolumeClaim": {"claimName": "models", "path": path}}}


@pytest.fixture
def cut_model(stack: st.Stack) -> Iterator[str]:
    """A GGUF file cut in half."""
    whole = next((stack.models / "smollm2-135m").glob("*.gguf"))
    folder = stack.models / "cut"
    folder.mkdir(exist_ok=True)
    with whole.open("rb") as source, (folder / whole.name).open("wb") as target:
        target.write(source.read(whole.stat().st_size // 2))
    yield "cut"
    shutil.rmtree(folder)


@pytest.fixture
def unknown_architecture(stack: st.Stack) -> Iterator[str]:
    """A safetensors folder whose configuration names an architecture that no engine knows."""
    folder = stack.models / "mamba"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        '{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}'
    )
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    yield "mamba"
    shutil.rmtree(folder)


def _refused(stack: st.Stack, manifest: dict[str, Any], kind: str, reason: str) -> str:
    name = manifest["metadata"]["name"]
    stack.apply(manifest)
    try:
        intent = stack.wait_condition(name, TEAM, kind, "False", reason=reason, seconds=150)
        ready = st.condition(intent, "Ready")
        assert ready["status"] == "False"
        message = str(st.condition(intent, kind)["message"])
        assert f"{TEAM}/{name}" in message
        return message
    finally:
        stack.kubectl("delete", "ii", name, "-n", TEAM, "--wait=true", "--timeout=60s")


def _still_serves(stack: st.Stack, token: str) -> None:
    answer = st.stream_chat(
        stack.gateway, token=token, model="chat", prompt="Say hello.", max_tokens=8
    )
    assert answer.tokens


def test_a_missing_model_path_names_the_path(
    stack: st.Stack, chat: dict[str, Any], token: str
) -> None:
    """A path that does not exist ends in ModelNotFound with the path and what to do."""
    message = _refused(
        stack, an_intent("missing", model=_source("nowhere")), "Fingerprinted", "ModelNotFound"
    )
    assert "nowhere" in message
    _still_serves(stack, token)


def test_half_a_gguf_is_corrupt(
    stack: st.Stack, chat: dict[str, Any], token: str, cut_model: str
) -> None:
    """A GGUF cut in half ends in ModelCorrupt, naming the file."""
    message = _refused(
        stack, an_intent("cut", model=_source(cut_model)), "Fingerprinted", "ModelCorrupt"
    )
    assert ".gguf" in message
    _still_serves(stack, token)


def test_an_unknown_architecture_is_named(
    stack: st.Stack, chat: dict[str, Any], token: str, unknown_architecture: str
) -> None:
    """An architecture the engine does not know ends in UnsupportedModel with its name."""
    message = _refused(
        stack,
        an_intent("mamba", model=_source(unknown_architecture)),
        "Fingerprinted",
        "UnsupportedModel",
    )
    assert "mamba" in message.lower()
    _still_serves(stack, token)


def test_an_impossible_target_says_what_is_possible(
    stack: st.Stack, chat: dict[str, Any], token: str
) -> None:
    """A latency target no option reaches ends in TargetBelowFloor with the achievable figure and the remedy."""
    manifest = an_intent(
        "fast",
        objective="TargetLatency",
        targets={"timePerOutputTokenMilliseconds": 1, "percentile": 95},
        infeasible="Refuse",
    )
    message = _refused(stack, manifest, "Planned", "TargetBelowFloor")
    assert "timePerOutputTokenMilliseconds" in message
    assert "1" in message
    _still_serves(stack, token)


def test_a_typo_in_the_price_book_keeps_the_last_good_one(
    stack: st.Stack, chat: dict[str, Any], token: str
) -> None:
    """A price book with a typo is reported with its key, and plans go on with the last good one."""
    before = stack.get("configmap", "trimtab-prices", st.SYSTEM)
    assert before is not None
    broken = before["data"]["prices.yaml"].replace("cpuHour", "cpuHuor")
    patch = {"data": {"prices.yaml": broken}}
    stack.patch("configmap", "trimtab-prices", st.SYSTEM, patch)
    try:
        events = st.wait_for(
            "an event PriceBookInvalid",
            lambda: [
                e for e in stack.list("events.events.k8s.io", TEAM) + stack.list("events.events.k8s.io", st.SYSTEM)
                if e.get("reason") == "PriceBookInvalid"
            ],
            seconds=60,
        )  # fmt: skip
        assert "cpuHuor" in events[0]["note"]
        _still_serves(stack, token)
        intent = stack.get("inferenceintent", "chat", TEAM) or {}
        assert st.condition(intent, "Ready")["status"] == "True"
        assert intent["status"]["plan"]["costPerHour"]
    finally:
        stack.patch("configmap", "trimtab-prices", st.SYSTEM, {"data": before["data"]})


@pytest.mark.parametrize("kind", ["hostPath", "huggingFace", "image"])
def test_a_source_that_is_not_opted_in_is_a_condition(
    stack: st.Stack, chat: dict[str, Any], kind: str
) -> None:
    """A source outside what the installation allows ends in a condition that names the value to set."""
    sources = {
        "hostPath": {"hostPath": {"path": "/etc"}},
        "huggingFace": {"huggingFace": {"repository": "acme/model", "revision": "0" * 40}},
        "image": {"image": {"reference": "ghcr.io/acme/model:1", "path": "model"}},
    }
    if kind != "hostPath":
        stack.install(extra=({"sources": {kind: {"enabled": False}}},))
    try:
        reason = "SourcePathNotAllowed" if kind == "hostPath" else "SourceDisabled"
        message = _refused(
            stack, an_intent("source", model={"source": sources[kind]}), "Fingerprinted", reason
        )
        assert f"sources.{kind}" in message
    finally:
        if kind != "hostPath":
            stack.install()
