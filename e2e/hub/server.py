"""One line to a hub for a blocking test: folders by repository name, one commit, one cut."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from e2e.hub.hub import Hub, Repository, ThreadedHub

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@contextlib.contextmanager
def running_hub(
    folders: Mapping[str, Path],
    *,
    host: str = "127.0.0.1",
    revision: str = "",
    token: str = "",
    cut_once_after_bytes: int | None = None,
) -> Iterator[Hub]:
    """Serve folders as repositories while the context is open; see the hub's `url` and counters.

    Args:
        folders: By `organisation/name`.
        host: An address that the downloader reaches.
        revision: The commit that `main` points to, 40 hex digits; by default one made of the files.
        token: What callers must present.
        cut_once_after_bytes: Cut the first longer transfer of weights after so many bytes.
    """
    repositories = {
        name: Repository(folder=folder, pinned=revision, token=token)
        for name, folder in folders.items()
    }
    with ThreadedHub(repositories, host=host) as hub:
        if cut_once_after_bytes is not None:
            hub.cut("", after_bytes=cut_once_after_bytes)
        yield hub
