"""`trimtab crds`: the CustomResourceDefinitions, generated from the models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from trimtab.cli.output import fail, write

app = typer.Typer(no_args_is_help=True, help="Print or generate the CustomResourceDefinitions.")

FOLDERS: Final = (Path("crds"), Path("charts/trimtab/files/crds"))


@app.command("print")
def print_() -> None:
    """Print all definitions, ready for `kubectl apply --server-side -f -`."""
    from trimtab.api.v1alpha1.crd import rendered  # noqa: PLC0415 - pydantic takes 0.3 s

    write("---\n".join(rendered().values()).rstrip("\n"))


@app.command()
def generate(
    repository: Annotated[
        Path, typer.Option(help="Root of the checkout that holds crds/ and charts/.")
    ] = Path(),
    check: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--check", help="Write nothing; fail where a file differs.")
    ] = False,
) -> None:
    """Write crds/ and the chart's copy of it, or check that both are up to date."""
    from trimtab.api.v1alpha1.crd import rendered  # noqa: PLC0415 - pydantic takes 0.3 s

    if not (repository / "charts" / "trimtab").is_dir():
        fail(f"{repository.resolve()} holds no charts/trimtab: name a checkout with --repository.")
    definitions = rendered()
    differing = [
        path
        for folder in FOLDERS
        for path in _differing(repository / folder, definitions=definitions)
    ]
    if check:
        if differing:
            names = ", ".join(str(path.relative_to(repository)) for path in differing)
            fail(f"{names} differ from the models: run `trimtab crds generate` and commit them.")
        return
    for path in differing:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name in definitions:
            path.write_text(definitions[path.name])
            write(f"wrote {path}")
        else:
            path.unlink()
            write(f"removed {path}")


def _differing(folder: Path, *, definitions: dict[str, str]) -> list[Path]:
    """Return the files of a folder that have to be written or removed."""
    stale = [path for path in sorted(folder.glob("*.yaml")) if path.name not in definitions]
    return stale + [
        folder / name
        for name, text in definitions.items()
        if not (folder / name).is_file() or (folder / name).read_text() != text
    ]
