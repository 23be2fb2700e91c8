"""Start a program detached, after writing its record: run as a script, `launch.py RECORD CPUS -- COMMAND`.

Forks; the child leads a new session, writes `pid, start time, boot id` to RECORD and becomes COMMAND.
The parent waits until that has happened, so whoever waits for it finds the record, and the component is
nobody's child: no zombie, no unwaited process object. Standard library only, run with `-I -S`.
"""

import os
import sys
from pathlib import Path


def _start_time(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:  # not Linux
        return os.popen(f"ps -o lstart= -p {pid}").read().strip()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _become(record: Path, cpus: str, command: list[str]) -> None:
    os.setsid()
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
    pid = os.getpid()
    partial = record.with_suffix(".partial")
    partial.write_text(f"{pid}\n{_start_time(pid)}\n{_boot_id()}\n")
    partial.replace(record)
    os.execvp(command[0], command)


def main() -> None:
    """Fork, and report to the parent what kept the child from becoming the command."""
    record, cpus, _, *command = sys.argv[1:]
    reading, writing = os.pipe()  # closed by a successful exec
    if os.fork() == 0:
        try:
            _become(Path(record), cpus, command)
        except BaseException as exc:  # noqa: BLE001 - the parent says it
            os.write(writing, f"{command[0]}: {exc}".encode())
            os._exit(127)
    os.close(writing)
    if problem := os.read(reading, 4096):
        sys.exit(problem.decode(errors="replace"))


if __name__ == "__main__":
    main()
