"""The optional C kernels of the CPU path; everything else works without them."""
