"""vLLM as a side of a comparison (see `sides`); run by the peer's Python, so it imports nothing of ours.

Offline `LLM`, token ids in and out, greedy, no early end, no prefix cache, no detokenising: nothing
is measured but the engine.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from typing import Any


class Peer:
    """The commands; each returns what is answered."""

    def __init__(self) -> None:
        self._llm: Any = None

    def load(
        self, *, model: str, dtype: str, context: int, seqs: int, **extra: Any
    ) -> dict[str, Any]:
        """Load a model; `extra` are further arguments of `LLM`."""
        import vllm  # noqa: PLC0415 - half a minute

        settings = {
            "dtype": {"bf16": "bfloat16", "fp32": "float32"}[dtype],
            "skip_tokenizer_init": True,
            "max_model_len": context,
            "max_num_seqs": seqs,
            "enable_prefix_caching": False,
            "disable_log_stats": True,
            "seed": 0,
        }
        self._llm = vllm.LLM(model=model, **(settings | extra))
        config = self._llm.llm_engine.model_config
        return {"vocab": config.get_vocab_size(), "version": vllm.__version__}

    def answer(self, *, prompts: list[list[int]], output: int) -> dict[str, Any]:
        """Answer all prompts at once; seconds are from submission to the last token."""
        from vllm import SamplingParams  # noqa: PLC0415 - loaded by now

        params = SamplingParams(
            temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False
        )
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        began = time.perf_counter()
        done = self._llm.generate(given, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "answers": [list(one.outputs[0].token_ids) for one in done]}

    def replay(self, *, arrivals: list[dict[str, Any]], start_seconds: float) -> dict[str, Any]:
        """Replay arrivals from a moment of the machine's monotonic clock on (see `replay`)."""
        engine = self._llm.llm_engine
        vocab = engine.model_config.get_vocab_size()
        before = self._preemptions()
        answers: list[dict[str, Any]] = []
        while len(answers) < len(arrivals) or engine.has_unfinished_requests():
            while len(answers) < len(arrivals):
                due = arrivals[len(answers)]
                if start_seconds + due["seconds"] > time.perf_counter():
                    break
                _submit(engine, due, vocab, name=str(len(answers)))
                answers.append(
                    {
                        "model": due["model"],
                        "arrival_seconds": due["seconds"],
                        "token_seconds": [],
                        "tokens": [],
                    }
                )
            if engine.has_unfinished_requests():
                for output in engine.step():
                    answer = answers[int(output.request_id)]
                    new = list(output.outputs[0].token_ids)
                    answer["tokens"] += new
                    answer["token_seconds"] += [time.perf_counter() - start_seconds] * len(new)
            elif len(answers) < len(arrivals):
                pause = start_seconds + arrivals[len(answers)]["seconds"] - time.perf_counter()
                time.sleep(max(0.0, pause))
        counted = {"vllm:num_preemptions": self._preemptions() - before}
        return {"answers": answers, "counted": counted}

    def _preemptions(self) -> float:
        return sum(
            float(metric.value)
            for metric in self._llm.get_metrics()
            if metric.name == "vllm:num_preemptions"
        )


def _submit(engine: Any, due: dict[str, Any], vocab: int, *, name: str) -> None:
    from vllm import SamplingParams  # noqa: PLC0415 - loaded by now
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415 - as above

    rng = random.Random(due["seed"])  # noqa: S311 - token ids, not secrets
    prompt = [rng.randrange(vocab) for _ in range(due["prompt_tokens"])]
    params = SamplingParams(
        temperature=0.0,
        max_tokens=due["output_tokens"],
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    engine.add_request(name, {"prompt_token_ids": prompt}, params)


def main() -> int:
    """Serve commands until standard input ends."""
    side = Peer()
    with os.fdopen(int(os.environ["TRIMTAB_BENCH_REPLY_FD"]), "w", encoding="utf-8") as replies:
        for line in sys.stdin:
            request = json.loads(line)
            command = getattr(side, request.pop("do"))
            try:
                reply = command(**request)
            except Exception as error:  # noqa: BLE001 - told to the other end, which ends the run
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {error}"}
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
