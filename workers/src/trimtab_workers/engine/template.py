"""Chat templates: foreign Jinja2 source, run in a process of its own (see `renderer`)."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.engine.errors import (
    InvalidRequestError,
    ModelCorruptError,
    ModelUnavailableError,
)
from trimtab_workers.engine.renderer import CPU_SECONDS, receive, send

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

MAX_TEMPLATE_BYTES: Final = 64 << 10
TURN_SECONDS: Final = 10.0


class ChatTemplate:
    """A chat template; safe to use from several threads, which take turns.

    Raises:
        ModelCorruptError: The source is too large or no Jinja2.
    """

    def __init__(self, source: str, *, special_texts: Mapping[str, str]) -> None:
        from jinja2 import Environment  # noqa: PLC0415 - only models with templates
        from jinja2.exceptions import TemplateError  # noqa: PLC0415

        if len(source) > MAX_TEMPLATE_BYTES:
            raise ModelCorruptError(
                f"The chat template has {len(source)} characters, more than {MAX_TEMPLATE_BYTES}. "
                "Give a shorter one with chat_template."
            )
        try:
            # NB: parsing alone computes nothing; compiling folds constants, so it is not done here.
            Environment(  # noqa: S701 - makes prompts, not HTML
                trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
            ).parse(source)
        except (TemplateError, RecursionError) as error:
            raise ModelCorruptError(
                f"The chat template is no valid Jinja2: {error}. Give another with chat_template."
            ) from error
        self._first = {"source": source, "names": dict(special_texts)}
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., ChatTemplate] | None = None

    def start(self) -> None:
        """Start the renderer, so that the first request need not wait for its imports."""
        with self._turn:
            self._running()

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """Render messages to a prompt.

        Raises:
            InvalidRequestError: The template refuses them, or needs too much for them.
            ModelUnavailableError: Other requests keep the template busy.
        """
        if not self._turn.acquire(timeout=TURN_SECONDS):
            raise ModelUnavailableError(
                "The model's chat template is busy with other requests. Send this one again.",
                retry_after_seconds=2,
            )
        try:
            call = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
            reply = self._exchange(call)
        finally:
            self._turn.release()
        text = reply.get("text")
        if text is not None:
            return text
        raise InvalidRequestError(
            f"messages: the model's chat template refuses them: {reply['refusal']}. "
            "Change the messages.",
            param="messages",
        )

    def _exchange(self, call: Mapping[str, Any]) -> dict[str, str]:
        process = self._running()
        reply = None
        with contextlib.suppress(OSError):
            send(process.stdin, call)  # type: ignore[arg-type]  # both are pipes
            reply = receive(process.stdout)  # type: ignore[arg-type]
        if reply is not None:
            return reply
        self._stop()
        how = process.returncode
        if how == -signal.SIGVTALRM:
            return {"refusal": f"it takes more than {CPU_SECONDS:.0f} s of processor time"}
        log.warning("chat_template_ended", extra={"status": how})
        return {"refusal": f"its process ended with status {how}, probably for lack of memory"}

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        # NB: without -P the current folder would come first on the path, whatever lies in it.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trimtab_workers.engine.renderer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # logs are JSON, a stranger's traceback is none
        )
        self._end = weakref.finalize(self, _end, self._process)
        with contextlib.suppress(OSError):  # it ended already: found out at the first use
            send(self._process.stdin, self._first)  # type: ignore[arg-type]
        return self._process

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._process = None

    @staticmethod
    def render_or_refuse(
        template: ChatTemplate | None,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
    ) -> str:
        """Render, or say that the model has no template."""
        if template is None:
            raise InvalidRequestError(
                "messages: this model has no chat template. Use /v1/completions, or set "
                "chat_template in the model set.",
                param="messages",
            )
        return template.render(messages, add_generation_prompt=add_generation_prompt)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what it never read is lost with it
                pipe.close()
    process.wait()
