"""Benchmarks of the engine: `trimtab bench NAME`, or `python -m trimtab_workers.engine.bench NAME`.

Each name is a module with its own options. The rules (engine.md §9): one binary and one budget,
only what is compared differs; sides alternate within a run; medians with their range; what loses is
printed like what wins.
"""
