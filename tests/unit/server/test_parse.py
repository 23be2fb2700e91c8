from __future__ import annotations

import pytest

from trimtab_workers.engine.errors import InvalidRequestError
from trimtab_workers.server.parse import parse_chat, parse_completion
from trimtab_workers.web.errors import ApiError


def a_chat(**fields):
    return {"model": "team-a/chat", "messages": [{"role": "user", "content": "Hi"}]} | fields


def a_completion(**fields):
    return {"model": "team-a/chat", "prompt": "Hi"} | fields


def test_defaults_are_openais():
    """A bare chat request samples at temperature 1 without a limit of its own."""
    call = parse_chat(a_chat())
    assert call.sampling.n == 1
    assert not call.sampling.stream
    assert call.sampling.params.temperature == 1.0
    assert call.sampling.params.max_tokens is None
    assert parse_completion(a_completion()).sampling.params.max_tokens == 16


def test_null_counts_as_absent():
    """Clients that send every field as null get the defaults."""
    nulls = dict.fromkeys(("temperature", "n", "stop", "tools", "stream_options", "seed"))
    assert parse_chat(a_chat(**nulls)) == parse_chat(a_chat())


def test_newer_limit_wins():
    """`max_completion_tokens` replaces the deprecated `max_tokens`."""
    call = parse_chat(a_chat(max_tokens=5, max_completion_tokens=7))
    assert call.sampling.params.max_tokens == 7


def test_text_parts_are_joined():
    """A list of text parts reads as one text."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = parse_chat(a_chat(messages=[{"role": "developer", "content": parts}]))
    assert call.messages == ({"role": "system", "content": "a\nb"},)


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_prompts_in_all_four_shapes(prompt, parsed):
    """Completions take a text, texts, token ids, or lists of token ids."""
    assert parse_completion(a_completion(prompt=prompt)).prompts == parsed


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 3}, "model", "missing_required_parameter"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "invalid_type"),
        ({"messages": ["Hi"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "tool", "content": "4"}]},
            "messages[0]",
            "unsupported_parameter",
        ),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"n": 129}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2.0}, "max_tokens", "invalid_type"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": float("nan")}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"stop": ["a", 1]}, "stop", "invalid_type"),
        ({"stop": [""]}, "stop", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"logit_bias": {"cat": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"seed": 2**64}, "seed", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"add_special_tokens": True}, "add_special_tokens", "unsupported_parameter"),
        ({"return_token_ids": True}, "return_token_ids", "unsupported_parameter"),
        ({"stop": ["a" * 1025]}, "stop", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"stop_token_ids": list(range(257))}, "stop_token_ids", "invalid_value"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "invalid_value"),
    ],
)
def test_refusals_name_the_field(fields, param, code):
    """A wrong chat field ends in a 400 whose `param` is that field."""
    with pytest.raises((ApiError, InvalidRequestError)) as caught:
        parse_chat(a_chat(**fields))
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"prompt": ["a"] * 256, "n": 5}, "n"),
        ({"echo": True}, "echo"),
        ({"add_special_tokens": False}, "add_special_tokens"),
        ({"suffix": "!"}, "suffix"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_completion_refusals_name_the_field(fields, param):
    """A wrong completion field ends in a 400 whose `param` is that field."""
    with pytest.raises(ApiError) as caught:
        parse_completion(a_completion(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"user": "ada"},
        {"best_of": 1},
        {"top_logprobs": 0},
        {"add_special_tokens": False},
        {"metadata": {"a": "b"}},
        {"parallel_tool_calls": True},
        {"something_new": 1},
    ],
)
def test_harmless_fields_are_ignored(fields):
    """Fields that ask for nothing, or that cannot change the answer, are let through."""
    assert parse_chat(a_chat(**fields)) == parse_chat(a_chat())


def test_long_values_are_shortened_in_messages():
    """An error shows the start of a hostile value, not all of it."""
    with pytest.raises(ApiError) as caught:
        parse_chat(a_chat(stop={"a": "x" * 10_000}))
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 10**400),
        ("logit_bias", {"1": 10**400}),
        ("logit_bias", {"9" * 5000: 1}),
    ],
)
def test_numbers_without_bounds_are_refused_by_name(field, value):
    """JSON has numbers that no float and no integer conversion takes."""
    with pytest.raises(ApiError) as caught:
        parse_chat(a_chat(**{field: value}))
    assert (caught.value.status, caught.value.param) == (400, field)
