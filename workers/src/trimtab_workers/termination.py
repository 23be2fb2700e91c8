"""A container's termination message: JSON that the kubelet does not cut."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_MESSAGE_BYTES: Final = 4096


def fitting(message: Mapping[str, Any]) -> str:
    """Return the message as JSON; a refusal's sentence is cut to what fits.

    Foreign names are part of it, and escaped a character may take twelve bytes.
    """
    text = json.dumps(message, separators=(",", ":"))
    sentence = message.get("message", "")
    while len(text) > _MESSAGE_BYTES and sentence:
        sentence = sentence[: len(sentence) * 3 // 4]
        text = json.dumps({**message, "message": f"{sentence}…"}, separators=(",", ":"))
    if len(text) > _MESSAGE_BYTES:
        raise RuntimeError(
            f"The termination message has {len(text)} bytes, more than {_MESSAGE_BYTES}. "
            "This is a bug; please report it with the model's config.json."
        )
    return text
