"""The command tree. A module per command; what is heavy is imported inside the commands."""

from __future__ import annotations

import typer

from trimtab.cli import crds, finalizers, fingerprint, functions, model, simulate
from trimtab.cli.bench import bench
from trimtab.cli.output import write
from trimtab.cli.plan import plan
from trimtab.cli.remap import remap
from trimtab.cli.why import why

app = typer.Typer(
    name="trimtab",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Trimtab takes intents instead of settings and explains every decision.",
)
app.command()(why)
app.command()(plan)
app.command()(remap)
app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)(bench)
app.add_typer(crds.app, name="crds")
app.add_typer(model.app, name="model")
app.add_typer(simulate.app, name="simulate")
app.add_typer(fingerprint.app, name="fingerprint")
app.add_typer(finalizers.app, name="finalizers")
app.add_typer(functions.app, name="functions")


@app.command()
def version() -> None:
    """Print the version."""
    from trimtab import __version__  # noqa: PLC0415 - one place holds it

    write(__version__)
