"""Names of objects: equal after a crash, at most 63 characters, free of collisions."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final

MAX_NAME: Final = 63
_HASH: Final = 8
_NOT_DNS: Final = re.compile(r"[^a-z0-9]+")


def short_hash(*parts: str, length: int = _HASH) -> str:
    """Return the first hex digits of SHA-256 over the parts; the order of parts matters."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:length]


def digest(value: Any, *, length: int = 16) -> str:
    """Return hex digits of SHA-256 over canonical JSON; equal values have equal digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def child(owner: str, suffix: str) -> str:
    """Return `<owner>-<suffix>`, cut and given a hash of both where it would be too long.

    The result is a DNS label: it names Services and is a label value as well.
    """
    plain = dns_label(f"{owner}-{suffix}")
    exact = plain == f"{owner}-{suffix}"
    if exact and len(plain) <= MAX_NAME:
        return plain
    # A changed or cut name could meet another one, so it carries a hash of what it stands for.
    # The separator keeps ("a-b", "c") and ("a", "b-c") apart.
    tail = f"-{short_hash(owner, suffix)}"
    return plain[: MAX_NAME - len(tail)].rstrip("-") + tail


def dns_label(text: str) -> str:
    """Return `text` in lower case with everything but letters and digits as single dashes."""
    label = _NOT_DNS.sub("-", text.lower()).strip("-")
    if not label or label[0].isdigit():
        # Service names must begin with a letter.
        label = f"t-{label}".rstrip("-")
    return label


def deployment(intent: str, uid: str) -> str:
    """Return the name of an intent's Deployment and Service: `<intent>-<8 hex of uid>`."""
    return child(intent, short_hash(uid))


def group(namespace: str, uid: str) -> str:
    """Return the id of the sharing group that an intent founds: `<namespace>-<8 hex of uid>`."""
    return child(namespace, short_hash(uid))


def group_worker(group_id: str) -> str:
    """Return the name of a group's Deployment and Service, which no intent's own ever has."""
    return child(group_id, "group")


def model_set(deployment_name: str, plan_digest: str) -> str:
    """Return the name of a model set's ConfigMap: one per plan digest."""
    return child(deployment_name, plan_digest[:_HASH])


def routes(namespace: str) -> str:
    """Return the name of a namespace's routing table in the system namespace."""
    return f"trimtab-routes-{short_hash(namespace)}"


def load_history(namespace: str) -> str:
    """Return the name of what arrived for a namespace's intents, in the system namespace."""
    return f"trimtab-load-{short_hash(namespace)}"
