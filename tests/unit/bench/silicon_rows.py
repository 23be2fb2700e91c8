"""Builder of files of measured rows, and a catalogue that knows the world up to a distortion."""

import gzip
import json

from trimtab.bench.closed_loop import closed_loop
from trimtab.cli.catalogue import Answers, Estimated
from trimtab.planning.fingerprint import dump, parse
from trimtab.planning.step_model import fit
from trimtab_workers.fingerprint.catalogue import Catalogue, Query

CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
}
COLUMNS = (
    "model_path",
    "system",
    "backend",
    "backend_version",
    "precision",
    "mode",
    "isl",
    "osl",
    "gemm_quant_mode",
    "batch_size",
    "tp_size",
    "silicon_ttft_ms",
    "silicon_tpot_ms",
)
SIZES = (1, 2, 4, 8)
LEVELS = (8, 16, 32, 64, 128)
LENGTHS = ((1024, 128), (2048, 256), (1024, 512))


class Machine:
    """Layers of known times: reading weights shrinks with the group, exchanging grows with it."""

    def __init__(self, folder, system, backend, *, tp_size, **_):
        from pathlib import Path

        self.depth = json.loads((Path(folder) / "config.json").read_text())["num_hidden_layers"]
        self.ranks = tp_size

    def layer_ms(self, tokens, read):
        exchange = 0.0 if self.ranks == 1 else 0.03
        return (0.25 + 6e-4 * tokens + 3e-7 * read) / self.ranks + exchange

    def predict_decode_latency(self, bs, isl, osl=2):
        return 0.8 + self.depth * self.layer_ms(bs, bs * isl)

    def predict_prefill_latency(self, bs, isl, prefix=0):
        chunk = isl - prefix
        return 0.8 + self.depth * self.layer_ms(chunk, chunk * (prefix + chunk / 2) / 2)


CATALOGUE = Catalogue(compile_=Machine, version_of=lambda *_: "1.3.0", package_version="0.12.0")


def answer(query):
    """Return what the catalogue says to one query of the benchmark."""
    if query.tensor_parallel_size not in SIZES:
        return f"The catalogue has no tensor parallel {query.tensor_parallel_size}."
    asked = Query(
        model=query.model,
        config=CONFIG,
        system=query.system,
        backend=query.backend,
        precision=query.precision,
        kv_precision=query.kv_precision,
        tensor_parallel_size=query.tensor_parallel_size,
    )
    from trimtab.planning.architecture import Architecture

    return Estimated(
        fingerprint=parse(dump(CATALOGUE.fingerprint(asked, CONFIG))),
        architecture=Architecture.from_hf_config(CONFIG),
        depth=CONFIG["num_hidden_layers"],
    )


def ask(queries, *, python=None):
    return Answers(package="0.12.0", results=tuple(answer(query) for query in queries))


def models():
    """Return the step models that the benchmark will have, by size."""
    from trimtab.cli.catalogue import CatalogueQuery

    found = {}
    for size in SIZES:
        query = CatalogueQuery(
            model="m",
            system="h100_sxm",
            backend="trtllm",
            precision="fp8",
            kv_precision="fp8",
            tensor_parallel_size=size,
        )
        found[size] = fit(answer(query).fingerprint, depth=CONFIG["num_hidden_layers"])
    return found


def a_row(**fields):
    base = dict.fromkeys(COLUMNS, "") | {
        "model_path": "example/model",
        "system": "h100_sxm",
        "backend": "trtllm",
        "backend_version": "1.0.0",
        "precision": "fp8",
        "mode": "agg",
        "isl": 1024,
        "osl": 256,
        "batch_size": 8,
        "tp_size": 1,
        "silicon_ttft_ms": 100.0,
        "silicon_tpot_ms": 10.0,
    }
    return base | fields


def a_world(*, distortion=lambda size, level: 1.0, sizes=SIZES, **fields):
    """Return rows whose times are the catalogue's times ``distortion``."""
    known = models()
    rows = []
    for size in sizes:
        for level in LEVELS:
            for prompt, output in LENGTHS:
                times = closed_loop(known[size], prompt=prompt, output=output, concurrency=level)
                by = distortion(size, level)
                rows.append(
                    a_row(
                        isl=prompt,
                        osl=output,
                        batch_size=level,
                        tp_size=size,
                        silicon_ttft_ms=times.ttft_ms * by,
                        silicon_tpot_ms=times.tpot_ms * by,
                        **fields,
                    )
                )
    return rows


def write(path, rows):
    lines = [",".join(COLUMNS), *(",".join(str(row[c]) for c in COLUMNS) for row in rows)]
    text = "\n".join(lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path
