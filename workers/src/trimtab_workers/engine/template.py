"""Chat templates: foreign Jinja2 source, run in a sandbox, bounded in size."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any, NoReturn

from trimtab_workers.engine.errors import InvalidRequestError, ModelCorruptError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_TEMPLATE_BYTES = 64 << 10
MAX_RENDERED_CHARACTERS = 4 << 20


class ChatTemplate:
    """A compiled chat template.

    Raises:
        ModelCorruptError: The source is too large or no Jinja2.
    """

    def __init__(self, source: str, *, special_texts: Mapping[str, str]) -> None:
        from jinja2.exceptions import TemplateError  # noqa: PLC0415 - only models with templates
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

        if len(source) > MAX_TEMPLATE_BYTES:
            raise ModelCorruptError(
                f"The chat template has {len(source)} characters, more than {MAX_TEMPLATE_BYTES}. "
                "Give a shorter one with chat_template."
            )
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ModelCorruptError(
                f"The chat template is no valid Jinja2: {error}. Give another with chat_template."
            ) from error
        self._texts = dict(special_texts)

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """Render messages to a prompt.

        Raises:
            InvalidRequestError: The template refuses them, or the result is too long.
        """
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(
                messages=messages, add_generation_prompt=add_generation_prompt, **self._texts
            ):
                parts.append(part)
                length += len(part)
                if length > MAX_RENDERED_CHARACTERS:
                    break
        except Exception as error:  # foreign code: it may raise anything
            raise InvalidRequestError(
                f"messages: the model's chat template refuses them: {error}. Change the messages.",
                param="messages",
            ) from error
        if length > MAX_RENDERED_CHARACTERS:
            raise InvalidRequestError(
                f"messages: the chat template made more than {MAX_RENDERED_CHARACTERS} characters of "
                "them. Send less.",
                param="messages",
            )
        return "".join(parts)

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


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    from jinja2.exceptions import TemplateError  # noqa: PLC0415 - already loaded

    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    return dt.datetime.now(tz=dt.UTC).strftime(layout)
