"""Triton kernels of the CUDA path; importing a module here needs triton.

All of them load in the storage type, compute in float32 and round once, at the store. Unit tests
run every one under Triton's interpreter against torch and compile every one for an H100; that is
no run on a GPU (docs/benchmarks/gpu-not-run.md).
"""
