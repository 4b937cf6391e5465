"""The losses: what an engine's kernels do with one row or element."""
