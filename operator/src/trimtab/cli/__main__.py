"""`python -m trimtab.cli`: the `trimtab` command where no entry point is on the PATH."""

from trimtab.cli import main

main()
