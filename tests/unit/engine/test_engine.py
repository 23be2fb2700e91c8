"""The engine from outside: requests, ends, failures, the model set."""

import asyncio
import dataclasses
import functools
import json
from pathlib import Path

import pytest

from tests.unit.engine.builders import a_request, an_engine, kv_memory, run, submit
from trimtab_workers.engine.clock import VirtualClock
from trimtab_workers.engine.config import EngineConfig, ModelSpec, load_config
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.errors import (
    BatchFailedError,
    ConfigError,
    ContextLengthError,
    DrainingError,
    EngineError,
    InvalidRequestError,
    ModelCorruptError,
    ModelUnavailableError,
    QueueFullError,
    UnknownModelError,
)


def _value(engine: Engine, name: str, **labels: str) -> float | None:
    return engine.registry.get_sample_value(name, {"model_name": "m", "engine": "0"} | labels)


def test_lengths_and_timings():
    """A request ends after max_tokens with "length", and its times are in order."""
    [output] = run(an_engine(), a_request("r", range(20), max_tokens=5))
    assert len(output.tokens) == 5
    assert output[-1].finish_reason == "length"
    assert output[-1].prompt_tokens == 20
    times = output[-1].timings
    assert times is not None
    assert times.first_token_seconds is not None
    assert times.finished_seconds is not None
    assert times.arrival_seconds <= times.first_token_seconds <= times.finished_seconds


def test_stop_token_ids():
    """A stop token id ends the request and is its stop_reason."""
    engine = an_engine()
    [free] = run(engine, a_request("a", range(9)))
    third = free.tokens[2]
    [output] = run(engine, a_request("b", range(9), stop_token_ids=(third,)))
    assert output.tokens == free.tokens[: free.tokens.index(third) + 1]
    assert (output[-1].finish_reason, output[-1].stop_reason) == ("stop", third)


def test_whole_context_can_be_used():
    """A lone request runs up to the last KV block, however small the pool is."""
    engine = an_engine(memory_bytes=kv_memory(8))
    limit = engine.models()[0]["max_model_len"]
    [output] = run(engine, a_request("r", range(5), max_tokens=limit - 5))
    assert len(output.tokens) == limit - 5


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (a_request("r", range(500), max_tokens=600), ContextLengthError, r"1024.*500.*600.*1100"),
        (a_request("r", ()), InvalidRequestError, "prompt is empty"),
        (a_request("r", (1, 512)), InvalidRequestError, "vocabulary of 512"),
        (a_request("r", (1,), logit_bias={512: 1.0}), InvalidRequestError, "logit_bias"),
    ],
)
def test_refused_requests(request_: object, error: type[EngineError], words: str):
    """What cannot be served is refused at submit, with numbers."""
    engine = an_engine()
    with pytest.raises(error, match=words):
        submit(engine, request_)
    assert engine.idle


def test_unknown_model():
    """A name that is not served is a 404 that names those that are."""
    engine = an_engine()
    with pytest.raises(UnknownModelError, match="'x' is not served here; served are m") as caught:
        engine.tokenizer("x")
    assert caught.value.status == 404


def test_full_queue_and_drain():
    """Beyond the queue's limit and while draining, requests get 503 with a time to retry."""
    engine = an_engine(queue_limit=2, max_seqs=1)
    for index in range(3):
        submit(engine, a_request(f"r{index}"))
    with pytest.raises(QueueFullError) as full:
        submit(engine, a_request("r3"))
    assert full.value.retry_after_seconds
    engine.drain()
    with pytest.raises(DrainingError) as draining:
        submit(engine, a_request("r4"))
    assert draining.value.status == 503
    assert not engine.ready
    run(engine)
    assert engine.idle


def test_abort_frees_blocks_in_one_step():
    """An aborted request ends with "abort" and its blocks are free after one step."""
    engine = an_engine()
    output = submit(engine, a_request("r", range(100), max_tokens=500))
    engine.step()
    assert engine.state()["kv"]["used_tokens"] >= 100
    engine.abort("r")
    engine.step()
    assert output[-1].finish_reason == "abort"
    assert engine.state()["kv"]["used_tokens"] == 0


