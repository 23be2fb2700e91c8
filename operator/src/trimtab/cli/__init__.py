"""The `trimtab` command and the `kubectl trimtab` plug-in."""


def main() -> None:
    """Run the `trimtab` command."""
    from trimtab.cli.app import app  # noqa: PLC0415 - keep `import trimtab.cli` light

    app()


def kubectl_plugin() -> None:
    """Run as `kubectl trimtab`: the same command under the name kubectl shows."""
    from trimtab.cli.app import app  # noqa: PLC0415 - keep `import trimtab.cli` light

    app(prog_name="kubectl trimtab")
