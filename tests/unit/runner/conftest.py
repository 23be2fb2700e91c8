"""A runner in a process of its own, spoken to over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HANDLERS = Path(__file__).parent / "handlers"


def eventually(found):
    """Return what a question gives once that is something; a busy machine is given its time."""
    deadline = time.monotonic() + 30
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def usage(self):
        return json.loads(self.headers["Trimtab-Usage"])


@dataclass
class Served:
    process: subprocess.Popen
    port: int = 0
    log: list = field(default_factory=list)

    def request(self, method, path, *, body=None, headers=None) -> Answer:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def wait_until_busy(self) -> None:
        """Return once a call is with the function."""
        eventually(lambda: self.request("GET", "/-/trimtab/state").json["busy"])

    def first_served(self, path) -> Answer:
        """Return the answer of the first request that does not find the runner busy."""
        return eventually(
            lambda: answer if (answer := self.request("GET", path)).status != 429 else None
        )


def command(module, *arguments):
    return [
        sys.executable, "-m", "trimtab_workers.runner", "--source", str(HANDLERS), "--port", "0",
        "--module", module, *arguments,
    ]  # fmt: skip


def environment(**given):
    return {**os.environ, "TRIMTAB_BIND_ADDRESS": "127.0.0.1", "TRIMTAB_LOG_LEVEL": "info", **given}


@contextlib.contextmanager
def running(module, *arguments, prefix=(), **given):
    """Yield a runner whose port is open; it is ended at the end."""
    process = subprocess.Popen(
        [*prefix, *command(module, *arguments)], env=environment(**given), stderr=subprocess.PIPE
    )
    served = Served(process)
    opened = threading.Event()

    def follow():
        for line in process.stderr:
            served.log.append(line.decode())
            with contextlib.suppress(ValueError, KeyError):
                event = json.loads(line)
                if event["event"] == "serving":
                    served.port = event["port"]
                    opened.set()
        opened.set()

    reading = threading.Thread(target=follow)
    reading.start()
    try:
        assert opened.wait(60)
        assert served.port, "".join(served.log)
        yield served
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        reading.join(60)
        process.stderr.close()


@pytest.fixture
def run():
    """Runners that end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *a, **k: stack.enter_context(running(*a, **k))


@pytest.fixture(scope="module")
def behaviours(tmp_path_factory):
    """One runner of the function that does what its path says."""
    with running("behaviours", TRIMTAB_ABANDONED_SECONDS="0") as served:
        yield served


@pytest.fixture
def refusal(tmp_path):
    """Start a runner that is to refuse; return its exit status and its termination message."""

    def refused(*arguments, **given):
        message = tmp_path / "message"
        done = subprocess.run(
            command(*arguments), env=environment(TRIMTAB_TERMINATION_LOG=str(message), **given),
            capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        return done.returncode, json.loads(message.read_text())

    return refused
