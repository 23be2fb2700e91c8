"""Two or more tenants in one worker, all but one of them broken: that one goes on."""

from __future__ import annotations

import json
import shutil
import urllib.request
from typing import TYPE_CHECKING

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.contract.server.workers import Worker, a_model_set, a_worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GOOD, POISONED = "team-a/good", "team-a/poisoned"
ASK = {"prompt": "Alice was", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def broken_root(model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in several states of disrepair, beside a whole one."""
    root = tmp_path_factory.mktemp("broken")
    for name in ("good", "long", "poisoned", "cut", "shapes", "text"):
        shutil.copytree(model_root / "alice", root / name)
    file = root / "poisoned" / "model.safetensors"
    tensors = load_file(file)
    norm = tensors["model.norm.weight"]
    tensors["model.norm.weight"] = torch.full_like(norm, float("nan"))
    save_file(tensors, file)
    shard = root / "cut" / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4096])
    file = root / "shapes" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, file)
    (root / "text" / "config.json").write_text("no JSON")
    config = root / "long" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 4096})
    )
    return root


@pytest.fixture(scope="module")
def worker(broken_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker with one good model and six bad ones."""
    names = ("good", "poisoned", "cut", "shapes", "text", "missing")
    models = [{"name": f"team-a/{name}", "path": name} for name in names]
    models.append({"name": "team-a/template", "path": "good", "chat_template": "{% for %}"})
    file = a_model_set(tmp_path_factory.mktemp("set") / "models.json", *models)
    with a_worker(file, broken_root) as started:
        started.until("model_resident", count=2)
        started.until("model_failed", count=5)
        yield started


@pytest.fixture
def client(worker: Worker) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=worker.url("/v1"), api_key="none", max_retries=0) as made:
        yield made


def answer(client: openai.OpenAI) -> str:
    return client.completions.create(model=GOOD, **ASK).choices[0].text


def states(worker: Worker) -> dict[str, dict]:
    with urllib.request.urlopen(worker.url("/-/state", listener="admin"), timeout=30) as reply:
        return {row["name"]: row for row in json.loads(reply.read())["models"]}


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("cut", "ModelCorrupt", "Fetch"),
        ("shapes", "ModelCorrupt", r"norm\.weight"),
        ("text", "ModelCorrupt", "JSON"),
        ("missing", "ModelNotFound", "missing"),
        ("template", "ModelCorrupt", "chat template"),
    ],
)
def test_files_that_cannot_be_served(worker, client, name, reason, words):
    """A bad checkpoint is Failed with its reason, answers 503 with it, and others serve."""
    row = states(worker)[f"team-a/{name}"]
    assert (row["state"], row["error"]["reason"]) == ("Failed", reason)
    assert row["error"]["message"].count(words.replace("\\", "")) >= 1
    with pytest.raises(openai.InternalServerError, match=words) as caught:
        client.completions.create(model=f"team-a/{name}", **ASK)
    assert (caught.value.status_code, caught.value.code) == (503, "model_unavailable")
    assert caught.value.response.headers["Retry-After"]
    assert answer(client)


def test_nan_fails_one_model(worker, client):
    """NaN logits are a 500 for their batch, three in a row fail the model; the other serves on."""
    before = answer(client)
    for _ in range(3):
        with pytest.raises(openai.InternalServerError, match="NaN") as caught:
            client.completions.create(model=POISONED, **ASK)
        assert (caught.value.status_code, caught.value.code) == (500, "engine_step_failed")
        assert answer(client) == before
    with pytest.raises(openai.InternalServerError, match="Failed") as caught:
        client.completions.create(model=POISONED, **ASK)
    assert (caught.value.status_code, caught.value.code) == (503, "model_unavailable")
    assert states(worker)[POISONED]["state"] == "Failed"
    assert answer(client) == before
    with urllib.request.urlopen(worker.url("/live"), timeout=30) as reply:
        assert reply.status == 200


def test_more_than_the_arena_holds(broken_root, tmp_path):
    """A request that the whole arena could not hold is refused with both numbers; others run."""
    small = a_model_set(
        tmp_path / "models.json", {"name": GOOD, "path": "long"}, memory_bytes=4_200_000
    )
    with a_worker(small, broken_root) as worker:
        limit = worker.until("model_resident", "model_failed").get("max_model_len")
        assert limit is not None, worker.log
        assert limit < 500
        with openai.OpenAI(base_url=worker.url("/v1"), api_key="none", max_retries=0) as client:
            with pytest.raises(openai.BadRequestError, match=rf"is {limit} tokens.*\(500\)") as got:
                client.completions.create(model=GOOD, prompt=[5] * 500, max_tokens=5)
            assert (got.value.code, got.value.param) == ("context_length_exceeded", "prompt")
            assert answer(client)
            full = client.completions.create(
                model=GOOD, prompt=[5], max_tokens=limit - 1, extra_body={"ignore_eos": True}
            )
            assert full.usage.total_tokens == limit
