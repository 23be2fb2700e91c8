"""Mixed load on tiny tenants of one engine, and whether everything comes back to where it began.

Streams, aborts in mid-answer, models that come and go with the model set's file, bad files, and an
arena too small for what is asked of it; real steps on real weights. Every answer of a request of
the catalogue is compared token by token with the one it got alone, so a block, a slab or a weight
in the wrong place shows at once. `python -m e2e.soak --seconds 60 --pressure recompute`.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import dataclasses
import gc
import json
import logging
import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trimtab_workers.engine.engine as engine_module
from trimtab.cli.glassllm import convert
from trimtab_workers.engine.config import PRESSURES, load_config
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.errors import ConfigError, ModelUnavailableError, UnknownModelError
from trimtab_workers.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Answers = dict[tuple[str, int], tuple[int, ...]]

RSS_BOUND_BYTES = 48 << 20
TIME_DIVISOR = 60.0
CLIENTS = 24
PHASE_SECONDS = 1.5  # after which the clients turn to another model, and two fall idle
MEMORY_BYTES = 12_700_000  # weights, and one slab of KV cache for each model
HOMES = ("alice", "bruno")
GUEST = "guest"
LANGUAGES = {"alice": "en", "bruno": "pt", GUEST: "en"}
# The event that shows that a policy did its work, by the first part of its name.
EVENTS = {
    "recompute": "vllm:num_preemptions_total",
    "swap": "trimtab_engine_swaps_total",
    "remap-idle": "trimtab_engine_remaps_total",
    "remap": "trimtab_engine_remaps_total",
}


@dataclasses.dataclass(slots=True)
class Report:
    """What a soak did, and what it found."""

    pressure: str
    seconds: float
    answers: int = 0
    aborted: int = 0
    turned_away: int = 0
    reloads: int = 0
    refused_files: int = 0
    events: float = 0.0
    rss_start_bytes: int = 0
    rss_end_bytes: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)

    def line(self) -> str:
        """Return one line for the log."""
        grown = (self.rss_end_bytes - self.rss_start_bytes) / 2**20
        return (
            f"soak {self.pressure}, {self.seconds:.0f} s, policy times ÷ {TIME_DIVISOR:.0f}: "
            f"{self.answers} answers compared, {self.aborted} aborted, {self.turned_away} turned "
            f"away, {self.reloads} reloads, {self.refused_files} bad files, {self.events:.0f} "
            f"events of its kind, RSS {self.rss_end_bytes / 2**20:.0f} MiB ({grown:+.1f}), "
            f"{len(self.problems)} problems"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """One request of the catalogue, without its model."""

    prompt: tuple[int, ...]
    params: SamplingParams


def catalogue(count: int = 18, *, seed: int = 5) -> tuple[Ask, ...]:
    """Return requests of many kinds, each of which has one right answer."""
    source = random.Random(seed)
    asks = []
    for index in range(count):
        length = source.randrange(16, 80)
        asks.append(
            Ask(
                tuple(source.randrange(4, 1000) for _ in range(length)),
                SamplingParams(
                    max_tokens=source.randrange(24, 127 - length),
                    temperature=(0.0, 1.0)[index % 2],
                    top_p=source.choice((1.0, 0.9)),
                    seed=source.getrandbits(40),
                    ignore_eos=index % 3 > 0,
                    stop=("the",) if index % 4 == 0 else (),
                    logprobs=2 if index % 5 == 0 else None,
                    presence_penalty=0.5 if index % 6 == 0 else 0.0,
                ),
            )
        )
    return tuple(asks)


class ModelSetFile:
    """The file that says what is served; every change is a new revision."""

    def __init__(self, folder: Path, *, pressure: str) -> None:
        self.root = folder
        self.path = folder / "models.json"
        self.revision = 0
        self._pressure = pressure

    def write(self, *names: str) -> int:
        self.revision += 1
        models = [{"name": name, "path": LANGUAGES[name], "dtype": "fp32"} for name in names]
        document = {
            "v": 1,
            "revision": self.revision,
            "memory_bytes": MEMORY_BYTES,
            "max_batch_tokens": 64,
            "max_seqs": 16,
            "pressure": self._pressure,
            "models": models,
        }
        self._replace(json.dumps(document))
        return self.revision

    def spoil(self) -> None:
        self._replace('{"v": 1, "models": [')

    def _replace(self, text: str) -> None:
        beside = self.path.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.path)


@dataclasses.dataclass(slots=True)
class Soak:
    """One engine under load until `deadline`; `expected` is what each request answers alone."""

    engine: Engine
    file: ModelSetFile
    report: Report
    asks: tuple[Ask, ...]
    expected: Answers
    deadline: float = 0.0
    sent: int = 0
    let_in: int = 0

    async def learn(self) -> None:
        """Ask everything once, alone, of every model; the guest has the weights of the first."""
        for index in range(len(self.asks)):
            for name in HOMES:
                self.expected[name, index] = await self.answer(name, index)
            self.expected[GUEST, index] = self.expected[HOMES[0], index]

    async def answer(self, name: str, index: int, *, leave_after: int | None = None) -> Any:
        """Stream one answer; None if it was left after so many tokens."""
        ask = self.asks[index]
        self.sent += 1
        stream = self.engine.stream(
            Request(
                request_id=f"r{self.sent}",
                model=name,
                prompt_token_ids=ask.prompt,
                params=ask.params,
            )
        )
        self.let_in += 1
        tokens: list[int] = []
        try:
            async for output in stream:
                tokens += output.token_ids
                if leave_after is not None and len(tokens) > leave_after:
                    return None
        finally:
            await stream.aclose()
        return tuple(tokens)

    async def client(self, number: int) -> None:
        """Ask what all ask at this time, seldom another model; leave early now and then; compare."""
        source = random.Random(number)
        models = (*HOMES, GUEST)
        while time.monotonic() < self.deadline:
            phase = int((self.deadline - time.monotonic()) / PHASE_SECONDS)
            favourite = models[phase % len(models)]
            await self._once(source, favourite if source.random() < 0.98 else source.choice(models))
            await asyncio.sleep(source.choice((0.0, 0.0, 0.1)))

    async def _once(self, source: random.Random, name: str) -> None:
        index = source.randrange(len(self.asks))
        leave = source.randrange(0, 40) if source.random() < 0.2 else None
        try:
            tokens = await self.answer(name, index, leave_after=leave)
        except (UnknownModelError, ModelUnavailableError) as error:
            if name != GUEST:
                self.report.problems.append(f"{name}: {error}")
            self.report.turned_away += 1
            await asyncio.sleep(0.01)
            return
        if tokens is None:
            self.report.aborted += 1
        elif tokens == self.expected[name, index]:
            self.report.answers += 1
        else:
            self.report.problems.append(f"{name}, request {index}: tokens differ from those alone")

    async def operator(self) -> None:
        """Take the guest out and in again, as fast as that is done, with a bad file now and then."""
        source = random.Random(99)
        names: tuple[str, ...] = HOMES
        while time.monotonic() < self.deadline:
            await asyncio.sleep(source.uniform(0.2, 1.0))
            if self.report.reloads % 3 == 0:
                self.file.spoil()
                with suppress(ConfigError):
                    await asyncio.to_thread(self.engine.reload)
                    self.report.problems.append("a bad model set file was taken")
                self.report.refused_files += 1
            await self.serve(*names)
            names = (*HOMES, GUEST) if names == HOMES else HOMES
        await self.serve(*HOMES, GUEST)

    async def serve(self, *names: str) -> None:
        """Serve exactly these models from now on."""
        async with asyncio.timeout(120):
            while set(self.states()) != set(names) or "Failed" in self.states().values():
                revision = self.file.write(*names)
                await asyncio.to_thread(self.engine.reload, revision)
                await asyncio.sleep(0.05)
        self.report.reloads += 1

    def states(self) -> dict[str, str]:
        return {row["name"]: row["state"] for row in self.engine.models()}

    async def run(self, seconds: float) -> None:
        """Load the engine for so long."""
        self.deadline = time.monotonic() + seconds
        await asyncio.gather(self.operator(), *(self.client(n) for n in range(CLIENTS)))

    async def settle(self) -> dict[str, Any]:
        """Wait until nothing runs, touch each model once, and return what the engine holds."""
        async with asyncio.timeout(120):
            await self.idle()
            for name in (*HOMES, GUEST):
                await self.answer(name, 0)
            await self.idle()
        return holdings(self.engine)

    async def idle(self) -> None:
        while not self.engine.idle:  # noqa: ASYNC110 - the engine announces its ends to each request
            await asyncio.sleep(0.01)


def holdings(engine: Engine) -> dict[str, Any]:
    """Return what must be the same before and after: memory by owner, models, the process's own."""
    state = engine.state()
    gc.collect()
    threads = list(Path("/proc/self/task").iterdir())
    children = [pid for thread in threads for pid in (thread / "children").read_text().split()]
    return {
        "states": {row["name"]: row["state"] for row in state["models"]},
        "contexts": {row["name"]: row["max_model_len"] for row in state["models"]},
        # Not the tokens they hold: each model with KV slabs keeps a block of zeros in them.
        "slabs": state["slabs"],
        "used": state["kv"]["used_tokens"],
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "children": len(children),
    }


