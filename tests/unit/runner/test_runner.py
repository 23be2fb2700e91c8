"""One request at a time, metered; functions that misbehave harm nobody but themselves."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
from pathlib import Path

import pytest

from trimtab_workers.runner import settings
from trimtab_workers.runner.process import Exit

MIB = 1024
HANDLERS = Path(__file__).parent / "handlers"


def burnt(usage) -> bool:
    return usage["cpuMicros"] >= 50_000


def in_thread(served, path, found) -> threading.Thread:
    """Send a request whose answer, or error, is appended to `found`."""

    def send():
        try:
            found.append(served.request("GET", path))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_an_answer_tells_what_its_call_used(behaviours) -> None:
    """CPU of the function and of processes it waited for is in the headers of an unstreamed answer."""
    for path in ("/burn", "/burn_outside"):
        answer = behaviours.request("GET", path)
        assert answer.status == 200
        assert burnt(answer.usage), path
        assert float(answer.headers["Trimtab-Used-Cpu"]) == answer.usage["cpuMicros"] / 1e6
        assert answer.headers["Trimtab-Outcome"] == "ok"


def test_the_peak_of_memory_is_the_calls_own(behaviours) -> None:
    """A call that takes 96 MiB shows them, and the next call, which takes none, does not."""
    large = behaviours.request("GET", "/allocate?mib=96")
    small = behaviours.request("GET", "/allocate?mib=1")
    assert large.usage["peakKib"] >= 96 * MIB
    if large.usage["peakKind"] == "Cumulative":
        pytest.skip("this kernel does not let a process's high-water mark be reset")
    assert small.usage["peakKib"] < large.usage["peakKib"] - 64 * MIB
    assert int(large.headers["Trimtab-Peak-Mib"]) >= 96


def test_a_second_request_is_told_that_the_runner_is_busy(behaviours, tmp_path) -> None:
    """While one request runs another gets 429 at once; the first one's answer is not disturbed."""
    answers = []
    thread = in_thread(behaviours, f"/hold?until={tmp_path / 'go'}", answers)
    behaviours.wait_until_busy()
    busy = behaviours.request("POST", "/echo", body=b"x" * 200_000)
    (tmp_path / "go").touch()
    thread.join()
    assert (busy.status, busy.json["error"], busy.headers["Trimtab-Outcome"]) == (
        429,
        "Busy",
        "busy",
    )
    assert answers[0].body == b"ok"


def test_a_function_that_raises_answers_500_and_lives_on(behaviours) -> None:
    """The client hears type and text of the error, the log has the traceback, the process stays."""
    before = behaviours.request("GET", "/pid").body
    answer = behaviours.request("GET", "/fail")
    assert (answer.status, answer.headers["Trimtab-Outcome"]) == (500, "error")
    assert answer.json["message"] == "ValueError: the input is too blue"
    assert b"Traceback" not in answer.body
    assert behaviours.request("GET", "/pid").body == before


def test_a_function_that_exits_is_answered_for_and_replaced(behaviours) -> None:
    """The request that lost its process gets 502 with the status; the next is the first call of a new one."""
    before = behaviours.request("GET", "/pid")
    answer = behaviours.request("GET", "/leave")
    assert (answer.status, answer.headers["Trimtab-Outcome"]) == (502, "exit")
    assert answer.json["error"] == "FunctionExited"
    assert "ended with status 3" in answer.json["message"]
    after = behaviours.request("GET", "/pid")
    assert after.body != before.body
    assert after.usage["firstCall"]
    assert not behaviours.request("GET", "/pid").usage["firstCall"]


def test_what_a_dead_function_started_ends_with_it(behaviours, tmp_path) -> None:
    """A process that an exiting function left behind is killed, and would hold its pipe open otherwise."""
    os.mkfifo(tmp_path / "fifo")
    with os.fdopen(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK), "rb") as held:
        assert behaviours.request("GET", f"/leave_another?fifo={tmp_path / 'fifo'}").status == 502
        assert select.select([held], [], [], 30)[0]
        assert held.read() == b""


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    """Most real-time signals have no name; the sentence about a process killed by one has its number."""
    assert str(Exit(-(signal.SIGRTMIN + 6), 0.0)) == f"was killed by signal {signal.SIGRTMIN + 6}"


