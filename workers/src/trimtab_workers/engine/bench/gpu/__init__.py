"""Benchmarks of one NVIDIA GPU: each one command under 10 minutes, random weights, no network.

None of them has run (docs/benchmarks/gpu-not-run.md). What they compute from what they measure is
pure and tested; so is, on CPU tensors and interpreted kernels, that streamed layers give the same
logits. Where no GPU answers they refuse.
"""
