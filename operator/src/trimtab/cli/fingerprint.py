"""`trimtab fingerprint`: documents that the planner reads, without a cluster."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from trimtab.cli.output import CommandError, fail, write

if TYPE_CHECKING:
    from trimtab.planning.architecture import Architecture
    from trimtab.planning.fingerprint import Fingerprint
    from trimtab.planning.onelayer import AllReduce

app = typer.Typer(no_args_is_help=True, help="Make fingerprint documents from files.")

# A step model is fitted before anything is written, so that a bad profile is refused here; the
# depth changes no check.
_CHECKED_DEPTH: Final = 32


@app.callback()
def fingerprint() -> None:
    """Make fingerprint documents from files."""


class Format(StrEnum):
    """What `--format` accepts."""

    LLMSERVINGSIM = "llmservingsim"


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder with meta.yaml and the tables.")],
    *,
    format_: Annotated[Format, typer.Option("--format", help="Whose profile it is.")],
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Degree whose tables are read.")],
    out: Annotated[Path, typer.Option(help="Where the document is written.")],
    model_config: Annotated[
        Path | None,
        typer.Option(help="The full model's config.json; without it `plan` cannot tell its model."),
    ] = None,
    step_overhead_us: Annotated[
        float, typer.Option(min=0, help="Time per step beside the operators, µs.")
    ] = 0.0,
    step_overhead_source: Annotated[
        str | None, typer.Option(help="Where that figure is from; never the run to be predicted.")
    ] = None,
    all_reduce: Annotated[
        Path | None,
        typer.Option(help="CSV (bytes, time_us) of one all-reduce; needs --model-config."),
    ] = None,
) -> None:
    """Turn a third party's one-layer profile into a fingerprint with its whole grid."""
    from trimtab.planning.fingerprint import dump  # noqa: PLC0415 - with numbers of a plan

    if (step_overhead_us > 0) != (step_overhead_source is not None):
        fail(
            "--step-overhead-us and --step-overhead-source go together: a figure without a source "
            "cannot be judged. Give both, or neither for no overhead."
        )
    try:
        document = read(
            format_,
            folder,
            tensor_parallel_size=tensor_parallel,
            model_config=model_config,
            overhead=(step_overhead_us, step_overhead_source or ""),
            all_reduce=all_reduce,
        )
        out.write_text(dump(document, limit=None) + "\n")
    except CommandError as error:
        fail(str(error))
    except OSError as error:
        fail(f"--out {out} cannot be written: {error}.")
    write(_summary(document, out))
    absent = [flag.partition("=")[2] for flag in document.key.flags if flag.startswith("without=")]
    if absent:
        typer.echo(
            f"warning: the profile has no times of {', '.join(absent)}; they count as nothing.",
            err=True,
        )
    if tensor_parallel > 1 and all_reduce is None:
        typer.echo(
            "warning: no all-reduce is in these times, so plans do not use this document. Give "
            "--all-reduce and --model-config.",
            err=True,
        )


@app.command()
def derive(
    *,
    model_config: Annotated[Path, typer.Option(help="The full model's config.json.")],
    system: Annotated[str, typer.Option(help="The catalogue's machine, such as h100_sxm.")],
    backend: Annotated[str, typer.Option(help="vllm, sglang or trtllm.")],
    out: Annotated[Path, typer.Option(help="Where the document is written.")],
    precision: Annotated[str, typer.Option(help="Of the weights.")] = "bf16",
    kv_precision: Annotated[str, typer.Option(help="Of the KV cache.")] = "bf16",
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs per group.")] = 1,
    product: Annotated[
        str | None, typer.Option(help="The product's name on nodes, where the system's differs.")
    ] = None,
    grid: Annotated[
        Literal["thin", "full"],
        typer.Option(help="Points: thin for plans, full to judge by in benchmarks."),
    ] = "thin",
    catalogue_python: Annotated[
        str | None,
        typer.Option(help="Interpreter with aiconfigurator; default: TRIMTAB_CATALOGUE_PYTHON."),
    ] = None,
) -> None:
    """Derive a fingerprint from the catalogue of measured operators, without a GPU."""
    import json  # noqa: PLC0415 - only here

    from trimtab.cli.catalogue import CatalogueQuery, ask  # noqa: PLC0415 - as above
    from trimtab.planning.fingerprint import dump  # noqa: PLC0415 - as above

    try:
        query = CatalogueQuery(
            model=str(model_config),
            config=json.loads(model_config.read_text()),
            system=system,
            backend=backend,
            precision=precision,
            kv_precision=kv_precision,
            tensor_parallel_size=tensor_parallel,
            grid=grid,
        )
        found = ask([query], python=catalogue_python).results[0]
        if isinstance(found, str):
            fail(found)
        document = found.fingerprint
        if product is not None:
            document = replace(document, key=replace(document.key, product=product))
        out.write_text(dump(document, limit=None) + "\n")
    except CommandError as error:
        fail(str(error))
    except (OSError, ValueError) as error:
        fail(f"{model_config} cannot be read, or {out} not written: {error}.")
    write(_summary(document, out))


