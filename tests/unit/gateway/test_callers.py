from __future__ import annotations

import asyncio
import base64
import json

import pytest

from trimtab_workers.gateway.callers import Callers, ReviewUnavailableError
from trimtab_workers.gateway.metrics import GatewayMetrics
from trimtab_workers.web.errors import ApiError


def a_token(name="ada", *, exp=10_000.0):
    def part(content):
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()

    return ".".join([part({"alg": "none"}), part({"sub": name, "exp": exp}), "signature"])


class FakeReviews:
    """Answers from a table; counts questions; can be down."""

    def __init__(self):
        self.tokens = {}
        self.rights = set()
        self.down = False
        self.refused = None
        self.asked = []
        self.gate = None

    async def authenticate(self, token):
        await self._ask(("token", token))
        user = self.tokens.get(token)
        return None if user is None else {"username": user, "groups": ["g"], "extra": {"k": ["v"]}}

    async def may_invoke(self, caller, *, namespace, name):
        await self._ask(("right", caller.username, namespace, name))
        return (caller.username, namespace, name) in self.rights

    async def _ask(self, question):
        self.asked.append(question)
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise ReviewUnavailableError("down", outage=True)
        if question[1] == self.refused:
            raise ReviewUnavailableError("unprocessable", outage=False)


class Bench:
    def __init__(self):
        self.now = 1000.0
        self.reviews = FakeReviews()
        self.token = a_token()
        self.reviews.tokens[self.token] = "ada"
        self.reviews.rights.add(("ada", "team-a", "chat"))
        self.callers = Callers(self.reviews, clock=lambda: self.now, metrics=GatewayMetrics())

    async def identify(self):
        return await self.callers.identify(f"Bearer {self.token}")

    async def allowed(self):
        caller = await self.identify()
        return await self.callers.may_invoke(caller, namespace="team-a", name="chat")


@pytest.fixture
async def bench():
    return Bench()


@pytest.mark.parametrize(
    "header",
    [None, "", "Basic abc", "Bearer", "Bearer  ", "Bearer " + "x" * 20_000, "Bearer a\udcff.b.c"],
)
async def test_no_token_is_401(bench, header):
    """Without a plausible bearer token nobody is asked."""
    with pytest.raises(ApiError) as caught:
        await bench.callers.identify(header)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert bench.reviews.asked == []


@pytest.mark.parametrize("exp", [10**400, float("nan"), "soon", None, [1]])
async def test_an_absurd_expiry_is_no_expiry(bench, exp):
    """What a token claims before it is vouched for is never more than a hint."""
    with pytest.raises(ApiError) as caught:
        await bench.callers.identify(f"Bearer {a_token(exp=exp)}")
    assert caught.value.status == 401


async def test_refused_token_is_401_and_remembered_briefly(bench):
    """A refused token is 401; a client in a loop asks the API server every 2 s only."""
    for _ in range(5):
        with pytest.raises(ApiError, match="refused"):
            await bench.callers.identify("Bearer other")
    assert len(bench.reviews.asked) == 1
    bench.now += 2
    bench.reviews.tokens["other"] = "eve"
    assert (await bench.callers.identify("Bearer other")).username == "eve"


async def test_callers_carry_what_access_reviews_need(bench):
    """User, groups and extra come from the TokenReview, the expiry from the token."""
    caller = await bench.identify()
    assert (caller.username, caller.groups) == ("ada", ("g",))
    assert caller.extra == {"k": ("v",)}
    assert caller.expires_at == 10_000.0


async def test_answers_are_fresh_for_ten_seconds(bench):
    """Within 10 s nothing is asked twice; after it both questions are."""
    assert await bench.allowed()
    bench.now += 9
    assert await bench.allowed()
    assert len(bench.reviews.asked) == 2
    bench.now += 1
    assert await bench.allowed()
    assert len(bench.reviews.asked) == 4


async def test_taken_rights_are_noticed(bench):
    """A right taken away is gone after 10 s."""
    assert await bench.allowed()
    bench.reviews.rights.clear()
    bench.now += 10
    assert not await bench.allowed()


async def test_known_callers_survive_an_outage(bench):
    """While the API server is silent, a known caller stays valid for 15 min."""
    assert await bench.allowed()
    bench.reviews.down = True
    bench.now += 899
    assert await bench.allowed()
    bench.now += 1
    with pytest.raises(ApiError) as caught:
        await bench.allowed()
    assert (caught.value.status, caught.value.code) == (503, "AuthUnavailable")
    assert caught.value.retry_after_seconds


async def test_an_outage_does_not_stretch_a_token(bench):
    """In an outage a token still ends at its expiry."""
    bench.token = a_token(exp=1060.0)
    bench.reviews.tokens[bench.token] = "ada"
    assert await bench.allowed()
    bench.reviews.down = True
    bench.now += 59
    assert await bench.allowed()
    bench.now += 1
    with pytest.raises(ApiError, match="cannot be checked"):
        await bench.allowed()


async def test_unseen_callers_are_503_in_an_outage(bench):
    """A caller whom the API server never vouched for is not let in while it is silent."""
    bench.reviews.down = True
    with pytest.raises(ApiError) as caught:
        await bench.identify()
    assert caught.value.code == "AuthUnavailable"


async def test_a_silent_server_is_not_asked_by_every_request(bench):
    """After a question without answer the next ones wait 2 s before they are asked."""
    assert await bench.allowed()
    bench.reviews.down = True
    bench.now += 100
    for _ in range(10):
        assert await bench.allowed()
    assert len(bench.reviews.asked) == 3
    bench.reviews.down = False
    bench.now += 2
    assert await bench.allowed()
    assert len(bench.reviews.asked) == 5


async def test_a_refused_question_silences_nobody_else(bench):
    """A caller whose question the API server refuses keeps no other caller out."""
    bench.reviews.refused = "odd"
    with pytest.raises(ApiError, match="cannot be checked"):
        await bench.callers.identify("Bearer odd")
    assert (await bench.identify()).username == "ada"


async def test_one_question_at_a_time(bench):
    """Requests that need the same answer share one question."""
    bench.reviews.gate = asyncio.Event()
    waiting = [asyncio.ensure_future(bench.identify()) for _ in range(8)]
    await asyncio.sleep(0)
    bench.reviews.gate.set()
    assert {caller.username for caller in await asyncio.gather(*waiting)} == {"ada"}
    assert len(bench.reviews.asked) == 1


async def test_a_client_that_leaves_does_not_fail_the_others(bench):
    """If the request that asked first is cancelled, those that wait with it get the answer."""
    bench.reviews.gate = asyncio.Event()
    first = asyncio.ensure_future(bench.identify())
    second = asyncio.ensure_future(bench.identify())
    await asyncio.sleep(0)
    first.cancel()
    bench.reviews.gate.set()
    assert (await second).username == "ada"


@pytest.mark.parametrize("token", ["a.b.c", "a.e30.c", "a.eyJleHAiOiAidHJ1ZSJ9.c", "static"])
async def test_odd_tokens_have_no_expiry(bench, token):
    """A token whose expiry cannot be read counts by the 15 min alone."""
    bench.reviews.tokens[token] = "ada"
    caller = await bench.callers.identify(f"bearer {token}")
    assert caller.expires_at is None
