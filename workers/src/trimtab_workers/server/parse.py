"""From a request's JSON to what the engine is asked: validated, or a 400 naming the field.

A field we lack is refused if leaving it out would change the answer, and ignored otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.engine.types import SamplingParams
from trimtab_workers.server.fields import Fields, invalid, is_integer_list, to_float
from trimtab_workers.web.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_CHOICES: Final = 128
MAX_PROMPTS: Final = 256
MAX_CALL_CHOICES: Final = 1_024  # what a model's queue holds: more could never be let in
COMPLETION_MAX_TOKENS: Final = 16
_LONGEST_NUMBER: Final = 19
_MAX_COMPLETION_LOGPROBS: Final = 20

# Field -> the values that ask for nothing; anything else would change the answer.
_REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "min_tokens": (0,),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "prompt_logprobs": (),
    "echo": (False,),
    "suffix": ("",),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "truncate_prompt_tokens": (),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "detokenize": (True,),
}

Message = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What both APIs share."""

    model: str
    params: SamplingParams
    n: int
    stream: bool
    include_usage: bool
    continuous_usage: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """A checked `/v1/chat/completions` body."""

    sampling: Sampling
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionCall:
    """A checked `/v1/completions` body; a prompt is a text or token ids."""

    sampling: Sampling
    prompts: tuple[str | tuple[int, ...], ...]


def parse_chat(body: Mapping[str, Any]) -> ChatCall:
    """Check a chat request.

    Raises:
        ApiError: 400 with the field in `param`.
        InvalidRequestError: A sampling value is out of range; names field, value and range.
    """
    fields = Fields(body)
    fields.text("model")  # what is missing first is named first
    messages = parse_messages(fields.get("messages"))
    wanted = fields.boolean("logprobs")
    top = fields.optional_integer("top_logprobs", least=0, most=_MAX_COMPLETION_LOGPROBS)
    if top and not wanted:
        raise invalid("top_logprobs", top, "It needs logprobs set to true.")
    limit = fields.optional_integer("max_completion_tokens", least=1)
    if limit is None:
        limit = fields.optional_integer("max_tokens", least=1)
    logprobs = (top or 0) if wanted else None
    return ChatCall(
        sampling=_sampling(fields, limit=limit, logprobs=logprobs, special=False),
        messages=messages,
    )


def parse_completion(body: Mapping[str, Any]) -> CompletionCall:
    """Check a text completion request.

    Raises:
        ApiError: 400 with the field in `param`.
        InvalidRequestError: A sampling value is out of range; names field, value and range.
    """
    fields = Fields(body)
    fields.text("model")  # what is missing first is named first
    prompts = _prompts(fields.get("prompt"))
    limit = fields.integer("max_tokens", COMPLETION_MAX_TOKENS, least=1)
    logprobs = fields.optional_integer("logprobs", least=0, most=_MAX_COMPLETION_LOGPROBS)
    sampling = _sampling(fields, limit=limit, logprobs=logprobs, special=True)
    if sampling.n * len(prompts) > MAX_CALL_CHOICES:
        raise invalid(
            "n",
            sampling.n,
            f"With {len(prompts)} prompts that is {sampling.n * len(prompts)} choices; "
            f"a call may have {MAX_CALL_CHOICES}.",
        )
    return CompletionCall(sampling=sampling, prompts=prompts)


def _sampling(
    fields: Fields, *, limit: int | None, logprobs: int | None, special: bool
) -> Sampling:
    _refuse_unsupported(fields, special=special)
    stream = fields.boolean("stream")
    options = Fields(fields.mapping("stream_options"))
    if fields.get("stream_options") is not None and not stream:
        raise invalid(
            "stream_options", fields.get("stream_options"), "It needs stream set to true."
        )
    include_usage = options.boolean("include_usage")
    params = SamplingParams(
        max_tokens=limit,
        temperature=fields.number("temperature", 1.0),
        top_p=fields.number("top_p", 1.0),
        top_k=fields.integer("top_k", 0),
        min_p=fields.number("min_p", 0.0),
        seed=fields.optional_integer("seed"),
        stop=fields.texts("stop"),
        stop_token_ids=fields.integers("stop_token_ids"),
        ignore_eos=fields.boolean("ignore_eos"),
        logprobs=logprobs,
        presence_penalty=fields.number("presence_penalty", 0.0),
        frequency_penalty=fields.number("frequency_penalty", 0.0),
        repetition_penalty=fields.number("repetition_penalty", 1.0),
        logit_bias=_logit_bias(fields.mapping("logit_bias")),
    )
    choices = fields.integer("n", 1, least=1, most=MAX_CHOICES)
    best_of = fields.integer("best_of", choices, least=1)
    if best_of != choices:
        raise invalid(
            "best_of",
            best_of,
            f"This server returns every choice it makes: leave it out, or give n, {choices}.",
            code="unsupported_parameter",
        )
    return Sampling(
        model=fields.text("model"),
        params=params,
        n=choices,
        stream=stream,
        include_usage=include_usage,
        continuous_usage=include_usage and options.boolean("continuous_usage_stats"),
    )