def test_a_function_may_close_its_output(run) -> None:
    """Without stdout and stderr the process serves on, and an error is still answered with 500."""
    served = run("behaviours")
    before = served.request("GET", "/pid").body
    assert served.request("GET", "/silence").status == 200
    assert served.request("GET", "/fail").status == 500
    assert served.request("GET", "/pid").body == before


def test_programs_that_a_function_starts_do_not_inherit_the_channel(behaviours) -> None:
    """Beyond the standard streams no file descriptor of the process is inherited."""
    assert behaviours.request("GET", "/inheritable").json == []


def test_a_function_runs_in_its_own_folder(behaviours) -> None:
    """Files beside the module are found by their relative names, as on the functions' own platforms."""
    assert behaviours.request("GET", "/folder").body == bytes(HANDLERS)


def test_a_call_whose_client_left_is_ended(behaviours, tmp_path) -> None:
    """A function that never returns is replaced once its client has hung up and the grace is over."""
    before = behaviours.request("GET", "/pid").body
    with socket.create_connection(("127.0.0.1", behaviours.port)) as client:
        client.sendall(
            b"GET /hold?until=%s HTTP/1.1\r\nHost: x\r\n\r\n" % bytes(tmp_path / "never")
        )
        behaviours.wait_until_busy()
    assert behaviours.first_served("/pid").body != before


def test_a_body_shorter_than_its_length_never_reaches_the_function(behaviours) -> None:
    """A client that promises 100 bytes, sends 10 and hangs up harms nothing: the same process serves on."""
    before = behaviours.request("GET", "/pid").body
    with socket.create_connection(("127.0.0.1", behaviours.port)) as client:
        client.sendall(b"POST /leave HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n0123456789")
        behaviours.wait_until_busy()
    assert behaviours.first_served("/pid").body == before


