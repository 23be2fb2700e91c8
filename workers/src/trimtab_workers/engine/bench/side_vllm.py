"""vLLM as a side of a comparison (see `sides`); run by the peer's Python, so it imports nothing of ours.

Offline `LLM`, token ids in and out, greedy, no early end, no prefix cache, no detokenising: nothing
is measured but the engine.
"""

from __future__ import annotations

import json
import os
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

        self._llm = vllm.LLM(
            model=model,
            dtype={"bf16": "bfloat16", "fp32": "float32"}[dtype],
            skip_tokenizer_init=True,
            max_model_len=context,
            max_num_seqs=seqs,
            enable_prefix_caching=False,
            disable_log_stats=True,
            seed=0,
            **extra,
        )
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
