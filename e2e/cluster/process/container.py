"""One container of a pod: its runs, its probes, its restarts, its end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import aiohttp

from e2e.cluster.process import probes, processes
from e2e.cluster.process.environment import CreateContainerConfigError
from e2e.cluster.process.images import UnknownImageError
from e2e.cluster.process.records import Record, timestamp
from e2e.cluster.process.volumes import MountError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from e2e.cluster.process.processes import Exit, Process

MESSAGE_LIMIT_BYTES = 4096
_FALLBACK_LINES = 80
_FALLBACK_BYTES = 2048
RAN_LONG_SECONDS = 600.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to execute for one run of a container."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a container needs from its pod; a `Launch` is made anew for each run."""

    uid: str
    address: str
    restart_policy: str
    grace_seconds: float
    back_off_seconds: float
    prepare: Callable[[Mapping[str, Any], Path], Awaitable[Launch]]
    """(container, path of its termination message) to what to run."""
    changed: Callable[[], None]
    event: Callable[[str, str, str], None]
    """(type, reason, message)"""


def back_off(count: int, *, first_seconds: float) -> float:
    """Return the wait before restart `count`: none, then 10, 20, 40 … 300 s as a kubelet waits."""
    return 0.0 if count == 0 else min(30 * first_seconds, first_seconds * 2 ** (count - 1))