@pytest.mark.parametrize(
    "sent",
    [b"rubbish\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 140_000 + b"\r\n\r\n"],
    ids=["no HTTP", "a header of 140,000 bytes"],
)
def test_what_is_no_request_is_refused(behaviours, sent) -> None:
    """Garbage and endless headers get a 4xx answer of the runner's own."""
    with socket.create_connection(("127.0.0.1", behaviours.port), timeout=30) as client:
        client.sendall(sent)
        assert client.recv(12)[:10] == b"HTTP/1.1 4"


def test_connections_are_kept_and_bodies_arrive_whole(behaviours) -> None:
    """Several requests go over one connection, waited-for, chunked and long bodies among them."""
    with socket.create_connection(("127.0.0.1", behaviours.port), timeout=30) as client:
        reader = client.makefile("rb")

        def answered() -> bytes:
            status, length = reader.readline(), 0
            while (line := reader.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            return reader.read(length) if b" 200 " in status else status

        client.sendall(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert reader.readline().startswith(b"HTTP/1.1 100")
        assert reader.readline() == b"\r\n"
        client.sendall(b"ab")
        assert answered() == b"ab"
        client.sendall(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        )
        assert answered() == b"abc"
        body = os.urandom(3_000_000)
        client.sendall(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        assert answered() == body
        client.sendall(
            b"HEAD /pid HTTP/1.1\r\nHost: x\r\n\r\nGET /empty HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        reader.readline()
        while reader.readline() != b"\r\n":
            pass
        assert answered() == b"HTTP/1.1 204 \r\n"


def test_only_its_own_headers_are_the_functions_to_set(behaviours) -> None:
    """`Trimtab-Exclude` passes, a forged usage does not, and a header with a line break is an error."""
    answer = behaviours.request("GET", "/exclude")
    assert answer.headers["Trimtab-Exclude"] == "true"
    assert answer.usage["excluded"]
    assert len(answer.headers.get_all("Trimtab-Used-Cpu")) == 1
    bad = behaviours.request("GET", "/bad_header")
    assert bad.status == 500
    assert "Injected" not in bad.headers
    assert "X-Bad" in bad.json["message"]


def test_the_function_sees_which_attempt_it_is(behaviours) -> None:
    """Headers of the gateway's own reach the function, the number of a retry among them."""
    answer = behaviours.request("GET", "/pid", headers={"Trimtab-Attempt": "2"})
    assert answer.headers["X-Attempt"] == "2"


def test_unknown_questions_to_the_runner_itself_are_refused(behaviours) -> None:
    """What is below the runner's own path never reaches the function."""
    answer = behaviours.request("GET", "/-/trimtab/usage/unknown")
    assert (answer.status, answer.json["error"]) == (404, "NotFound")


def test_a_function_that_ignores_sigterm_is_ended_all_the_same(run, tmp_path) -> None:
    """SIGTERM ends runner and function although the function holds a call and ignores the signal."""
    served = run("behaviours", IGNORE_SIGTERM="1", TRIMTAB_SHUTDOWN_SECONDS="0")
    child = int(served.request("GET", "/pid").body)
    answers = []
    thread = in_thread(served, f"/hold?until={tmp_path / 'never'}", answers)
    served.wait_until_busy()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(30) == 0
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_call_that_runs_is_finished_before_the_runner_ends(run, tmp_path) -> None:
    """SIGTERM waits for the call in flight; its client gets the answer."""
    served = run("behaviours")
    answers = []
    thread = in_thread(served, f"/hold?until={tmp_path / 'go'}", answers)
    served.wait_until_busy()
    served.process.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    thread.join()
    assert answers[0].body == b"ok"
    assert served.process.wait(30) == 0


def test_a_refusal_at_start_is_the_containers_termination_message(refusal, tmp_path) -> None:
    """No module, one that cannot be imported and one that ends the process end with status 2 and say why."""
    status, document = refusal("absent")
    assert (status, document["reason"]) == (2, "ModuleNotFound")
    assert "openfaas_classic" in document["message"]
    (tmp_path / "broken.py").write_text("import math\nimport does_not_exist\n")
    status, document = refusal("broken", "--source", str(tmp_path))
    assert (status, document["reason"]) == (2, "ModuleNotLoaded")
    assert "broken.py, line 2" in document["message"]
    (tmp_path / "deadly.py").write_text("import os\nos._exit(7)\n")
    status, document = refusal("deadly", "--source", str(tmp_path))
    assert "ended with status 7" in document["message"]


def test_an_import_that_speaks_for_the_runner_is_refused(refusal, tmp_path) -> None:
    """A module that writes rubbish to the channel between the processes does not hang the runner."""
    (tmp_path / "loud.py").write_text(
        "import os, sys\nfrom trimtab_workers.runner import frames\n"
        "os.write(int(sys.argv[1]), frames.pack(frames.READY, b'rubbish'))\n"
    )
    status, document = refusal("loud", "--source", str(tmp_path))
    assert (status, document["reason"]) == (2, "ModuleNotLoaded")
    assert "channel" in document["message"]


def test_an_import_that_takes_too_long_is_ended(refusal, tmp_path) -> None:
    """A module that never finishes importing is refused after TRIMTAB_START_SECONDS."""
    (tmp_path / "endless.py").write_text("import signal\nsignal.pause()\n")
    status, document = refusal("endless", "--source", str(tmp_path), TRIMTAB_START_SECONDS="0.2")
    assert (status, document["reason"]) == (2, "ModuleNotLoaded")
    assert "TRIMTAB_START_SECONDS" in document["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("TRIMTAB_ABANDONED_SECONDS", "-1"),
        ("TRIMTAB_START_SECONDS", "inf"),
    ],
)
def test_an_impossible_setting_is_named(name, value) -> None:
    """The error names the variable and its value."""
    with pytest.raises(settings.SettingsError, match=f"{name} is .?{value}"):
        settings.from_environment({name: value})


def test_the_log_says_what_is_served(behaviours) -> None:
    """One line of JSON names port and signature once the function is loaded."""
    events = [json.loads(line) for line in behaviours.log if line.startswith('{"event": "serving"')]
    assert [(event["signature"], event["source"]) for event in events] == [
        ("OpenFaaS", "behaviours")
    ]
