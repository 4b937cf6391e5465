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


def finite_part(
    what: str, got: Tensor, exact: Tensor, eager: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The three in float64 where `exact` is finite; elsewhere `got` must be the same NaN or inf."""
    assert got.shape == exact.shape, f"{what}: shape {tuple(got.shape)}"
    finite = torch.isfinite(exact)
    torch.testing.assert_close(
        got[~finite].double(), exact[~finite].double(), equal_nan=True, msg=f"{what}: NaN or inf"
    )
    assert torch.isfinite(eager[finite]).all(), f"{what}: the eager result is no yardstick"
    return got[finite].double(), exact[finite].double(), eager[finite].double()


def check_close(
    what: str, got: Tensor, exact: Tensor, eager: Tensor, *, terms: float = 0.0
) -> None:
    """`got` against float64 `exact`; `eager` is the eager result in the dtype of the inputs. `terms` is
    the size of the terms that a result is the difference of, where it may be far below them.
    """
    ours, right, theirs = finite_part(what, got, exact, eager)
    unit = torch.finfo(got.dtype).eps * max(_largest(right), terms)
    bound = 2.0 * _largest(theirs - right) + ULPS.get(got.dtype, OTHER_ULPS) * unit
    worst = _largest(ours - right)
    assert worst <= bound, f"{what}: off by {worst:.3g}, allowed {bound:.3g}"


def check_gradient(
    what: str, got: Tensor, exact: Tensor, eager: Tensor, *, bias_ulps: float = 2.0
) -> None:
    """Elementwise, then direction, relative length of the error, and bias."""
    check_close(what, got, exact, eager)
    ours, right, theirs = finite_part(what, got, exact, eager)
    if not right.numel() or not _largest(right):
        return
    eps = torch.finfo(got.dtype).eps * ULPS.get(got.dtype, OTHER_ULPS) / OTHER_ULPS
    # By the largest, as a product of gradients of 1e-9 is nothing to `cosine_similarity`.
    ours, right, theirs = (x / _largest(right) for x in (ours, right, theirs))
    cosine = torch.nn.functional.cosine_similarity(ours, right, dim=0)
    assert float(cosine) >= 1 - 8 * eps, f"{what}: cosine {float(cosine):.9f}"
    luck = 8 * ours.numel() ** -0.5  # of a few roundings, which do not average out
    relative = float((ours - right).norm() / right.norm())
    bound = (4 + luck) * eps + 2 * float((theirs - right).norm() / right.norm())
    assert relative <= bound, f"{what}: relative L2 error {relative:.3g}"
    if got.dtype == torch.float64:
        bias_ulps *= (
            4  # eager's own: -17 units of 1,001 classes on AVX2, by long double, ours below 1
        )
    bias = float((ours - right).mean() / right.abs().mean())
    assert abs(bias) <= (bias_ulps + luck) * eps, f"{what}: signed bias {bias:.3g}"
