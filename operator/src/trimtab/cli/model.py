"""`trimtab model`: bring a model's files to where workers mount them."""

from __future__ import annotations

import contextlib
from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.output import CommandError, Format, OutputOption, console, fail, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

app = typer.Typer(no_args_is_help=True, help="Import models.")


@app.callback()
def model() -> None:
    """Import models."""


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="package:NAME (an installed Python package), a .gguf file, or a folder with "
            "safetensors or one .gguf file."
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="Folder to create.")],
    replace: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--replace", help="Replace the folder if it exists.")
    ] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Copy a model into a folder, check it, and say what it is."""
    from trimtab.cli.model_import import import_model  # noqa: PLC0415 - only this command's

    try:
        with _progress(source) as report:
            imported = import_model(source, destination, replace=replace, on_progress=report)
    except (CommandError, OSError) as error:
        fail(str(error))
    found = imported.inspection
    if output is Format.JSON:
        write_json(
            {"destination": str(destination), "sizeBytes": imported.size_bytes, "model": found}
        )
        return
    _table(found, destination=destination, size_bytes=imported.size_bytes)


def _table(found: dict[str, Any], *, destination: Path, size_bytes: int) -> None:
    from rich.table import Table  # noqa: PLC0415 - 60 ms

    table = Table(title=f"Imported into {destination}", show_header=False, title_justify="left")
    quantized = f" (from {found['quantization']})" if found.get("quantization") else ""
    for name, value in (
        ("family", str(found["family"])),
        ("parameters", _scaled(found["parameters"], step=1000, units=("", "K", "M", "B", "T"))),
        ("layers", str(found["depth"])),
        ("precision", f"{found['precision']}{quantized}"),
        ("weights in memory", _mebibytes(found["weightBytes"])),
        ("size on disk", _mebibytes(size_bytes)),
        ("context", f"{found['contextLength']} tokens"),
        ("chat template", "yes" if found["chatTemplate"] else "no"),
    ):
        table.add_row(name, value)
    console().print(table)


def _scaled(value: float, *, step: int, units: tuple[str, ...]) -> str:
    unit = 0
    while value >= step and unit + 1 < len(units):
        value /= step
        unit += 1
    return f"{value:.3g} {units[unit]}".rstrip()


def _mebibytes(value: int) -> str:
    return _scaled(value, step=1024, units=("B", "KiB", "MiB", "GiB", "TiB"))


@contextlib.contextmanager
def _progress(source: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error while the block runs."""
    from rich.progress import (  # noqa: PLC0415 - 60 ms
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(source, total=None)
        yield lambda copied, total: bar.update(task, completed=copied, total=total)