@app.command()
def manifest(
    document: Annotated[Path, typer.Argument(help="Fingerprint document, derived or imported.")],
    *,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Where the operator runs.")
    ] = "trimtab-system",
) -> None:
    """Print the ConfigMap that gives an operator this fingerprint, for `kubectl apply -f -`."""
    import json  # noqa: PLC0415 - only here

    import yaml  # noqa: PLC0415 - 30 ms

    from trimtab.observe.digests import digest  # noqa: PLC0415 - as above
    from trimtab.planning.fingerprint import (  # noqa: PLC0415 - as above
        FingerprintInvalidError,
        parse,
    )
    from trimtab.planning.step_model import fit  # noqa: PLC0415 - as above
    from trimtab.reconcile.fingerprint_book import (  # noqa: PLC0415 - as above
        FINGERPRINT_KEY,
        SEAL_ANNOTATION,
    )
    from trimtab.reconcile.labels import shared_labels  # noqa: PLC0415 - as above

    try:
        text = document.read_text()
        found = parse(text)
        fit(found, depth=_CHECKED_DEPTH)
    except FingerprintInvalidError as error:
        fail(f"{document}: {error}")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{document} cannot be read: {error}.")
    if not found.key.architecture:
        fail(
            f"{document} does not say which model it is of, so no plan would use it. Import it "
            "again with --model-config."
        )
    name = f"fp-{found.key.digest()}"
    compact = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": shared_labels("fingerprint", instance=name),
            # Else the seal of a document that it replaces would say that this one was edited.
            "annotations": {SEAL_ANNOTATION: digest(compact)},
        },
        "data": {FINGERPRINT_KEY: compact},
    }
    write(yaml.safe_dump(body, sort_keys=False).rstrip())


@app.command()
def accuracy(
    *,
    model: Annotated[Path, typer.Option(help="GGUF file or directory with the weights.")],
    precision: Annotated[list[str], typer.Option(help="To compare; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Where the document is written.")],
    threads: Annotated[int, typer.Option(min=1, help="To compute with.")] = 1,
) -> None:
    """Measure what precisions lose against the checkpoint's own, on a fixed text, in the engine."""
    import importlib.util  # noqa: PLC0415 - only here
    import os  # noqa: PLC0415 - as above
    import subprocess  # noqa: PLC0415 - as above
    import sys  # noqa: PLC0415 - as above

    from trimtab.planning.accuracy import AccuracyInvalidError, parse  # noqa: PLC0415 - as above

    if importlib.util.find_spec("torch") is None:
        fail("Measuring accuracy needs the engine: run `pip install 'trimtab[engine]'`.")
    command = [sys.executable, "-m", "trimtab_workers.fingerprint.accuracy", "--path", str(model)]
    command += ["--threads", str(threads), *(w for p in precision for w in ("--precision", p))]
    done = subprocess.run(  # noqa: S603 - our own module with the user's own options
        command, check=False, env={**os.environ, "TRIMTAB_TERMINATION_LOG": str(out.resolve())}
    )
    try:
        losses = parse(out.read_text())
    except (OSError, AccuracyInvalidError):
        # Its log has the sentence; what it wrote says that it failed, and is no document.
        out.unlink(missing_ok=True)
        raise typer.Exit(done.returncode or 1) from None
    for loss in losses:
        write(f"{loss.precision} {loss.described()}")


