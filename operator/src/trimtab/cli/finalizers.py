"""`trimtab finalizers`: let objects go when the operator is gone for good."""

from __future__ import annotations

import asyncio

import typer

from trimtab.cli.output import Format, OutputOption, fail, write, write_json

app = typer.Typer(no_args_is_help=True, help="Take Trimtab's finalizer off its objects.")


@app.callback()
def finalizers() -> None:
    """Take Trimtab's finalizer off its objects."""


@app.command()
def release(output: OutputOption = Format.TABLE) -> None:
    """Remove Trimtab's finalizer from every object, for an uninstall: nothing hangs in deletion.

    While an operator runs it puts the finalizer back.
    """
    released: list[dict[str, str | None]] = []

    def note(kind: str, namespace: str | None, name: str) -> None:
        released.append({"kind": kind, "namespace": namespace, "name": name})
        if output is Format.TABLE:
            write(f"released {kind} {f'{namespace}/' if namespace else ''}{name}")

    from trimtab.cli.cluster import ClusterError  # noqa: PLC0415 - the client takes 0.6 s

    try:
        count = asyncio.run(_release(note))
    except ClusterError as error:
        fail(str(error))
    if output is Format.JSON:
        write_json({"released": released})
    else:
        write(f"{count} objects released")


async def _release(note: object) -> int:
    from trimtab.cli.cluster import connected  # noqa: PLC0415 - the client takes 0.6 s
    from trimtab.kube.finalizers import release_all  # noqa: PLC0415 - as above

    async with connected() as client:
        return await release_all(client, on_released=note)  # type: ignore[arg-type]
