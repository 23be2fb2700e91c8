"""`python -m e2e.images [operator] [gateway]`: build images, print reference and archive of each."""

from __future__ import annotations

import argparse
import sys

from e2e.images import build as builder


def main() -> int:
    """Build the images named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m e2e.images", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(builder.NAMES))
    names = parser.parse_args().names
    unknown = sorted(set(names) - set(builder.NAMES))
    if unknown:
        parser.error(f"unknown image {', '.join(unknown)}; there are {', '.join(builder.NAMES)}")
    try:
        images = builder.build(names=tuple(names), report=lambda line: print(line, file=sys.stderr))
    except builder.ImageBuildError as exc:
        print(exc, file=sys.stderr)
        return 2
    for image in images:
        print(f"{image.reference}\t{image.archive}\t{image.archive.stat().st_size / 2**20:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