def rss_bytes() -> int:
    """Return the process's resident bytes that are its own, after giving free heap back."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def total(engine: Engine, name: str) -> float:
    """Return a counter's value over all its labels."""
    return sum(
        sample.value
        for family in engine.registry.collect()
        for sample in family.samples
        if sample.name == name
    )


async def soak(folder: Path, *, pressure: str, seconds: float, expected: Answers) -> Report:
    """Load one engine for so many seconds and compare its end with its start.

    Args:
        folder: Empty; models and the model set's file are written there.
        pressure: The policy, one of `config.PRESSURES`.
        seconds: Of load; the first quarter is not compared.
        expected: What each request answers alone; filled if empty. Several soaks share it, since
            no policy may change an answer.
    """
    import glassllm  # the tiny model's weights

    for language in ("en", "pt"):
        (folder / language).mkdir()
        convert(Path(glassllm.__file__).parent, language=language, destination=folder / language)
    file = ModelSetFile(folder, pressure=pressure)
    file.write(*HOMES, GUEST)
    engine = Engine(load_config(file.path, model_root=folder))
    report = Report(pressure=pressure, seconds=seconds)
    run = Soak(engine=engine, file=file, report=report, asks=catalogue(), expected=expected)
    engine.start()
    try:
        await asyncio.to_thread(engine.wait_loaded, 120)
        if not expected:
            await run.learn()
        # The first part fills caches of the process; what counts is that it does not go on.
        await run.run(seconds * 0.25)
        start = await run.settle()
        report.rss_start_bytes = rss_bytes()
        await run.run(seconds * 0.75)
        end = await run.settle()
        report.rss_end_bytes = rss_bytes()
        report.problems += differences(start, end)
        judge(report, run)
    finally:
        await asyncio.to_thread(engine.stop, 60.0)
    if (alive := engine.liveness()) is not None:
        report.problems.append(alive)
    return report