def read(
    format_: Format,
    folder: Path,
    *,
    tensor_parallel_size: int,
    model_config: Path | None,
    overhead: tuple[float, str],
    all_reduce: Path | None,
) -> Fingerprint:
    """Return the fingerprint of a profile on disk.

    Args:
        format_: Whose profile it is.
        folder: Where it lies.
        tensor_parallel_size: Degree whose tables are read.
        model_config: The full model's `config.json`, or None.
        overhead: µs per step beside the operators, and where that figure is from.
        all_reduce: CSV file of an all-reduce curve, or None.

    Raises:
        CommandError: A file is missing or wrong; names file, place and remedy.
    """
    from trimtab.cli import llmservingsim  # noqa: PLC0415 - yaml takes 30 ms
    from trimtab.planning.fingerprint import (  # noqa: PLC0415 - as above
        FingerprintInvalidError,
        FingerprintKey,
    )
    from trimtab.planning.onelayer import fingerprint_of  # noqa: PLC0415 - as above
    from trimtab.planning.step_model import fit  # noqa: PLC0415 - as above

    meta = llmservingsim.read_meta(folder)
    profile = llmservingsim.read_profile(folder, meta, tensor_parallel_size=tensor_parallel_size)
    architecture = _architecture(model_config)
    us, source = overhead
    flags = [f"imported={format_.value}", f"step-overhead-us={us:g}"]
    flags += [f"step-overhead-source={source}"] if source else []
    flags += ["eager"] if meta.eager else []
    flags += [f"without={name}" for name in profile.absent]
    key = FingerprintKey(
        architecture=_digest(architecture),
        product=meta.product,
        precision=meta.precision,
        kv_precision=meta.kv_precision,
        tensor_parallel_size=tensor_parallel_size,
        engine="vllm",
        engine_version=meta.engine_version,
        flags=tuple(sorted(flags)),
    )
    try:
        document = fingerprint_of(
            profile,
            key=key,
            step_overhead_us=us,
            all_reduce=_exchange(all_reduce, architecture, precision=meta.precision),
            taken=meta.taken,
        )
        fit(document, depth=_CHECKED_DEPTH)
    except FingerprintInvalidError as error:
        raise CommandError(f"{folder}: {error}") from error
    return document


def _architecture(path: Path | None) -> Architecture | None:
    import json  # noqa: PLC0415 - only where a configuration is given

    from trimtab.planning.architecture import Architecture  # noqa: PLC0415 - as above

    if path is None:
        return None
    try:
        return Architecture.from_hf_config(json.loads(path.read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise CommandError(
            f"{path}: {error} Give the config.json of the full model that was profiled."
        ) from error


def _digest(architecture: Architecture | None) -> str:
    from trimtab.planning.architecture import architecture_hash  # noqa: PLC0415 - as above

    return architecture_hash(architecture) if architecture else ""


def _exchange(
    path: Path | None, architecture: Architecture | None, *, precision: str
) -> AllReduce | None:
    from trimtab.cli import llmservingsim  # noqa: PLC0415 - as above
    from trimtab.planning.onelayer import AllReduce  # noqa: PLC0415 - as above
    from trimtab.planning.precision import value_bytes  # noqa: PLC0415 - as above

    if path is None:
        return None
    if architecture is None:
        raise CommandError(
            "--all-reduce needs --model-config: how many bytes a token exchanges depends on the "
            "model's hidden size."
        )
    wide = "bf16" if precision == "fp8" else precision
    return AllReduce(
        curve=llmservingsim.read_all_reduce(path),
        bytes_per_token=architecture.hidden_size * value_bytes(wide),
    )


def _summary(document: Fingerprint, out: Path) -> str:
    key = document.key
    return (
        f"wrote {out}: {key.product}, {key.engine} {key.engine_version}, {key.precision}, tensor "
        f"parallel {key.tensor_parallel_size}: {len(document.decode)} decode, "
        f"{len(document.prefill)} prefill and {len(document.mixed)} mixed points"
    )
