"""Fingerprints from a catalogue of measured operators: the package aiconfigurator, offline.

Runs in an environment of its own (extra `catalogue`), never in the operator's: questions come on
standard input, answers go to standard output, both JSON. It gives the package `config.json` of 1
and 2 layers and asks for single steps of those; it reads the package's operator estimates only.
Measured end-to-end results that the package carries are what predictions are judged by (planner.md
§4), so nothing here opens them. Standard library only, beside the package.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from trimtab.planning.architecture import (
    Architecture,
    UnsupportedArchitectureError,
    architecture_hash,
)
from trimtab.planning.fingerprint import Fingerprint, FingerprintKey, StepPoint, dump
from trimtab.planning.gpu_grid import GRIDS, THIN, Grid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PACKAGE: Final = "aiconfigurator"

_GEMM: Final[Mapping[str, str]] = {
    "bf16": "bfloat16",
    "fp16": "bfloat16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "int8": "int8_wo",
    "int4": "int4_wo",
}
_CACHE: Final[Mapping[str, str]] = {"bf16": "bfloat16", "fp16": "bfloat16", "fp8": "fp8"}
_PRODUCTS: Final[Mapping[str, str]] = {
    "a100_sxm": "NVIDIA-A100-SXM4-80GB",
    "b200_sxm": "NVIDIA-B200",
    "gb200": "NVIDIA-GB200",
    "h100_sxm": "NVIDIA-H100-80GB-HBM3",
    "h200_sxm": "NVIDIA-H200",
    "l40s": "NVIDIA-L40S",
}
# Estimates are exactly linear in the layers, and the document holds whole µs: written ten layers
# apart, it keeps a tenth of a µs of one.
_WRITTEN_DEPTHS: Final = (1, 11)
_DEPTHS: Final = (1, 2)
# What a checkpoint's name adds to its architecture's.
_VARIANT: Final = re.compile(r"^meta-|-(instruct|base|chat|hf|fp8|nvfp4|fp4|awq|gptq)(?=-|$)")


class Engine(Protocol):
    """What is used of the package's compiled engine.

    Attributes:
        predict_decode_latency: (sequences, context) to ms of one step.
        predict_prefill_latency: (sequences, tokens, cached ones among them) to ms of one step.
    """

    predict_decode_latency: Callable[..., float]
    predict_prefill_latency: Callable[..., float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One fingerprint that is asked for.

    Attributes:
        model: Name of a model whose configuration the package brings.
        config: The full model's `config.json`; None looks ``model`` up.
        system: The package's name of the machine, such as h100_sxm.
        backend: vllm, sglang or trtllm.
        precision: Of the weights.
        kv_precision: Of the KV cache.
        tensor_parallel_size: GPUs per group.
        grid: Which points, a name in `GRIDS`.
    """

    model: str
    config: Mapping[str, Any] | None
    system: str
    backend: str
    precision: str
    kv_precision: str
    tensor_parallel_size: int
    grid: str = "thin"


class CatalogueError(Exception):
    """The catalogue has no answer; the sentence says why."""