def _refuse_unsupported(fields: Fields, *, special: bool) -> None:
    refused = _REFUSED | {"add_special_tokens": (special,)}
    for name, harmless in refused.items():
        value = fields.get(name)
        if value is not None and value not in harmless:
            raise ApiError(
                400,
                f"{name} is not supported by this server, and ignoring it would change the "
                "answer. Leave it out.",
                code="unsupported_parameter",
                param=name,
            )


def _logit_bias(entries: Mapping[str, Any]) -> Mapping[int, float]:
    bias: dict[int, float] = {}
    for key, value in entries.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (key.isascii() and key.isdigit() and len(key) < _LONGEST_NUMBER) or not number:
            raise invalid("logit_bias", {key: value}, "Give numbers by token id.")
        bias[int(key)] = to_float("logit_bias", value)
    return bias


def parse_messages(value: object) -> tuple[Message, ...]:
    """Check a conversation; content is text, in one piece or in parts.

    Raises:
        ApiError: 400 with the message at fault in `param`.
    """
    if not isinstance(value, list) or not value:
        raise invalid(
            "messages",
            value,
            "Give a list with at least one message.",
            code="missing_required_parameter" if value is None else "invalid_type",
        )
    return tuple(_message(entry, where=f"messages[{i}]") for i, entry in enumerate(value))


def _message(entry: object, *, where: str) -> Message:
    if not isinstance(entry, dict):
        raise invalid(where, entry, "Give an object with role and content.", code="invalid_type")
    role = entry.get("role")
    if not isinstance(role, str) or not role:
        raise invalid(f"{where}.role", role, "Give system, user or assistant.")
    if entry.get("tool_calls") or entry.get("function_call") or role in {"tool", "function"}:
        raise ApiError(
            400,
            f"{where} takes part in a tool call, which this server does not support.",
            code="unsupported_parameter",
            param=where,
        )
    message: Message = {
        "role": "system" if role == "developer" else role,
        "content": _content(entry.get("content"), where=f"{where}.content"),
    }
    if isinstance(entry.get("name"), str):
        message["name"] = entry["name"]
    return message


def _content(value: object, *, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise invalid(where, value, "Give a text or a list of text parts.", code="invalid_type")
    texts = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise invalid(
                f"{where}[{index}].type",
                kind,
                "This server takes parts of type text only.",
                code="unsupported_parameter",
            )
        text = part.get("text")
        if not isinstance(text, str):
            raise invalid(f"{where}[{index}].text", text, "Give a text.", code="invalid_type")
        texts.append(text)
    return "\n".join(texts)


def _prompts(value: object) -> tuple[str | tuple[int, ...], ...]:
    remedy = "Give a text, a list of texts, a list of token ids, or a list of those."
    if isinstance(value, str) and value:
        return (value,)
    if not isinstance(value, list) or not value:
        code = "missing_required_parameter" if value is None else "invalid_type"
        raise invalid("prompt", value, remedy, code=code)
    if is_integer_list(value):
        return (_token_ids(value),)
    if len(value) > MAX_PROMPTS:
        raise invalid("prompt", f"{len(value)} prompts", f"Give at most {MAX_PROMPTS}.")
    prompts: list[str | tuple[int, ...]] = []
    for entry in value:
        if isinstance(entry, str) and entry:
            prompts.append(entry)
        elif isinstance(entry, list) and entry and is_integer_list(entry):
            prompts.append(_token_ids(entry))
        else:
            raise invalid("prompt", entry, remedy, code="invalid_type")
    return tuple(prompts)


def _token_ids(value: list[int]) -> tuple[int, ...]:
    if min(value) < 0:
        raise invalid("prompt", min(value), "Token ids are 0 or more.")
    return tuple(value)