def test_nan_fails_its_batch_alone():
    """NaN fails the requests of that step with 500; those that come later are untouched."""
    [expected] = run(an_engine(), a_request("r", range(60)))
    engine = an_engine()
    bad = submit(engine, a_request("bad", [500, *range(70)]))
    memory, block = engine.tenant("m").runner.model.embedding.memory
    row = memory[500 // block, :, 500 % block] if block else memory[500]
    honest = row.clone()
    row.fill_(float("nan"))
    engine.step()
    assert isinstance(bad[-1].error, BatchFailedError)
    assert bad[-1].error.status == 500
    row.copy_(honest)
    [good] = run(engine, a_request("good", range(60)))
    assert good.tokens == expected.tokens
    assert engine.models()[0]["state"] == "Resident"
    assert _value(engine, "vllm:request_success_total", finished_reason="error") == 1


def test_three_failures_fail_the_model(monkeypatch: pytest.MonkeyPatch):
    """After three failed batches in a row the model is Failed and says so."""
    engine = an_engine()
    monkeypatch.setattr(
        engine.tenant("m").runner, "execute", lambda _: (_ for _ in ()).throw(ValueError("boom"))
    )
    for index in range(3):
        submit(engine, a_request(f"r{index}"))
        engine.step()
    assert engine.models()[0]["state"] == "Failed"
    assert not engine.ready
    with pytest.raises(EngineError, match="boom"):
        submit(engine, a_request("late"))


def test_a_worker_whose_models_all_failed_is_not_alive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """With no model left a restart helps if one served before; files that do not load stay so."""
    engine = an_engine()
    missing = (ModelSpec(name="gone", path=tmp_path / "gone"),)
    never = Engine(EngineConfig(models=missing))
    never.load()
    assert not never.ready
    assert never.liveness() is None
    monkeypatch.setattr(
        engine.tenant("m").runner, "execute", lambda _: (_ for _ in ()).throw(ValueError("boom"))
    )
    for index in range(3):
        assert engine.liveness() is None
        submit(engine, a_request(f"r{index}"))
        engine.step()
    assert "Every model of this worker has failed (m)" in (engine.liveness() or "")


async def test_stream_from_asyncio(glass_en: Path):
    """An asyncio loop reads a stream while the engine's thread steps; leaving it aborts."""
    engine = Engine(
        EngineConfig(models=(ModelSpec(name="m", path=glass_en, dtype="fp32"),), max_model_len=128)
    )
    engine.start()
    try:
        assert await asyncio.to_thread(engine.wait_loaded, 60)
        outputs = [o async for o in engine.stream(a_request("a", (5, 6), max_tokens=4))]
        assert len([t for o in outputs for t in o.token_ids]) == 4
        left = engine.stream(a_request("b", (5, 6), max_tokens=120))
        await anext(left)
        await left.aclose()
        async with asyncio.timeout(30):
            while not engine.idle:  # noqa: ASYNC110 - the engine's thread has no asyncio event
                await asyncio.sleep(0.01)
        assert engine.liveness() is None
    finally:
        await asyncio.to_thread(engine.stop)


def test_liveness_needs_progress():
    """Work without a step for 60 s is reported, idleness is not."""
    clock = VirtualClock()
    engine = an_engine(clock=clock)
    clock.advance(100)
    assert engine.liveness() is None
    submit(engine, a_request("r"))
    assert "no step for 100 s" in (engine.liveness() or "")


def test_loading_an_added_model_is_no_hang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A worker that reads a large model for minutes is alive, whatever waits meanwhile."""
    clock = VirtualClock()
    engine = an_engine(clock=clock)
    seen = []

    def slow(*_: object) -> bool:
        clock.advance(100)
        seen.append(engine.liveness())
        return False

    monkeypatch.setattr("trimtab_workers.engine.engine.boot.open_tenant", slow)
    models = (*engine.config.models, ModelSpec(name="large", path=tmp_path))
    newer = dataclasses.replace(engine.config, revision=2, models=models)
    waiting = submit(engine, a_request("r"))
    engine._post(lambda: engine._apply(newer))
    engine.step()
    assert seen == [None]
    assert engine.liveness() is None
    assert waiting


def test_failed_model_leaves_others(glass_en: Path, tmp_path: Path):
    """A model that is not there is Failed with a reason; the other serves."""
    engine = Engine(
        EngineConfig(
            models=(
                ModelSpec(name="m", path=glass_en, dtype="fp32"),
                ModelSpec(name="gone", path=tmp_path / "gone"),
            )
        )
    )
    engine.load()
    run(engine, a_request("r", (5, 6)))
    failed = engine.state()["models"][1]
    assert failed["state"] == "Failed"
    assert failed["error"]["reason"] == "ModelNotFound"
    assert "gone: there is no such file" in failed["error"]["message"]


def test_too_little_memory(glass_en: Path):
    """Memory that does not hold the weights fails the model and names both numbers."""
    with pytest.raises(ConfigError, match=r"memory_bytes is 100000, but .* need 52\d+ bytes"):
        an_engine(glass_en, memory_bytes=100_000)


def _write(file: Path, revision: int, models: list[dict], **fields: object) -> None:
    file.write_text(json.dumps({"v": 1, "revision": revision, "models": models} | fields))


def test_reload_swaps_models(glass_en: Path, glass_pt: Path, tmp_path: Path):
    """A newer set drains removed models, loads added ones, and nothing leaks."""
    file = tmp_path / "models.json"
    english = {"name": "m", "path": f"{glass_en.parent.name}/en", "dtype": "fp32"}
    portuguese = {"name": "pt", "path": f"{glass_pt.parent.name}/pt", "dtype": "fp32"}
    _write(file, 1, [english])
    engine = Engine(load_config(file, model_root=glass_en.parent.parent))
    engine.start()
    try:
        assert engine.wait_loaded(60)
        slabs = engine.state()["slabs"]
        _write(file, 2, [portuguese])
        assert engine.reload(2) == 2
        assert [(m["name"], m["state"]) for m in engine.models()] == [("pt", "Resident")]
        assert engine.state()["slabs"] == slabs
        _write(file, 3, [portuguese], threads="many")
        with pytest.raises(ConfigError, match="threads is 'many'"):
            engine.reload(3)
        assert engine.state()["revision"] == 2
        assert "threads is 'many'" in engine.state()["errors"][0]
        assert engine.ready
    finally:
        engine.stop()


def test_a_request_that_meets_a_removal_is_refused(tmp_path: Path):
    """A request let in just before its model goes ends with an error; it waits for nobody."""
    engine = an_engine()
    other = ModelSpec(name="other", path=tmp_path / "gone")
    newer = dataclasses.replace(engine.config, revision=2, models=(other,))
    engine._post(lambda: engine._apply(newer))
    late = submit(engine, a_request("r"))
    engine.step()
    assert late[-1].error is not None
    assert late[-1].error.code == "model_unavailable"
    assert engine.idle


def test_a_request_that_outlives_its_model_ends_with_an_error(tmp_path: Path):
    """An answer that a removal cuts short after 30 s is a 503, not a shorter answer."""
    clock = VirtualClock()
    engine = an_engine(clock=clock)
    running = submit(engine, a_request("r", max_tokens=500))
    engine.step()
    other = ModelSpec(name="other", path=tmp_path / "gone")
    newer = dataclasses.replace(engine.config, revision=2, models=(other,))
    engine._post(lambda: engine._apply(newer))
    engine.step()
    assert running[-1].error is None
    clock.advance(31)
    engine.step()
    assert running[-1].finish_reason is None
    assert isinstance(running[-1].error, ModelUnavailableError)
    assert "was removed" in running[-1].error.message
    assert engine.idle


def test_a_model_that_comes_back_while_it_drains_is_added_again(tmp_path: Path):
    """A set that names a model again before its last request ended is not forgotten."""
    clock = VirtualClock()
    engine = an_engine(clock=clock)
    submit(engine, a_request("r", max_tokens=500))
    engine.step()
    back = ModelSpec(name="m", path=tmp_path / "gone")
    for revision, models in ((2, ()), (3, (back,))):
        newer = dataclasses.replace(engine.config, revision=revision, models=models)
        engine._post(functools.partial(engine._apply, newer))
        engine.step()
    assert [m["state"] for m in engine.models()] == ["Draining"]
    clock.advance(31)
    engine.step()
    while engine._joining:
        engine.step()
    assert [(m["name"], m["state"]) for m in engine.models()] == [("m", "Failed")]


def test_a_removed_model_leaves_no_gauges(tmp_path: Path):
    """Of a model that is gone only counters remain, so that a later one of its name stands alone."""
    engine = an_engine()
    assert _value(engine, "trimtab_engine_layers", state="resident") == 2
    other = ModelSpec(name="other", path=tmp_path / "gone")
    engine._post(
        lambda: engine._apply(dataclasses.replace(engine.config, revision=2, models=(other,)))
    )
    engine.step()
    left = {
        family.name
        for family in engine.registry.collect()
        if family.type == "gauge" and any(s.labels.get("model_name") == "m" for s in family.samples)
    }
    assert left == {"trimtab_engine_model_state"}


class Panic(BaseException):
    """Like a panic of the Rust tokenizer, which is no Exception."""


def test_a_tokenizer_that_panics_fails_its_model(monkeypatch: pytest.MonkeyPatch, glass_en: Path):
    """A tokenizer file that makes its library panic is a model's failure, not the engine's."""

    def panic(*_: object, **__: object) -> None:
        raise Panic("index out of bounds")

    monkeypatch.setattr("trimtab_workers.engine.boot.load_tokenizer", panic)
    with pytest.raises(ModelCorruptError, match="Panic: index out of bounds"):
        an_engine(glass_en)


@pytest.mark.parametrize("kind", [RuntimeError, Panic])
def test_a_dead_engine_thread_leaves_no_request_waiting(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
):
    """What ran gets an error, not a shorter answer, and what comes later is refused at once."""
    engine = an_engine()
    monkeypatch.setattr(engine, "load", lambda: None)

    def broken() -> bool:
        raise kind("broken")

    monkeypatch.setattr(engine, "step", broken)
    running = submit(engine, a_request("running"))
    engine.start()
    engine._thread.join(30)
    assert running[-1].error is not None
    assert "broken" in running[-1].error.message
    assert engine.liveness() is not None
    with pytest.raises(ModelUnavailableError, match="Send this request again"):
        engine.submit(a_request("late"), print)
    assert engine.idle


def test_text_that_is_no_text_is_refused(glass_en: Path):
    """Half a surrogate pair, which JSON allows, is the caller's fault and named."""
    tokenizer = an_engine(glass_en).tokenizer("m")
    with pytest.raises(InvalidRequestError, match=r"lone surrogate \(\\ud83d\) at character 1"):
        tokenizer.encode("a\ud83d")
    for absurd in (-1, 2**31, 10**30):
        assert tokenizer.token_bytes(absurd) == b""


def test_decode_windows_and_counters():
    """Decode-only steps are counted and show up as windows once 30 s have passed."""
    clock = VirtualClock()
    engine = an_engine(clock=clock)
    run(engine, a_request("a", range(40), max_tokens=5), a_request("b", range(40), max_tokens=5))
    assert engine.state()["windows"] == {"m": []}
    clock.advance(31)
    assert engine.state()["windows"] == {"m": [["decode", 2, 32, 4, 0]]}
    assert engine.state()["decode_only"] == {
        "m": {"steps": 4, "seconds": 0.0, "sequences": 8, "context_tokens": 2 * (41 + 42 + 43 + 44)}
    }
    assert _value(engine, "trimtab_engine_decode_only_steps_total") == 4
    assert _value(engine, "trimtab_engine_decode_only_sequences_total") == 8
    assert _value(engine, "trimtab_engine_decode_only_context_tokens_total") == 2 * (
        41 + 42 + 43 + 44
    )


def test_counts_equal_requests():
    """Counters of requests and tokens add up to what was asked."""
    engine = an_engine()
    run(engine, *(a_request(f"r{i}", range(10), max_tokens=6) for i in range(4)))
    assert _value(engine, "vllm:request_success_total", finished_reason="length") == 4
    assert _value(engine, "vllm:prompt_tokens_total") == 40
    assert _value(engine, "vllm:generation_tokens_total") == 24
    assert _value(engine, "vllm:time_to_first_token_seconds_count") == 4
    assert _value(engine, "vllm:inter_token_latency_seconds_count") == 20
    assert _value(engine, "vllm:num_requests_running") == 0
