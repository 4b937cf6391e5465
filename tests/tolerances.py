"""How close is close enough, measured rather than guessed.

A kernel may err at most twice as much against the float64 reference as the eager reference does when
it runs in the same dtype, plus a few units in the last place. Beside the elementwise bound, the
gradient is compared as a whole: a small term that is missing shows in its direction, its length or
its mean although no single element is far off.
"""

from __future__ import annotations

import torch
from torch import Tensor

# In float64 the eager result is the reference itself, so its own rounding has to be allowed for.
ULPS = {torch.float64: 64}
OTHER_ULPS = 8


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def check_close(what: str, got: Tensor, exact: Tensor, eager: Tensor) -> None:
    """`got` against float64 `exact`; `eager` is the eager result in the dtype of the inputs."""
    assert got.shape == exact.shape, f"{what}: shape {tuple(got.shape)}"
    ours, theirs = got.double(), eager.double()
    unit = torch.finfo(got.dtype).eps * _largest(exact)
    bound = 2.0 * _largest(theirs - exact) + ULPS.get(got.dtype, OTHER_ULPS) * unit
    worst = _largest(ours - exact)
    assert worst <= bound, f"{what}: off by {worst:.3g}, allowed {bound:.3g}"


def check_gradient(what: str, got: Tensor, exact: Tensor, eager: Tensor) -> None:
    """Elementwise, then direction, relative length of the error, and bias."""
    check_close(what, got, exact, eager)
    if not got.numel() or not _largest(exact):
        return
    ours = got.double()
    eps = torch.finfo(got.dtype).eps * ULPS.get(got.dtype, OTHER_ULPS) / OTHER_ULPS
    cosine = torch.nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), dim=0)
    assert float(cosine) >= 1 - 8 * eps, f"{what}: cosine {float(cosine):.9f}"
    relative = float((ours - exact).norm() / exact.norm())
    assert relative <= 4 * eps + 2 * float((eager.double() - exact).norm() / exact.norm()), (
        f"{what}: relative L2 error {relative:.3g}"
    )
    bias = float((ours - exact).mean() / exact.abs().mean())
    assert abs(bias) <= 2 * eps, f"{what}: signed bias {bias:.3g}"
