"""What single platforms make of unusual requests and results."""

from __future__ import annotations

import pytest

from trimtab_workers.runner.exchange import Request
from trimtab_workers.runner.shims import aws_lambda, openfaas


def request(*, body=b"", headers=()):
    return Request("POST", "/", "/", "", list(headers), body)


def test_a_deadline_of_many_digits_is_no_error() -> None:
    """A Lambda is called whatever number the deadline's header has."""
    shim = aws_lambda.make(lambda event, context: "ok", parameters=2)
    for digits in (400, 5000):
        assert shim(request(headers=[("trimtab-deadline-ms", "9" * digits)])).body == b"ok"


def test_json_too_deep_to_be_read_is_no_object() -> None:
    """A body of a hundred thousand brackets is left to the function as text."""
    assert request(body=b"[" * 100_000).json_object() == {}


@pytest.mark.parametrize("parameters", [1, 2])
def test_an_openfaas_handler_may_return_a_tuple(parameters) -> None:
    """Body, status and headers of the Flask templates' tuple are the answer's."""
    shim = openfaas.make(lambda *_: ("no", 404, {"X-Why": "gone"}), parameters=parameters)
    answer = shim(request())
    assert (answer.status, answer.body, answer.headers[0]) == (404, b"no", ("X-Why", "gone"))
    shim = openfaas.make(lambda *_: ([1], 201), parameters=parameters)
    assert (shim(request()).status, shim(request()).body) == (201, b"[1]")
