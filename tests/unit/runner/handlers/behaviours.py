"""A function that does what its path says (OpenFaaS's template)."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

if os.environ.get("IGNORE_SIGTERM"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

BURN = "import time\nend = time.process_time() + 0.05\nwhile time.process_time() < end: pass"


def burn(event):
    exec(BURN, {})


def burn_outside(event):
    subprocess.run([sys.executable, "-S", "-c", BURN], check=True)


def allocate(event):
    held = bytearray(int(event.query["mib"]) * 2**20)
    held[::4096] = b"x" * len(held[::4096])


def hold(event):
    while not Path(event.query["until"]).exists():
        time.sleep(0.005)


def leave(event):
    os._exit(3)


def fail(event):
    raise ValueError("the input is too blue")


def exclude(event):
    return {"headers": {"Trimtab-Exclude": "true", "Trimtab-Used-Cpu": "0"}, "body": ""}


def bad_header(event):
    return {"headers": {"X-Bad": "a\r\nInjected: yes"}, "body": "x"}


def echo(event):
    return {"headers": {"Content-Type": "application/octet-stream"}, "body": event.body}


def empty(event):
    return {"statusCode": 204}


def leave_another(event):
    with Path(event.query["fifo"]).open("wb") as fifo:
        subprocess.Popen(["sleep", "600"], stdout=fifo)
    os._exit(3)


def silence(event):
    sys.stdout.close()
    sys.stderr.close()


def folder(event):
    return {"body": str(Path.cwd())}


def inheritable(event):
    found = []
    for number in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        with contextlib.suppress(OSError):
            found += [number] * os.get_inheritable(number)
    return {"body": [number for number in found if number > 2]}


def pid(event):
    return {
        "body": str(os.getpid()),
        "headers": {"X-Attempt": event.headers.get("trimtab-attempt", "")},
    }


def handle(event, context):
    done = globals()[event.path.strip("/") or "pid"](event)
    return {"body": "ok"} if done is None else done
