"""Handlers as their platforms' documentation writes them run unmodified, served over HTTP."""

from __future__ import annotations

import json
import socket

JSON = {"Content-Type": "application/json"}
EVENT = {"ce-specversion": "1.0", "ce-id": "7", "ce-type": "made", "ce-source": "/here"}


def test_a_decorated_http_function_gets_flasks_request(run) -> None:
    """functions-framework's decorator is enough: its one function is served, query and JSON body alike."""
    served = run("framework_http")
    answer = served.request("GET", "/?name=Ada")
    assert (answer.status, answer.json) == (201, {"greeting": "Hello, Ada!"})
    assert answer.headers["X-Style"] == "functions-framework"
    answer = served.request("POST", "/", body=b'{"name": "Bo"}', headers=JSON)
    assert answer.json == {"greeting": "Hello, Bo!"}


def test_a_cloud_event_function_hears_binary_and_structured_events(run, tmp_path) -> None:
    """Both of the protocol's HTTP modes reach functions-framework's CloudEvent function unchanged."""
    heard = tmp_path / "heard"
    served = run("framework_event", HEARD=str(heard))
    assert served.request("POST", "/", body=b'{"n": 1}', headers=JSON | EVENT).status == 200
    assert heard.read_text() == "7 made 1\n"
    whole = {key.removeprefix("ce-"): value for key, value in EVENT.items()} | {"data": {"n": 2}}
    structured = {"Content-Type": "application/cloudevents+json"}
    answer = served.request("POST", "/", body=json.dumps(whole).encode(), headers=structured)
    assert answer.status == 200
    assert heard.read_text() == "7 made 2\n"


def test_a_target_names_one_of_several_functions_and_its_stream_is_streamed(run) -> None:
    """FUNCTION_TARGET chooses; an answer of unknown length is chunked, and its use is known afterwards."""
    served = run("framework_stream", FUNCTION_TARGET="report")
    answer = served.request("GET", "/a", headers={"Trimtab-Invocation": "i1"})
    assert answer.body == b"".join(b"line %d of /a\n" % n for n in range(3))
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert "Trimtab-Usage" not in answer.headers
    assert served.request("GET", "/-/trimtab/usage/i1").json["wallMicros"] > 0


def test_a_lambda_gets_the_event_of_a_function_url(run) -> None:
    """Status, headers, cookies and body of the handler's result are the answer's, text and base64."""
    served = run("lambda_url", K_SERVICE="adder")
    answer = served.request("POST", "/sum?q=x&q=y", body=b'{"a": 1, "b": 2}', headers=JSON)
    assert answer.status == 202
    assert answer.json == {"path": "/sum", "q": "x,y", "sum": 3, "name": "adder"}
    assert answer.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    answer = served.request("PUT", "/", body=b"\x89PNG", headers={"Content-Type": "image/png"})
    assert (answer.body, answer.headers["Content-Type"]) == (b"GNP\x89", "image/png")


def test_a_lambda_written_for_direct_calls_gets_its_payload(run) -> None:
    """Members of a JSON body are in the event; the emulator's path gives the body alone."""
    served = run("lambda_direct", "--signature", "Lambda")
    late = JSON | {"Trimtab-Deadline-Ms": "5000"}
    for path in ("/", "/2015-03-31/functions/function/invocations"):
        answer = served.request("POST", path, body=b'{"a": 1, "b": 2}', headers=late)
        assert (answer.status, answer.json) == (200, {"sum": 3, "hurry": True})


def test_a_nuclio_handler_gets_context_and_event(run) -> None:
    """`init_context` runs once, a JSON body is parsed, coroutines are awaited, Response is the answer."""
    served = run("nuclio_style")
    for calls in (1, 2):
        answer = served.request("POST", "/p", body=b'{"n": 4}', headers=JSON)
        assert (answer.status, answer.json) == (200, {"twice": 8, "calls": calls, "path": "/p"})
    assert answer.headers["X-Trigger"] == "http"
    assert served.request("POST", "/", body=b"{", headers=JSON).status == 400


def test_an_openwhisk_action_is_called_as_a_web_action(run) -> None:
    """Body, form and query are arguments; dictionaries, bodies and errors become answers."""
    served = run("openwhisk_action")
    agent = {"X-Agent": "me"}
    answer = served.request("POST", "/", body=b'{"name": "Ada"}', headers=JSON | agent)
    assert answer.json == {"greeting": "Hello, Ada!", "agent": "me"}
    form = {"Content-Type": "application/x-www-form-urlencoded"} | agent
    assert (
        served.request("POST", "/", body=b"name=B+o", headers=form).json["greeting"]
        == "Hello, B o!"
    )
    answer = served.request("GET", "/?name=C")
    assert (answer.body, answer.headers["Content-Type"]) == (b"<h1>C</h1>", "text/html")
    answer = served.request("GET", "/")
    assert (answer.status, answer.json) == (422, {"reason": "no name"})


def test_both_openfaas_templates_are_told_apart(run) -> None:
    """`handle(event, context)` gives status, headers and body; `handle(req)` gives text for text."""
    answer = run("openfaas_http").request("POST", "/?q=1", body=b"abc", headers={"x-token": "t"})
    assert (answer.status, answer.json) == (200, {"method": "POST", "bytes": 3, "q": "1"})
    assert run("openfaas_classic").request("POST", "/", body=b"abc").body == b"ABC"


def test_a_knative_asgi_function_streams_both_ways(run) -> None:
    """A piece of the body is answered before the next is sent; attributes of an event pass in and out."""
    served = run("knative_asgi")
    ready = served.request("GET", "/health/readiness")
    assert (ready.status, ready.body) == (200, b"started")
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nce-type: made\r\n"
            b"Trimtab-Invocation: i\r\nConnection: close\r\n\r\n"
        )
        seen = b""
        for piece in (b"first", b"second"):
            client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            while piece.upper() not in seen:
                data = client.recv(4096)
                assert data
                seen += data
        client.sendall(b"0\r\n\r\n")
        while data := client.recv(4096):
            seen += data
    assert b"\r\nce-type: echo.made\r\n" in seen
    assert seen.endswith(b"0\r\n\r\n")
    usage = served.request("GET", "/-/trimtab/usage/i").json
    assert usage["transferMicros"] >= 0


def test_a_parliament_function_gets_request_and_event(run) -> None:
    """Flask's request is in the context, and the CloudEvent if it was one; the package need not be there."""
    served = run("parliament_style")
    assert served.request("GET", "/?q=1").json == {"method": "GET", "q": "1"}
    answer = served.request("POST", "/", body=b'{"n": 3}', headers=JSON | EVENT)
    assert (answer.status, answer.body) == (200, b"made 3")


def test_a_sebs_benchmark_finds_its_storage(run, tmp_path) -> None:
    """The relative import of `storage` works, over a folder; uploads get a name of their own."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "in.bin").write_bytes(b"abc")
    served = run("sebs_style", TRIMTAB_SEBS_STORAGE=str(tmp_path))
    event = {"bucket": {"bucket": "b"}, "object": {"key": "in.bin"}, "request-id": "r"}
    answer = served.request("POST", "/", body=json.dumps(event).encode(), headers=JSON)
    result = answer.json["result"]
    assert (tmp_path / "b" / result["key"]).read_bytes() == b"cba"
    assert (result["size"], answer.json["id"]) == (3, "r")
    outside = event | {"object": {"key": "../../etc/passwd"}}
    answer = served.request("POST", "/", body=json.dumps(outside).encode(), headers=JSON)
    assert answer.status == 500