def judge(report: Report, run: Soak) -> None:
    """Add what a good run may not show."""
    engine = run.engine
    kind = report.pressure.split(":")[0]
    report.events = total(engine, EVENTS.get(kind, "vllm:num_preemptions_total"))
    if report.events <= 0:
        report.problems.append(f"nothing of what {report.pressure} is for happened; load it more")
    ended = total(engine, "vllm:request_success_total")
    waiting = total(engine, "vllm:num_requests_waiting") + total(
        engine, "vllm:num_requests_running"
    )
    if waiting:
        report.problems.append(f"{waiting:.0f} requests are still shown as running or waiting")
    if ended != run.let_in:
        report.problems.append(f"{run.let_in} requests were let in, but {ended:.0f} ended")
    grown = report.rss_end_bytes - report.rss_start_bytes
    if grown > RSS_BOUND_BYTES:
        report.problems.append(
            f"resident memory grew by {grown} bytes, more than {RSS_BOUND_BYTES}"
        )
    for name in (*HOMES, GUEST):
        scheduler = engine.tenant(name).scheduler
        if scheduler is not None:
            scheduler.blocks.check()


def differences(start: dict[str, Any], end: dict[str, Any]) -> Iterator[str]:
    """Yield what is not as it was."""
    for key, value in start.items():
        if end[key] != value:
            yield f"{key} was {value} at the start and is {end[key]} at the end"
    if end["used"]:
        yield f"{end['used']} KV tokens are used although nothing runs"


def main(argv: Sequence[str] | None = None) -> int:
    """Run soaks from the command line; exit 1 if one found a problem."""
    parser = argparse.ArgumentParser(prog="python -m e2e.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pressure", action="append", help=f"by default {', '.join(PRESSURES)}")
    arguments = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)  # hundreds of reloads, some of bad files
    failed = 0
    expected: Answers = {}
    for pressure in arguments.pressure or PRESSURES:
        with tempfile.TemporaryDirectory() as folder, shortened():
            report = asyncio.run(
                soak(Path(folder), pressure=pressure, seconds=arguments.seconds, expected=expected)
            )
        print("\n  ".join((report.line(), *report.problems[:20])), flush=True)
        failed += bool(report.problems)
    return 1 if failed else 0


class shortened:  # noqa: N801 - used as a function
    """Divides the engine's policy times by `TIME_DIVISOR` while it is entered."""

    NAMES = ("REMOVAL_SECONDS",)

    def __enter__(self) -> None:
        self._kept = {name: getattr(engine_module, name) for name in self.NAMES}
        for name, seconds in self._kept.items():
            setattr(engine_module, name, seconds / TIME_DIVISOR)

    def __exit__(self, *_: object) -> None:
        for name, seconds in self._kept.items():
            setattr(engine_module, name, seconds)


if __name__ == "__main__":
    sys.exit(main())