def main() -> int:
    """Answer the questions on standard input."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable(logging.CRITICAL)
    request = json.load(sys.stdin)
    try:
        version = importlib.metadata.version(PACKAGE)
        core = importlib.import_module("aiconfigurator_core.sdk.engine")
        database = importlib.import_module("aiconfigurator_core.sdk.perf_database")
    except ImportError as error:
        json.dump(
            {"v": 1, "ok": False, "message": f"{PACKAGE} is not installed: {error}."}, sys.stdout
        )
        return 0
    catalogue = Catalogue(
        compile_=core.EngineHandle.compile,
        version_of=lambda system, backend: str(
            database.resolve_query_version(system, backend, "current")
        ),
        package_version=version,
    )
    answers = [answer(catalogue, query) for query in request["queries"]]
    json.dump({"v": 1, "ok": True, "package": version, "results": answers}, sys.stdout)
    return 0


def answer(catalogue: Catalogue, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to one question, as JSON."""
    try:
        query = Query(
            model=str(data["model"]),
            config=data.get("config"),
            system=str(data["system"]),
            backend=str(data["backend"]),
            precision=str(data["precision"]),
            kv_precision=str(data["kvPrecision"]),
            tensor_parallel_size=int(data["tensorParallelSize"]),
            grid=str(data.get("grid", "thin")),
        )
        config = query.config or bundled_config(query.model)
        fingerprint = catalogue.fingerprint(query, config)
    except (CatalogueError, UnsupportedArchitectureError) as error:
        return {"ok": False, "message": str(error)}
    return {
        "ok": True,
        "depth": config["num_hidden_layers"],
        "architecture": Architecture.from_hf_config(config).to_dict(),
        "fingerprint": json.loads(dump(fingerprint)),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The package, reduced to what is asked of it: step times of a model on a machine.

    Attributes:
        compile_: Makes an engine from a folder with a `config.json`, a system and a backend.
        version_of: Returns the engine's version that the estimates of (system, backend) are of.
        package_version: The package's own.
    """

    compile_: Callable[..., Engine]
    version_of: Callable[[str, str], str]
    package_version: str

    def fingerprint(self, query: Query, config: Mapping[str, Any]) -> Fingerprint:
        """Return the fingerprint of a model from its versions of 1 and 2 layers.

        Raises:
            CatalogueError: The package does not know machine, engine, model or precision.
            UnsupportedArchitectureError: Trimtab does not plan such models.
        """
        architecture = Architecture.from_hf_config(config)
        if query.precision not in _GEMM or query.kv_precision not in _CACHE:
            raise CatalogueError(
                f"The catalogue has no precision {query.precision} with a KV cache of "
                f"{query.kv_precision}; weights may be {', '.join(_GEMM)}, the cache "
                f"{', '.join(_CACHE)}."
            )
        engines, attention = self._engines(query, config)
        key = FingerprintKey(
            architecture=architecture_hash(architecture),
            product=_PRODUCTS.get(query.system, query.system),
            precision=query.precision,
            kv_precision=query.kv_precision,
            tensor_parallel_size=query.tensor_parallel_size,
            engine=query.backend,
            engine_version=self.version_of(query.system, query.backend),
            flags=(f"attention={attention}", f"catalogue={PACKAGE}-{self.package_version}"),
        )
        try:
            return _measured(key, engines, GRIDS[query.grid])
        except Exception as error:
            # The package raises its own kinds for points that it lacks.
            raise CatalogueError(_why(query, error)) from error

    def _engines(
        self, query: Query, config: Mapping[str, Any]
    ) -> tuple[tuple[Engine, Engine], str]:
        """Return the engines of 1 and 2 layers and the precision of their attention."""
        cache = _CACHE[query.kv_precision]
        failure: Exception | None = None
        # Attention computes in the cache's precision where that was measured, else in bf16.
        for attention in dict.fromkeys((cache, "bfloat16")):
            try:
                shallow, deep = (
                    self._compile(query, config, depth=depth, cache=cache, attention=attention)
                    for depth in _DEPTHS
                )
                deep.predict_decode_latency(1, THIN.decode[0][1])
                deep.predict_prefill_latency(1, THIN.prefill[0][0])
            except Exception as error:  # noqa: BLE001 - as above
                failure = failure or error
            else:
                return (shallow, deep), attention
        raise CatalogueError(_why(query, failure)) from failure

    def _compile(
        self, query: Query, config: Mapping[str, Any], *, depth: int, cache: str, attention: str
    ) -> Engine:
        with tempfile.TemporaryDirectory(prefix="trimtab-catalogue-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(cut(config, depth=depth)))
            return self.compile_(
                folder,
                query.system,
                query.backend,
                tp_size=query.tensor_parallel_size,
                gemm_quant_mode=_GEMM[query.precision],
                kvcache_quant_mode=cache,
                fmha_quant_mode=attention,
            )


def cut(config: Mapping[str, Any], *, depth: int) -> dict[str, Any]:
    """Return a model's configuration with ``depth`` layers."""
    shallow = dict(config) | {"num_hidden_layers": depth}
    if isinstance(config.get("layer_types"), list):
        shallow["layer_types"] = config["layer_types"][:depth]
    shallow.pop("max_window_layers", None)
    return shallow


def bundled_config(model: str) -> dict[str, Any]:
    """Return the configuration that the package brings for a model or for its base model.

    Raises:
        CatalogueError: It brings none.
    """
    core = importlib.import_module("aiconfigurator_core")
    folder = Path(str(core.__file__)).parent / "model_configs"
    wanted = base_name(model)
    found = [
        path
        for path in folder.glob("*_config.json")
        if not path.name.endswith("_hf_quant_config.json")
        and base_name(path.name.removesuffix("_config.json").replace("--", "/")) == wanted
    ]
    if not found:
        raise CatalogueError(
            f"The catalogue brings no configuration of {model}: give one with --model-config."
        )
    config: dict[str, Any] = json.loads(min(found, key=lambda p: (len(p.name), p.name)).read_text())
    return config


def base_name(model: str) -> str:
    """Return a model's name without owner and without what only names a variant of its weights."""
    return _VARIANT.sub("", model.rsplit("/", 1)[-1].lower())


def _measured(key: FingerprintKey, engines: tuple[Engine, Engine], grid: Grid) -> Fingerprint:
    def point(batch: int = 0, context: int = 0, chunk: int = 0, cached: int = 0) -> StepPoint:
        if batch:
            t1, t2 = (e.predict_decode_latency(batch, context) for e in engines)
        else:
            t1, t2 = (e.predict_prefill_latency(1, cached + chunk, cached) for e in engines)
        deep = t1 + (_WRITTEN_DEPTHS[1] - 1) * (t2 - t1)
        return StepPoint(
            batch=batch,
            context=context,
            chunk=chunk,
            cached=cached,
            t1_us=max(1, round(t1 * 1000)),
            mad1_us=0,
            t2_us=max(1, round(deep * 1000)),
            mad2_us=0,
            repeats=1,
        )

    return Fingerprint(
        key=key,
        source="Catalogue",
        depths=_WRITTEN_DEPTHS,
        decode=tuple(point(batch=b, context=c) for b, c in grid.decode),
        prefill=tuple(point(chunk=n, cached=c) for n, c in grid.prefill),
    )


def _why(query: Query, error: Exception | None) -> str:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else repr(error)
    return (
        f"The catalogue has no estimate of {query.model} on {query.system} with {query.backend}, "
        f"{query.precision}, tensor parallel {query.tensor_parallel_size}: {reason}"
    )


if __name__ == "__main__":
    sys.exit(main())
