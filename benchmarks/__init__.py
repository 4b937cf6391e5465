"""Benchmarks of fusedloss: speed and memory beside eager, `torch.compile` and known packages.

Run with `python -m fusedloss bench`; `cases.py` holds the workloads, one row each.
"""
