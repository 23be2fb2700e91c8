"""What the gateway makes of the API server's errors, and how long it waits for a turn."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from trimtab.kube.errors import ApiError
from trimtab_workers.gateway.callers import ReviewUnavailableError
from trimtab_workers.gateway.kube.reviews import ApiServerReviews


class FakeClient:
    """Raises what it is given, or answers never."""

    def __init__(self, error=None):
        self.error = error

    async def request(self, *_, **__):
        if self.error is None:
            await asyncio.Event().wait()
        raise self.error


def an_answer(code):
    return ApiError(method="POST", path="/", code=code, status={})


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (an_answer(400), False),
        (an_answer(403), False),
        (an_answer(422), False),
        (an_answer(429), True),
        (an_answer(500), True),
        (an_answer(503), True),
        (ValueError("no JSON"), False),
        (aiohttp.ServerDisconnectedError(), True),
        (TimeoutError(), True),
        (ConnectionRefusedError(), True),
    ],
)
async def test_only_what_concerns_every_question_is_an_outage(error, outage):
    """A 4xx is about one question; a server that is silent, throttles or fails, about all."""
    reviews = ApiServerReviews(FakeClient(error), audience="trimtab")
    with pytest.raises(ReviewUnavailableError) as caught:
        await reviews.authenticate("token")
    assert caught.value.outage is outage
