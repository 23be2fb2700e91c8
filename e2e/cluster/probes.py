"""Health checks over HTTP and waiting for them, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from e2e.cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _context(ca: Path | None, client: Path | None, *, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if client:
        context.load_cert_chain(f"{client}.crt", f"{client}.key")
    return context


def get(
    url: str, *, ca: Path | None = None, client: Path | None = None, token: str | None = None,
    verify: bool = True, timeout_seconds: float = 2.0,
) -> bytes | None:  # fmt: skip
    """Return the body of a GET that answers 2xx; every failure is None.

    `ca` is a file of authorities; `client` the path of a `.crt` and `.key` pair without the suffix.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if url.startswith("https"):
        context = _context(ca, client, verify=verify)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(
            request, timeout=timeout_seconds
        ) as answer:
            body: bytes = answer.read()
            return body if 200 <= answer.status < 300 else None
    except urllib.error.HTTPError as exc:
        exc.close()
        return None
    except (OSError, http.client.HTTPException):
        return None


def ok(
    url: str, *, ca: Path | None = None, client: Path | None = None, token: str | None = None,
    verify: bool = True,
) -> bool:  # fmt: skip
    """Return whether a GET of `url` answers 2xx."""
    return get(url, ca=ca, client=client, token=token, verify=verify) is not None


def get_json(url: str, *, ca: Path, token: str) -> dict[str, Any] | None:
    """Return the JSON object at `url`, or None."""
    body = get(url, ca=ca, token=token)
    return json.loads(body) if body else None


def wait_for(
    what: str,
    probe: Callable[[], object],
    *,
    seconds: float,
    fatal: Callable[[], str | None] = lambda: None,
    seen: Callable[[], str] = lambda: "",
    interval_seconds: float = 0.05,
) -> None:
    """Return once `probe` is truthy.

    Raises:
        ClusterError: `fatal` gave a reason, or `seconds` passed; says what was awaited and what `seen` shows.
    """
    deadline = time.monotonic() + seconds
    while not probe():
        if reason := fatal():
            raise ClusterError(f"Waiting for {what}: {reason}")
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not within {seconds:g} s. {seen()}".strip())
        time.sleep(interval_seconds)
