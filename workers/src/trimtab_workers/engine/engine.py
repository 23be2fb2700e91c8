"""The engine: one thread that steps, beside whatever loop submits."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from trimtab_workers.engine import boot, memory
from trimtab_workers.engine.backend import CpuBackend
from trimtab_workers.engine.balance import Balance
from trimtab_workers.engine.clock import Clock, SystemClock
from trimtab_workers.engine.config import EngineConfig, load_config
from trimtab_workers.engine.controller import RemapController
from trimtab_workers.engine.device import open_device
from trimtab_workers.engine.document import engine_state, error_of, show_arena
from trimtab_workers.engine.errors import (
    BatchFailedError,
    CheckpointError,
    ConfigError,
    ContextLengthError,
    DrainingError,
    EngineError,
    InvalidRequestError,
    ModelUnavailableError,
    QueueFullError,
    UnknownModelError,
)
from trimtab_workers.engine.faults import attempt
from trimtab_workers.engine.metrics import EngineMetrics
from trimtab_workers.engine.modelset import Joining
from trimtab_workers.engine.mover import Mover
from trimtab_workers.engine.parallel.ranks import Ranks
from trimtab_workers.engine.rotation import Rotation
from trimtab_workers.engine.sequence import Sequence
from trimtab_workers.engine.stepper import end_early, refuse, show_load, step
from trimtab_workers.engine.stream import OutputStream
from trimtab_workers.engine.tenants import Tenant
from trimtab_workers.engine.tokenizer import StreamDetokenizer, Tokenizer
from trimtab_workers.engine.types import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prometheus_client import CollectorRegistry

    from trimtab_workers.engine.arena import Arena
    from trimtab_workers.engine.backend import Backend
    from trimtab_workers.engine.config import ModelSpec
    from trimtab_workers.engine.scheduler import Scheduler
    from trimtab_workers.engine.types import Request

log = logging.getLogger(__name__)

REMOVAL_SECONDS = 30.0
STUCK_SECONDS = 60.0
_IDLE_WAIT_SECONDS = 0.5
_FIXED_FIELDS = (
    "memory_bytes",
    "threads",
    "max_model_len",
    "max_batch_tokens",
    "max_seqs",
    "pressure",
    "tensor_parallel_size",
    "pipeline_parallel_size",
)


class Engine:
    """Serves the models of one configuration on one device.

    Every method may be called from any thread; work happens on the engine's own.

    Args:
        config: What to serve.
        clock: Source of all times.
        backend: What touches bytes; the CPU unless another is given.
        ranks: The group that this process is in; by default `load` starts the followers that the
            configuration's parallel sizes ask for.
        on_group_lost: Called once, on another thread, when a follower has ended on its own.

    Attributes:
        config: The configuration in force.
        clock: Source of all times that outputs carry.
        metrics: Collectors; `registry` is theirs.
        backend, ranks: As given.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        clock: Clock | None = None,
        backend: Backend | None = None,
        ranks: Ranks | None = None,
        on_group_lost: Callable[[], None] | None = None,
    ) -> None:
        if open_device(config.device) is not None:
            raise ConfigError(
                f"The model set's field device is {config.device!r}, but this release serves on "
                "'cpu' alone: its CUDA path has never run on a GPU. Set device to 'cpu'."
            )
        self.config = config
        self.clock: Clock = clock or SystemClock()
        self.metrics = EngineMetrics()
        self._tenants = {
            spec.name: Tenant(spec=spec, metrics=self.metrics.for_model(spec.name))
            for spec in config.models
        }
        self.ranks = ranks or Ranks()
        self._on_group_lost = on_group_lost
        self.backend: Backend = backend or CpuBackend()
        self._arena: Arena | None = None
        self._balance: Balance | None = None
        self._rotation = Rotation()
        self._joining = 0
        self._joined = threading.Condition()
        self._requests: dict[str, tuple[Tenant, Sequence]] = {}
        self._lock = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._loaded = threading.Event()
        self._stopping = False
        self._ended = False
        self._applying = False
        self._draining = False
        self._thread: threading.Thread | None = None
        self._dead: str | None = None
        self._progress_seconds = self.clock.now()
        self._errors: list[str] = []

    @property
    def registry(self) -> CollectorRegistry:
        """Prometheus registry of this engine alone, with vLLM's names."""
        return self.metrics.registry

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine thread, which loads the models and then steps; returns at once."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Abort what runs, end the thread and free the arena."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def drain(self) -> None:
        """Refuse new requests with DrainingError; running ones go on."""
        self._draining = True

    @property
    def idle(self) -> bool:
        """Whether no request runs or waits (what a drain waits for)."""
        return not self._requests

    @property
    def ready(self) -> bool:
        """Whether loading ended, at least one model is usable and nothing drains (`/health`)."""
        usable = any(tenant.usable for tenant in list(self._tenants.values()))
        return self._loaded.is_set() and usable and not self._draining and self._dead is None

    def liveness(self) -> str | None:
        """Return None while alive, else a sentence that says why only a restart helps.

        That is a dead thread, no step for 60 s with work, or no model left of which one served
        before. Where all failed to load, a restart would read the same files.
        """
        if self._dead is not None:
            return self._dead
        tenants = list(self._tenants.values())
        if all(t.state == "Failed" for t in tenants) and any(t.failed_serving for t in tenants):
            names = ", ".join(t.spec.name for t in tenants)
            return (
                f"Every model of this worker has failed ({names}), after it was loaded. "
                "Restart the worker and look at its log."
            )
        quiet = self.clock.now() - self._progress_seconds
        # Loading an added model stops all steps for as long as it takes; a restart would not help.
        busy = self._applying or not self._loaded.is_set()
        if self._requests and not busy and quiet > STUCK_SECONDS:
            return (
                f"The engine has {len(self._requests)} requests but made no step for {quiet:.0f} s. "
                "Restart the worker and look at its log."
            )
        return None

    def wait_loaded(self, timeout_seconds: float) -> bool:
        """Block until every model is Resident or Failed; False on time-out."""
        return self._loaded.wait(timeout_seconds)

    # -- requests ------------------------------------------------------------------------------

    def models(self) -> tuple[Mapping[str, Any], ...]:
        """Return name, state, max_model_len and error of every model, for `/v1/models`."""
        return tuple(
            {
                "name": name,
                "state": tenant.state,
                "max_model_len": tenant.max_model_len,
                "error": error_of(tenant),
            }
            for name, tenant in list(self._tenants.items())  # the engine's thread edits it
        )

    def tokenizer(self, model: str) -> Tokenizer:
        """Return a model's tokenizer.

        Raises:
            UnknownModelError: No model of this name is served.
            ModelUnavailableError: It is loading, draining or failed, or has no tokenizer.
        """
        tokenizer = self._usable(model).tokenizer
        if tokenizer is None:
            raise ModelUnavailableError(
                f"Model {model} has random weights and no tokenizer. Send token ids instead."
            )
        return tokenizer

    def submit(self, request: Request, sink: Callable[[Output], None]) -> None:
        """Queue a request; `sink` is called on the engine thread with every output.

        Raises:
            EngineError: It cannot be served: unknown model, context length, full queue, draining.
        """
        if self._draining or self._stopping:
            raise DrainingError(
                "The worker is shutting down and takes no new requests. Send this one again.",
                retry_after_seconds=1,
            )
        tenant = self._usable(request.model)
        sequence = self._sequence(tenant, request, self._deliver_to(sink))
        with self._lock:
            if self._ended:
                raise ModelUnavailableError(
                    f"The model {request.model!r} cannot answer, because the engine's thread has "
                    "ended. Send this request again.",
                    retry_after_seconds=5,
                )
            if request.request_id in self._requests:
                raise InvalidRequestError(
                    f"Request id {request.request_id} is running already. Give every request its own.",
                    param="request_id",
                )
            waiting = sum(owner is tenant for owner, _ in self._requests.values())
            if waiting >= self.config.queue_limit + self.config.max_seqs:
                raise QueueFullError(
                    f"Model {request.model} has {self.config.queue_limit} waiting requests, its limit. "
                    "Send this one again later, or add replicas.",
                    retry_after_seconds=5,
                )
            self._requests[request.request_id] = tenant, sequence
            self._post(lambda: self._for_tenant(tenant, lambda: self._enter(tenant, sequence)))

    def stream(self, request: Request) -> OutputStream:
        """Queue a request from an asyncio loop; iterate its outputs there.

        Submits before it returns, so errors are raised at the call, not at the first item. An
        output with an error is raised as that EngineError. Leaving the iteration early
        (`aclose`, cancellation) aborts the request.
        """
        stream = OutputStream(abort=lambda: self.abort(request.request_id))
        self.submit(request, stream.push)
        return stream

    def abort(self, request_id: str) -> None:
        """End a request with finish_reason "abort" within one step; unknown ids are ignored."""
        self._post(lambda: self._leave(request_id, None))

    def tenant(self, model: str) -> Tenant:
        """Return a model's inner state, for measuring; serving goes through `submit`."""
        return self._tenants[model]

    @property
    def arena_bytes(self) -> int:
        """Bytes of all slabs."""
        return 0 if self._arena is None else len(self._arena) * self._arena.slab_bytes

    def _usable(self, model: str) -> Tenant:
        tenant = self._tenants.get(model)
        if tenant is None:
            raise UnknownModelError(
                f"The model {model!r} is not served here; served are {', '.join(self._tenants)}. "
                "Correct the field model.",
                param="model",
            )
        if tenant.usable:
            return tenant
        detail = f": {tenant.error}" if tenant.error is not None else ""
        raise ModelUnavailableError(
            f"The model {model!r} is {tenant.state}{detail}. Send this request again later.",
            param="model",
            retry_after_seconds=5,
        )

    def _sequence(
        self, tenant: Tenant, request: Request, sink: Callable[[Output], None]
    ) -> Sequence:
        prompt, params = request.prompt_token_ids, request.params
        if not prompt:
            raise InvalidRequestError(
                "The prompt is empty. Send at least one token.", param="prompt"
            )
        vocab = tenant.shape.vocab
        for param, ids in (("prompt", prompt), ("logit_bias", tuple(params.logit_bias))):
            if min(ids, default=0) < 0 or max(ids, default=0) >= vocab:
                raise InvalidRequestError(
                    f"{param} has a token id outside of the vocabulary of {vocab}. Correct it.",
                    param=param,
                )
        wanted = len(prompt) + (params.max_tokens or 1)
        if wanted > tenant.max_model_len:
            raise ContextLengthError(
                f"The context of model {request.model} is {tenant.max_model_len} tokens, but prompt "
                f"({len(prompt)}) and max_tokens ({params.max_tokens or 1}) need {wanted}. "
                "Shorten the prompt or lower max_tokens.",
                param="messages",
            )
        tokenizer = tenant.tokenizer
        return Sequence(
            request=request,
            sink=sink,
            tokens=list(prompt),
            prompt_length=len(prompt),
            limit=tenant.max_model_len if params.max_tokens is None else wanted,
            seed=secrets.randbits(62) if params.seed is None else params.seed,
            arrival_seconds=(
                self.clock.now() if request.arrival_seconds is None else request.arrival_seconds
            ),
            detokenizer=(
                None if tokenizer is None else StreamDetokenizer(tokenizer, stop=params.stop)
            ),
        )

    # -- the engine thread ---------------------------------------------------------------------

    def _post(self, command: Callable[[], None]) -> None:
        self._inbox.append(command)
        self._wake.set()

    def _run(self) -> None:
        try:
            self.load()
            while not self._stopping:
                if not self.step():
                    due = None if self._balance is None else self._balance.due_seconds()
                    self._wake.wait(min(_IDLE_WAIT_SECONDS, due or _IDLE_WAIT_SECONDS))
                    self._wake.clear()
        except BaseException as error:  # NB: a panic of the Rust tokenizer is no Exception
            self._dead = f"The engine thread ended: {error}. Restart the worker and report its log."
            log.exception("engine_thread_ended")
        finally:
            self._end_all()
            self._loaded.set()

    def load(self) -> None:
        """Load all models on the calling thread; `start` does this on the engine's own."""
        import torch  # noqa: PLC0415 - seconds, and only the engine thread needs it

        torch.set_num_threads(self.config.threads)
        self._gather_ranks()
        opened = [t for t in self._tenants.values() if boot.open_tenant(t, self.ranks)]
        if opened:
            try:
                self._load_opened(opened)
            except EngineError as error:
                for tenant in opened:
                    boot.fail(tenant, error)
        self._progress_seconds = self.clock.now()
        self._loaded.set()

    def _gather_ranks(self) -> None:
        if self.config.ranks > self.ranks.size:
            from trimtab_workers.engine.parallel.group import TPGroup  # noqa: PLC0415 - torch

            self.ranks = TPGroup(self.config, on_lost=self._on_group_lost)

    def _load_opened(self, opened: list[Tenant]) -> None:
        config, backend, ranks = self.config, self.backend, self.ranks
        arena = boot.build_arena(opened, config, backend=backend, clock=self.clock, ranks=ranks)
        self._arena = arena
        policy = config.policy
        loaded = [
            t for t in opened if boot.load_tenant(t, arena, backend, policy=policy, ranks=ranks)
        ]
        boot.open_caches(loaded, arena, backend, config, ranks)
        per_home = {len(tenant.homes[0]) for tenant in loaded if tenant.homes}
        granted = config.policy.granted * sum(per_home)
        mover = Mover(
            arena,
            backend,
            tenants=self._tenants,
            clock=self.clock,
            metrics=self.metrics,
            fail=self._fail_tenant,
        )
        self._balance = Balance(
            arena=arena,
            controller=RemapController(
                policy=config.policy,
                lend_order=config.lend_order,
                min_resident_units=config.min_resident_units,
                active_cap=config.active_cap,
            ),
            mover=mover,
            tenants=self._tenants,
            transfer=backend.transfer,
            clock=self.clock,
            paid_slabs=len(arena) - granted,
            fixed_budget=sum(tenant.fixed_outside for tenant in loaded),
        )
        boot.hand_out(loaded, arena, mover, config)
        self._show_arena()

    def _fail_tenant(self, tenant: Tenant, error: EngineError) -> None:
        """End a model, answer all its requests and give back what it held; others go on."""
        tenant.set_state("Failed", error)
        log.error(
            "model_failed",
            extra={"model": tenant.spec.name, "code": error.code, "reason": error.message},
        )
        if not tenant.served:
            tenant.checkpoint = None
        tenant.tokenizer = None
        now = self.clock.now()
        for owner, sequence in list(self._requests.values()):
            if owner is tenant:
                answer = partial(refuse, tenant, sequence, now=now, error=error)
                attempt(answer, what=f"Request {sequence.request.request_id}: its last answer")
        if self.ranks.size == 1:  # followers compare slab tables, and nothing would use the slabs
            self._give_back(tenant)
            tenant.show_state()
            self._show_arena()
        else:
            attempt(partial(_clear, tenant), what=f"Model {tenant.spec.name}: clearing its queue")

    def _give_back(self, tenant: Tenant) -> None:
        """Free all that a model holds in the arena and beside it."""
        balance, name = self._balance, tenant.spec.name
        if balance is not None and attempt(
            lambda: balance.forget(tenant), what=f"Model {name}: giving its slabs back"
        ):
            balance.arena.release(name)
        tenant.let_go()
        if balance is not None:
            boot.share_swap(self._tenants.values(), balance.arena, self.config, balance.transfer)
        tenant.metrics.gone()
        self._post(memory.give_back)  # when nobody up the stack holds a tensor any more

    def _for_tenant(self, tenant: Tenant, work: Callable[[], object]) -> None:
        """Do something for one model; if it goes wrong that model fails and no other."""
        problem = attempt(work, what=f"Model {tenant.spec.name}: work between two steps")
        if problem is not None:
            self._fail_tenant(tenant, problem)

    def _do_commands(self) -> None:
        while self._inbox:
            attempt(self._inbox.popleft(), what="A command to the engine")

    def step(self) -> bool:
        """Process commands, move slabs, and run one step of one model; False if all were idle."""
        self.ranks.check()
        self._do_commands()
        worked = False
        shared = self.ranks.size > 1  # followers compare slab tables and move no slabs
        if self._balance is not None and not shared and self._balance.between_steps():
            worked = True
            self._show_arena()
        worked |= self._step_one()
        for tenant in list(self._tenants.values()):
            if tenant.drain_until_seconds is not None:
                self._remove_when_done(tenant)
        if worked or not self._requests:
            self._progress_seconds = self.clock.now()
        return worked

    def _step_one(self) -> bool:
        """Let the model whose turn it is step, or the next one that can."""
        ready = [name for name, tenant in self._tenants.items() if tenant.steps]
        mover = None if self._balance is None else self._balance.mover
        while ready:
            name = self._rotation.next(ready)
            if name is None:
                break
            began = self.clock.now()
            worked = self._step_tenant(self._tenants[name], mover)
            self._rotation.charge(name, self.clock.now() - began)
            if worked:
                return True
            ready.remove(name)
        return False

    def _step_tenant(self, tenant: Tenant, mover: Mover | None) -> bool:
        worked = True  # so does a step that fails

        def work() -> None:
            nonlocal worked
            worked = step(tenant, self.clock, mover=mover)

        self._for_tenant(tenant, work)
        return worked

    def _deliver_to(self, sink: Callable[[Output], None]) -> Callable[[Output], None]:
        def deliver(output: Output) -> None:
            if output.finished:
                with self._lock:
                    self._requests.pop(output.request_id, None)
            what = f"Request {output.request_id}: taking an output"
            if attempt(lambda: sink(output), what=what) and not output.finished:
                self.abort(output.request_id)

        return deliver

    def _enter(self, tenant: Tenant, sequence: Sequence) -> None:
        entry = self._requests.get(sequence.request.request_id)
        if entry is None or entry[1] is not sequence:
            return  # answered meanwhile, because its model failed
        scheduler = tenant.scheduler
        # It may have gone since `submit` looked.
        if scheduler is None or tenant.state == "Failed":
            tenant.metrics.finished(sequence, reason="error", now=self.clock.now())
            sequence.sink(_unavailable(sequence, tenant))
            return
        scheduler.add(sequence)
        show_load(tenant, scheduler)

    def _leave(self, request_id: str, error: EngineError | None) -> None:
        entry = self._requests.get(request_id)
        if entry is not None and entry[0].scheduler is not None:
            tenant, sequence = entry
            scheduler = entry[0].scheduler

            def end() -> None:
                end_early(tenant, scheduler, sequence, now=self.clock.now(), error=error)
                show_load(tenant, scheduler)

            self._for_tenant(tenant, end)

    def _end_all(self) -> None:
        with self._lock:
            self._ended = True
        self._do_commands()
        # An answer that a fault cut short must not look like one that its caller ended.
        error = None if self._dead is None else BatchFailedError(self._dead)
        for request_id in list(self._requests):
            self._leave(request_id, error)
        self.ranks.close()
        self._arena = self._balance = None
        for tenant in self._tenants.values():
            tenant.model = tenant.runner = None

    def _show_arena(self) -> None:
        balance = self._balance
        if balance is not None:
            now = self.clock.now()
            attempt(
                lambda: show_arena(balance, self.metrics, config=self.config, now=now),
                what="Showing the arena",
            )

    # -- the model set -------------------------------------------------------------------------

    def reload(self, revision: int | None = None) -> int:
        """Re-read the model set file once, apply it if newer, return the revision in force.

        The server polls this each second until it returns `revision` or more. What cannot change
        in a running engine (memory, threads) is reported in `state()["errors"]`.

        Raises:
            ConfigError: The file is bad; nothing changed.
        """
        if self.config.file is None or self.config.model_root is None:
            return self.config.revision
        try:
            config = load_config(self.config.file, model_root=self.config.model_root)
        except ConfigError as error:
            self.metrics.config_errors.inc()
            self._errors = [error.message]
            raise
        if config.revision <= self.config.revision:
            return self.config.revision
        if revision is not None:
            log.info("model_set_found", extra={"wanted": revision, "found": config.revision})
        done = threading.Event()

        def apply() -> None:
            problem = attempt(lambda: self._apply(config), what="Applying the model set")
            if problem is not None:
                self._errors.append(problem.message)
            done.set()

        self._post(apply)
        done.wait(REMOVAL_SECONDS)
        with self._joined:
            self._joined.wait_for(lambda: not self._joining, REMOVAL_SECONDS)
        return self.config.revision

    def _apply(self, config: EngineConfig) -> None:
        self._applying = True
        try:
            self._change_models(config)
        finally:
            self._progress_seconds = self.clock.now()
            self._applying = False

    def _change_models(self, config: EngineConfig) -> None:
        old = self.config
        self._errors = [
            f"{name} changed from {getattr(old, name)} to {getattr(config, name)}, which takes effect "
            "after a restart. Roll the worker."
            for name in _FIXED_FIELDS
            if getattr(old, name) != getattr(config, name)
        ]
        if self.ranks.size > 1 and old.models != config.models:
            # Followers load what they were started with; nothing tells them of a new model.
            self._errors.append(
                "models changed, which takes effect after a restart where tensor_parallel_size or "
                "pipeline_parallel_size is above 1. Roll the worker."
            )
            self.config = dataclasses.replace(config, models=old.models)
            return
        self.config = dataclasses.replace(config, pressure=old.pressure)
        wanted = {spec.name: spec for spec in config.models}
        for name, tenant in list(self._tenants.items()):
            if wanted.get(name) == tenant.spec and tenant.state != "Failed":
                wanted.pop(name, None)
            else:
                tenant.set_state("Draining")
                tenant.drain_until_seconds = self.clock.now() + REMOVAL_SECONDS
                self._remove_when_done(tenant)
        for name, spec in wanted.items():
            if name in self._tenants:
                continue  # it still drains; its end adds what the set wants by then
            problem = attempt(partial(self._add, spec), what=f"Model {name}: adding it")
            if problem is not None:
                self._errors.append(problem.message)
        self._show_arena()

    def _add(self, spec: ModelSpec) -> None:
        tenant = Tenant(spec=spec, metrics=self.metrics.for_model(spec.name))
        self._tenants[spec.name] = tenant
        balance = self._balance
        if balance is None:
            boot.fail(
                tenant, CheckpointError("The engine has no arena. Roll the worker to add models.")
            )
            return
        self._joining += 1
        Joining(
            tenant,
            balance=balance,
            backend=self.backend,
            config=self.config,
            post=self._post,
            fail=self._fail_tenant,
            joined=self._end_join,
        ).start()

    def _end_join(self, tenant: Tenant) -> None:
        if tenant.drain_until_seconds is not None:  # it may be Failed by now
            self._remove_when_done(tenant)
        self._show_arena()
        with self._joined:
            self._joining -= 1
            self._joined.notify_all()

    def _remove_when_done(self, tenant: Tenant) -> None:
        if tenant.loader is not None:
            return  # it writes into its homes; the end of loading comes back here
        scheduler, deadline = tenant.scheduler, tenant.drain_until_seconds
        if scheduler is not None and deadline is not None:
            if scheduler.has_work and self.clock.now() < deadline:
                return
            self._for_tenant(tenant, lambda: self._end_removed(tenant, scheduler))
        self._tenants.pop(tenant.spec.name, None)
        # A request that was let in before this is still on its way to `_enter`, which refuses it.
        self._give_back(tenant)
        attempt(
            lambda: self.metrics.forget_model(tenant.spec.name),
            what=f"Model {tenant.spec.name}: forgetting its gauges",
        )
        self._show_arena()
        again = next((s for s in self.config.models if s.name == tenant.spec.name), None)
        if again is not None and not self._applying:
            self._add(again)

    def _end_removed(self, tenant: Tenant, scheduler: Scheduler) -> None:
        error = ModelUnavailableError(
            f"The model {tenant.spec.name!r} was removed from this worker, and this request was "
            f"not done within {REMOVAL_SECONDS:.0f} s. Send it again.",
            param="model",
            retry_after_seconds=5,
        )
        for sequence in list(scheduler):
            end_early(tenant, scheduler, sequence, now=self.clock.now(), error=error)

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the document of contracts §6."""
        document = engine_state(
            self.config, dict(self._tenants), balance=self._balance, now=self.clock.now()
        )
        lacks = [why for tenant in list(self._tenants.values()) for why in tenant.lacks.values()]
        return document | {"draining": self._draining, "errors": [*self._errors, *lacks]}


def _clear(tenant: Tenant) -> None:
    """Drop the answered sequences of a model that keeps its slabs, or gauges show them for ever."""
    scheduler = tenant.scheduler
    if scheduler is not None:
        for sequence in list(scheduler):
            scheduler.remove(sequence)
        show_load(tenant, scheduler)


def _unavailable(sequence: Sequence, tenant: Tenant) -> Output:
    return Output(
        request_id=sequence.request.request_id,
        error=ModelUnavailableError(
            f"The model {tenant.spec.name!r} went away before this request began. Send it again.",
            param="model",
        ),
    )