class Container:
    """Runs one container as long as its pod's restart policy wants it to."""

    def __init__(self, spec: Mapping[str, Any], folder: Path, pod: Surroundings) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.folder = folder
        self.record = Record.load(folder / "record.json")
        self._pod = pod
        self._stopping = False

    def attempt_folder(self, attempt: int | None = None) -> Path:
        """Return the folder of one run: spec, pids, exit status, log, termination message."""
        return self.folder / f"{self.record.attempt if attempt is None else attempt}"

    def process(self) -> Process | None:
        """Return the current run, or None before the first."""
        return processes.Process.found(self.attempt_folder())

    async def run(self) -> None:
        """Run and restart until the restart policy says that it is over."""
        while not self.record.over:
            if not self.record.running:
                await self._begin()
            await self._attend()
            self._decide()
            if not self.record.over:
                await self._wait_before_restart()

    async def _begin(self) -> None:
        """Start a run; whatever is missing is tried again, since it may appear."""
        delay = 0.5
        record = self.record
        attempt = self.attempt_folder(record.attempt + 1)
        while True:
            try:
                # One that was started just before this node was killed is adopted.
                process = processes.Process.found(attempt) or await self._launch(attempt)
                break
            except CreateContainerConfigError as error:
                self._wait("CreateContainerConfigError", str(error))
            except UnknownImageError as error:
                self._wait("ErrImageNeverPull", str(error))
            except MountError as error:
                self._wait("CreateContainerError", str(error))
            await asyncio.sleep(delay)
            delay = min(5.0, 2 * delay)
        if self._stopping:
            process.kill()
        record.attempt += 1
        record.running = True
        record.started_at = process.started
        record.startup_passed = "startupProbe" not in self.spec
        record.ready = record.startup_passed and "readinessProbe" not in self.spec
        self._keep()
        self._pod.event("Normal", "Started", f"stand-in started container {self.name}")

    async def _launch(self, attempt: Path) -> Process:
        launch = await self._pod.prepare(self.spec, attempt / "termination-log")
        _prepare_folder(attempt)
        starting = asyncio.ensure_future(
            processes.start(
                attempt, argv=launch.argv, env=launch.env, cwd=launch.cwd, log=attempt / "log"
            )
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            (await starting).kill()  # half-started, and nobody will ask for it again
            raise

    def _wait(self, reason: str, message: str) -> None:
        if self.record.waiting != (reason, message):
            self._pod.event("Warning", "Failed", f"{reason}: {message}")
        self.record.waiting = (reason, message)
        self._keep()

    async def _attend(self) -> None:
        """Watch a run to its end: hooks, probes, exit."""
        process = self.process()
        if process is None:
            raise RuntimeError(f"{self.folder}: a running container has no pids; this is a bug")
        watcher = asyncio.create_task(self._probe())
        try:
            ended = await process.wait()
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
        self.finish(ended)

    def finish(self, ended: Exit) -> None:
        """Record the end of the current run."""
        record = self.record
        reason = "Completed" if ended.code == 0 else "Error"
        if ended.problem:
            reason = "StartError" if ended.code == 128 else "ContainerStatusUnknown"
        message = ended.problem or self._message(ended.code)
        record.termination = {
            "exitCode": ended.code,
            "reason": reason,
            "startedAt": timestamp(record.started_at),
            "finishedAt": timestamp(ended.finished),
            "containerID": f"stand-in://{self._pod.uid}/{self.name}/{record.attempt}",
        } | ({"message": message} if message else {})
        if ended.signal:
            record.termination["signal"] = ended.signal
        if ended.finished - record.started_at > RAN_LONG_SECONDS:
            record.back_off = 0
        record.running = record.ready = False
        self._keep()

    def _message(self, code: int) -> str:
        attempt = self.attempt_folder()
        with contextlib.suppress(OSError):
            text = (attempt / "termination-log").read_bytes()[:MESSAGE_LIMIT_BYTES]
            if text:
                return text.decode(errors="replace")
        if code and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            lines = (attempt / "log").read_bytes()[-_FALLBACK_BYTES:].splitlines()
            return b"\n".join(lines[-_FALLBACK_LINES:]).decode(errors="replace")
        return ""

    def _decide(self) -> None:
        code = (self.record.termination or {}).get("exitCode", 0)
        policy = self._pod.restart_policy
        again = policy == "Always" or (policy == "OnFailure" and code != 0)
        self.record.over = self._stopping or not again
        self._keep()

    async def _wait_before_restart(self) -> None:
        record = self.record
        seconds = back_off(record.back_off, first_seconds=self._pod.back_off_seconds)
        text = f"back-off {seconds:g}s restarting failed container={self.name}"
        record.waiting = ("CrashLoopBackOff", text)
        record.back_off += 1
        self._keep()
        if seconds:
            self._pod.event("Warning", "BackOff", text)
        await asyncio.sleep(seconds)
        record.restarts += 1
        self._keep()

    def _keep(self) -> None:
        self.record.save(self.folder / "record.json")
        self._pod.changed()

    async def _probe(self) -> None:
        hook = (self.spec.get("lifecycle") or {}).get("postStart")
        if hook:
            await self._hook(hook, seconds=self._pod.grace_seconds)
        if not self.record.startup_passed:
            await self._watch("startupProbe")
        await asyncio.gather(self._watch("readinessProbe"), self._watch("livenessProbe"))

    async def _watch(self, kind: str) -> None:
        probe = self.spec.get(kind)
        if not probe:
            return
        check = probes.checker(
            probe, container=self.spec, address=self._pod.address, execute=self.execute
        )
        good = self.record.ready if kind == "readinessProbe" else kind == "livenessProbe"
        verdict = probes.Verdict(probe, good=good if kind != "startupProbe" else None)

        async def changed(success: bool, why: str) -> bool:  # noqa: FBT001 - a callback's signature
            if not success:
                self._pod.event("Warning", "Unhealthy", f"{kind} of {self.name} failed: {why}")
            if kind == "readinessProbe":
                self.record.ready = success and not self._stopping
                self._keep()
                return True
            if not success:
                grace = probe.get("terminationGracePeriodSeconds", self._pod.grace_seconds)
                self._pod.event("Normal", "Killing", f"{kind} of {self.name} failed")
                await self.stop(grace_seconds=float(grace), final=False)
                return False
            self.record.startup_passed = True
            self.record.ready = "readinessProbe" not in self.spec
            self._keep()
            return kind == "livenessProbe"

        await probes.watch(probe, check=check, verdict=verdict, changed=changed)

    async def stop(self, *, grace_seconds: float, final: bool = True) -> None:
        """End the current run: preStop hook, SIGTERM, SIGKILL once the grace period is over."""
        self._stopping = self._stopping or final
        process = self.process()
        if process is None or not self.record.running or process.exit() is not None:
            return
        deadline = time.monotonic() + grace_seconds
        hook = (self.spec.get("lifecycle") or {}).get("preStop")
        if hook:
            await self._hook(hook, seconds=grace_seconds)
        process.child.kill(signal.SIGTERM)
        try:
            # A kubelet, too, leaves two seconds after a hook that ate the whole grace period.
            async with asyncio.timeout(max(2.0, deadline - time.monotonic())):
                await process.child.ended()
        except TimeoutError:
            process.kill()
            await process.child.ended()

    async def conclude(self) -> None:
        """Record the end of a container that was stopped for good; its own loop may be gone."""
        process = self.process()
        if self.record.running and process is not None:
            ended = await process.wait()
            if self.record.running:
                self.finish(ended)
        if self.record.termination:
            self.record.over = True
            self._keep()

    async def _hook(self, hook: Mapping[str, Any], *, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                if "sleep" in hook:
                    await asyncio.sleep(float(hook["sleep"]["seconds"]))
                elif "exec" in hook:
                    await self.execute(hook["exec"]["command"], seconds)
                elif "httpGet" in hook:
                    check = probes.checker(
                        hook | {"timeoutSeconds": seconds}, container=self.spec,
                        address=self._pod.address, execute=self.execute,
                    )  # fmt: skip
                    await check()
        except (TimeoutError, aiohttp.ClientError) as error:
            self._pod.event("Warning", "FailedPreStopHook", f"{self.name}: {error!r}")

    async def execute(self, command: Sequence[str], seconds: float) -> tuple[int, str]:
        """Run a command in the container's environment and return its exit code and output."""
        launch = await self._pod.prepare({**self.spec, "command": list(command), "args": []},
                                         self.attempt_folder() / "termination-log")  # fmt: skip
        child = await asyncio.create_subprocess_exec(
            *launch.argv, env=dict(launch.env), cwd=launch.cwd, start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(seconds):
                output, _ = await child.communicate()
        except TimeoutError:
            return 124, f"no end within {seconds:g} s"
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
        return child.returncode or 0, output.decode(errors="replace")


def _prepare_folder(attempt: Path) -> None:
    attempt.mkdir(parents=True, exist_ok=True, mode=0o700)
    (attempt / "termination-log").touch()
