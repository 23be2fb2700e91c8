"""Run one command, outlive the node that asked for it, and leave its exit status on disk.

Started as `python -I -S shim.py SPEC.json`; SPEC holds argv, env, cwd, log and folder. The caller gets
one line of JSON with the pids once the command runs (or could not be started); after that the only
channel is the folder: `pids.json`, then `exit.json`. Standard library only, and as little of it as
possible: one of these lives beside every container.
"""

import json
import os
import signal
import sys
import time


def _write(path: str, value: object) -> None:
    with open(path + ".tmp", "w") as file:  # noqa: PTH123 - pathlib costs 10 ms at start
        json.dump(value, file)
    os.replace(path + ".tmp", path)  # noqa: PTH105 - as above


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot: with its pid, its identity."""
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - as above
        return int(file.read().rpartition(b")")[2].split()[19])


def _become(spec: dict, errors: int) -> None:
    """Turn this process into the container's command; writes to `errors` only if that fails."""
    try:
        os.setsid()
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, errors)
        os.closerange(errors + 1, 256)
        os.chdir(spec["cwd"])
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except OSError as error:
        os.write(errors, str(error).encode())
    os._exit(128)


def _watch(spec: dict, report: int) -> None:
    """Start the command, report the pids, wait for its end, record it."""
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(quiet, number)
    folder = spec["folder"]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _become(spec, writer)
    os.close(writer)
    started = time.time()
    me = os.getpid()
    pids = {"shim": [me, start_time(me)], "child": [child, start_time(child)], "started": started}
    _write(folder + "/pids.json", pids)
    problem = os.read(reader, 4096).decode(errors="replace")
    os.write(report, json.dumps(pids).encode())
    os.close(report)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # unreaped, its group keeps its number
    try:  # noqa: SIM105 - contextlib costs another import per container
        os.killpg(child, signal.SIGKILL)  # what the command left behind dies with it
    except ProcessLookupError:
        pass
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    _write(
        folder + "/exit.json",
        {
            "code": code if code >= 0 else 128 - code,
            "signal": -code if code < 0 else 0,
            "finished": time.time(),
            "problem": problem,
        },
    )


def main() -> None:
    """Detach from the caller, then run the command of the given spec."""
    with open(sys.argv[1]) as file:  # noqa: PTH123 - as above
        spec = json.load(file)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        try:
            _watch(spec, writer)
        finally:
            os._exit(0)
    os.close(writer)
    os.write(1, os.read(reader, 4096))


if __name__ == "__main__":
    main()
