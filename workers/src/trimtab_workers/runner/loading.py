"""Import the user's module, so that relative imports and modules that platforms inject are found."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

PACKAGE: Final = "trimtab_function"

# What a platform puts beside the user's code, and what we put there where nothing else is found.
_INJECTED: Final = {
    "storage": "sebs_storage.py",
    f"{PACKAGE}.storage": "sebs_storage.py",
    "parliament": "parliament_module.py",
}
_RELATIVE_IMPORT: Final = re.compile(r"^\s*from\s+\.", re.MULTILINE)


class RefusedError(Exception):
    """The module cannot be run; the message names module, cause and remedy.

    Args:
        reason: In the form of a condition's reason.
        message: A full sentence.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Source(NamedTuple):
    """Where the user's module is.

    Attributes:
        folder: Holds the module; other modules beside it can be imported.
        module: Its name, without .py.
        file: Its file.
        text: Its source, "" if it cannot be read as text.
    """

    folder: Path
    module: str
    file: Path
    text: str


def find(folder: Path, module: str) -> Source:
    """Return the module's file.

    Raises:
        RefusedError: It is not there; names the files that are.
    """
    for file in (folder / f"{module}.py", folder / module / "__init__.py"):
        if file.is_file():
            return Source(folder, module, file, file.read_text(encoding="utf-8", errors="replace"))
    there = sorted(path.stem for path in folder.glob("*.py")) if folder.is_dir() else []
    raise RefusedError(
        "ModuleNotFound",
        f"There is no module {module} in {folder}; "
        + (f"these are: {', '.join(there)}. " if there else "no Python file is. ")
        + "Name the file without .py in spec.source.module, or TRIMTAB_FUNCTION_MODULE.",
    )


class _InjectedFinder:
    """Finds what platforms inject; last on the path, so a module of the user's own comes first."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of an injected module."""
        del path, target
        file = _INJECTED.get(name)
        if file is None:
            return None
        return importlib.util.spec_from_file_location(name, Path(__file__).parent / "shims" / file)


def prepare(source: Source) -> None:
    """Put the module's folder first on the path and what platforms inject last."""
    sys.path.insert(0, str(source.folder))
    sys.meta_path.append(_InjectedFinder)


def load(source: Source) -> ModuleType:
    """Import the module, once.

    Raises:
        RefusedError: Importing it failed.
    """
    name = source.module
    if _RELATIVE_IMPORT.search(source.text):
        # It was written as part of a package whose name only its platform knows (SeBS, OpenFaaS).
        spec = importlib.util.spec_from_loader(PACKAGE, loader=None, is_package=True)
        if spec is None or spec.submodule_search_locations is None:
            raise RuntimeError("A package without loader has no spec. This is a bug; report it.")
        spec.submodule_search_locations.append(str(source.folder))
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        name = f"{PACKAGE}.{source.module}"
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise import_failed(source, error) from error


def import_failed(source: Source, error: BaseException) -> RefusedError:
    """Return the refusal that says why a module cannot be imported, with its own line."""
    import traceback  # noqa: PLC0415 - only for those that fail

    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(source.file)
    ]
    where = f", line {lines[-1]}" if lines else ""
    return RefusedError(
        "ModuleNotLoaded",
        f"Module {source.module} ({source.file.name}{where}) cannot be imported: "
        f"{type(error).__name__}: {error}. Correct it, or put what it needs into the image.",
    )
