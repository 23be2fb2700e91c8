"""What the gateway makes of the API server's errors, and how long it waits for a turn."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from trimtab.kube.errors import ApiError
from trimtab_workers.gateway.callers import ReviewUnavailableError
from trimtab_workers.gateway.kube.reviews import ApiServerReviews


class FakeClient:
    """Raises what it is given, or answers never, as long as it may."""

    def __init__(self, error=None):
        self.error = error

    async def request(self, *_, timeout_seconds, **__):
        if self.error is not None:
            raise self.error
        async with asyncio.timeout(timeout_seconds):
            await asyncio.Event().wait()


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


@pytest.mark.looptime
async def test_the_wait_for_a_turn_is_part_of_the_timeout():
    """Behind a server that answers nobody the last of many ends as soon as the first."""
    reviews = ApiServerReviews(FakeClient(), audience="trimtab")
    ended = await asyncio.gather(
        *(reviews.authenticate(f"token-{index}") for index in range(100)), return_exceptions=True
    )
    assert {type(error) for error in ended} == {ReviewUnavailableError}
    assert asyncio.get_running_loop().time() == pytest.approx(3, abs=0.1)
