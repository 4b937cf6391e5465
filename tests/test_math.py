"""Accuracy of the elementary functions that kernels are built from, and of the half conversions.

Errors are in units in the last place of the float32 result, against float64, over samples of all
float bit patterns: every exponent, subnormals included. Each bound stands just above the measured
maximum (`pytest -s` prints the table), so a worse coefficient or a lost rounding step fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import fusedloss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bits = NDArray[np.uint16]

TINY = 2.0**-126  # the smallest normal float
CUT = 86.0  # Saturation<float>::kLogit
FLUSH = -86.98  # exp returns 0 below
LARGEST = float(np.finfo(np.float32).max)


def key(x: float) -> int:
    """The floats in order as consecutive integers, 0 for zero."""
    bits = int(np.float32(x).view(np.uint32))
    return bits if bits < 2**31 else 2**31 - bits


def sample(low: float, high: float, count: int = 2_000_000) -> Floats:
    """About `count` floats, evenly spread over all in [low, high], the ends and special places."""
    step = max(1, (key(high) - key(low)) // count)
    keys = np.arange(key(low), key(high) + 1, step, dtype=np.int64)
    near = np.array([key(high), *(key(s * v) for s in (-1, 1) for v in (TINY, 0.5, 1.0, CUT))])
    keys = np.concatenate([keys, [-1, 0, 1], near - 1, near, near + 1])
    keys = keys[(keys >= key(low)) & (keys <= key(high))]
    return np.where(keys < 0, 2**31 - keys, keys).astype(np.uint32).view(np.float32)


def ulps(got: Floats, exact: Doubles) -> Doubles:
    """|got - exact| in the spacing of normal floats at `exact`."""
    exponent = np.floor(np.log2(np.maximum(np.abs(exact), TINY)))
    return np.abs(got.astype(np.float64) - exact) / 2.0 ** (exponent - 23)


def exact_sigmoid(x: Doubles) -> Doubles:
    """Without the cancellation of 1 - 1 / (1 + e^x)."""
    tail = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, tail) / (1.0 + tail)


def exact_softplus(x: Doubles) -> Doubles:
    """Log of 1 + e^x."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


@dataclass(frozen=True)
class Function:
    """A function, a stretch of its domain, and the error allowed there."""

    name: str
    low: float
    high: float
    exact: Callable[[Doubles], Doubles]
    bound: float

    def __str__(self) -> str:
        return f"{self.name}[{self.low:g},{self.high:g}]"


# The whole domain, then the stretch where the error is largest, more densely.
FUNCTIONS = [
    Function("exp", -86.97, 88.72, np.exp, 1.35),
    Function("exp", 32.0, 88.72, np.exp, 1.35),
    Function("exp_nonpositive", -1.0, 0.0, np.exp, 2.6),
    Function("exp_nonpositive", -8.0, -1.0, np.exp, 7.8),
    Function("exp_nonpositive", -86.97, -8.0, np.exp, 65.0),
    Function("log", 1e-45, LARGEST, np.log, 0.9),
    Function("log", 0.5, 2.0, np.log, 0.9),
    Function("log1p_unit", 0.0, 1.0, np.log1p, 2.2),
    Function("log1p_unit", 0.5, 1.0, np.log1p, 2.2),
    Function("sigmoid", -CUT, 0.0, exact_sigmoid, 3.1),
    Function("sigmoid", -16.0, -0.5, exact_sigmoid, 3.1),
    Function("sigmoid", 0.0, LARGEST, exact_sigmoid, 1.6),
    Function("sigmoid", 0.5, 20.0, exact_sigmoid, 1.6),
    Function("softplus", -CUT, 0.0, exact_softplus, 3.1),
    Function("softplus", -4.0, -0.01, exact_softplus, 3.1),
    Function("softplus", 0.0, LARGEST, exact_softplus, 3.1),
    Function("softplus", 0.01, 4.0, exact_softplus, 3.1),
]


def report(what: str, count: int, errors: Doubles, x: Floats, bound: float) -> None:
    """Print one row of the table; fail where the bound is exceeded."""
    worst = int(np.argmax(errors))
    line = f"{what:<34} {count:>9} values  {errors[worst]:8.3f} ulp at {x[worst]:.9g}"
    print(f"\n{line}, mean {errors.mean():.3f}", end="")
    assert errors[worst] <= bound, f"{line}, allowed {bound}"


@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_error_in_ulp(function: Function, emulator: ModuleType) -> None:
    x = sample(function.low, function.high)
    exact = function.exact(x.astype(np.float64))
    got = getattr(emulator, function.name)(x)
    report(str(function), x.size, ulps(got, exact), x, function.bound)


# (exponent, bound of the value, bound of the derivative). The small integers are products. The
# others are e^(gamma log q), whose relative error grows with |gamma log q|: a rounding of that
# product is up to 64 ulp of the result at the far end, near the smallest float.
POWERS = [
    (0.0, 0.0, 0.0),
    (1.0, 0.0, 0.0),
    (2.0, 0.51, 0.0),
    (3.0, 1.4, 1.4),
    (0.1, 15.0, 16.0),
    (0.3, 38.0, 40.0),
    (0.5, 36.0, 38.0),
    (1.5, 125.0, 130.0),
    (2.5, 150.0, 155.0),
    (4.0, 75.0, 80.0),
    (5.0, 150.0, 155.0),
    (10.0, 150.0, 155.0),
]


@pytest.mark.parametrize(("gamma", "value_bound", "derivative_bound"), POWERS)
def test_power_error_in_ulp(
    gamma: float, value_bound: float, derivative_bound: float, emulator: ModuleType
) -> None:
    q = sample(TINY, 1.0)
    g = float(np.float32(gamma))
    wide = q.astype(np.float64)
    with np.errstate(under="ignore", over="ignore"):
        value, derivative = wide**g, g * wide ** (g - 1)
    kept = value > 1.001 * np.exp(FLUSH)  # below, e^x is 0
    got = emulator.power(q, gamma)
    report(f"power({gamma:g})", int(kept.sum()), ulps(got, value)[kept], q[kept], value_bound)
    got = emulator.power_derivative(q, gamma)
    kept &= (derivative == 0) | (derivative > TINY)
    report(
        f"power_derivative({gamma:g})",
        int(kept.sum()),
        ulps(got, derivative)[kept],
        q[kept],
        derivative_bound,
    )


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.1, 0.5, 0.99, 1.0, 1.5, 2.0, 2.5, 3.0, 7.0, 100.0])
def test_power_is_finite_down_to_the_smallest_normal_number(
    gamma: float, emulator: ModuleType
) -> None:
    q = sample(TINY, 1.0, 200_000)
    value, derivative = emulator.power(q, gamma), emulator.power_derivative(q, gamma)
    assert np.isfinite(value).all()
    assert np.isfinite(derivative).all()
    assert (value >= 0).all()
    assert (value <= 1.0).all()
    assert value[q == 1.0].tolist() == [1.0] * int((q == 1.0).sum())
    assert (derivative[q == 1.0] == np.float32(gamma)).all()


def test_exp_flushes_to_zero_below_the_documented_bound(emulator: ModuleType) -> None:
    x = sample(-LARGEST, FLUSH)
    x = x[x < np.float32(FLUSH)]
    assert x.size > 10_000
    assert np.array_equal(emulator.exp(x), np.zeros_like(x))
    first = np.array([FLUSH], np.float32)
    kept = emulator.exp(first)
    assert kept[0] > 1.65e-38
    assert ulps(kept, np.exp(first.astype(np.float64)))[0] < 2.0
    # Nothing between 0 and the smallest result: no subnormal comes out.
    assert kept[0] >= TINY


def test_exp_overflows_where_the_true_value_does(emulator: ModuleType) -> None:
    x = sample(88.0, 90.0)
    with np.errstate(over="ignore"):
        exact = np.exp(x.astype(np.float64)).astype(np.float32)
    assert np.array_equal(np.isinf(emulator.exp(x)), np.isinf(exact))
    assert np.isinf(emulator.exp(sample(89.0, LARGEST, 50_000))).all()


NAN, INF = float("nan"), float("inf")
SPECIALS: list[tuple[str, float, float]] = [
    ("exp", NAN, NAN),
    ("exp", INF, INF),
    ("exp", -INF, 0.0),
    ("exp", 0.0, 1.0),
    ("exp", -0.0, 1.0),
    ("exp", 1e-45, 1.0),
    ("exp_nonpositive", NAN, NAN),
    ("exp_nonpositive", -INF, 0.0),
    ("exp_nonpositive", -87.0, 0.0),
    ("exp_nonpositive", 0.0, 1.0),
    ("exp_nonpositive", -0.0, 1.0),
    ("log", NAN, NAN),
    ("log", INF, INF),
    ("log", -INF, NAN),
    ("log", 0.0, -INF),
    ("log", -0.0, -INF),
    ("log", -1e-45, NAN),
    ("log", -1.0, NAN),
    ("log", 1.0, 0.0),
    ("log1p_unit", NAN, NAN),
    ("log1p_unit", 0.0, 0.0),
    ("log1p_unit", 1e-45, 1e-45),
    ("sigmoid", NAN, NAN),
    ("sigmoid", INF, 1.0),
    ("sigmoid", 0.0, 0.5),
    ("sigmoid", -0.0, 0.5),
    ("softplus", NAN, NAN),
    ("softplus", INF, INF),
    ("softplus", LARGEST, LARGEST),
]


@pytest.mark.parametrize(("name", "x", "expected"), SPECIALS)
def test_special_values(name: str, x: float, expected: float, emulator: ModuleType) -> None:
    got = getattr(emulator, name)(np.array([x], np.float32))
    assert np.array_equal(got, np.array([expected], np.float32), equal_nan=True)


@pytest.mark.parametrize("name", ["sigmoid", "softplus"])
def test_saturated_tail_stays_at_its_value_at_the_cut(name: str, emulator: ModuleType) -> None:
    # Below -86 the tail is held: never 0, so that ratios of tails stay finite.
    function = getattr(emulator, name)
    x = np.append(sample(-LARGEST, -CUT, 50_000), np.float32(-np.inf))
    assert np.unique(function(x)).tolist() == function(np.array([-CUT], np.float32)).tolist()
    assert 0 < function(x)[0] < 4.5e-38


def test_functions_are_monotonic_where_it_matters(emulator: ModuleType) -> None:
    # To two units in the last place: a kink between two stretches of a polynomial would show.
    for name in ("exp", "sigmoid", "softplus"):
        x = np.sort(sample(-80.0, 80.0))
        y = getattr(emulator, name)(x).astype(np.float64)
        assert (np.diff(y) >= -4 * 2.0**-23 * y[1:]).all(), name


def library(x: Floats, **options: Any) -> tuple[Floats, Floats]:
    """(loss, gradient) of each logit against the target 0, from the library at its CPU level."""
    logits = torch.from_numpy(x.copy()).requires_grad_()
    with fusedloss.backend("native"), fusedloss.gradient_schedule("forward"):
        loss = fusedloss.sigmoid_focal_loss(
            logits, torch.zeros_like(logits), alpha=None, reduction="none", **options
        )
        loss.backward(torch.ones_like(loss))
    assert logits.grad is not None
    return loss.detach().numpy(), logits.grad.numpy()


def test_error_in_the_library_at_the_cpu_level_in_use() -> None:
    # The test module is compiled for the baseline; the library's vector versions contract to FMA.
    # gamma = 0 against the target 0 is softplus, and its gradient the sigmoid.
    for low, high, bounds in ((-CUT, 0.0, (3.1, 3.1)), (0.0, LARGEST, (3.1, 1.6))):
        x = sample(low, high)
        loss, grad = library(x, gamma=0.0)
        wide = x.astype(np.float64)
        where = f"[{low:g},{high:g}]"
        report(f"library softplus {where}", x.size, ulps(loss, exact_softplus(wide)), x, bounds[0])
        report(f"library sigmoid {where}", x.size, ulps(grad, exact_sigmoid(wide)), x, bounds[1])


@pytest.mark.parametrize(("gamma", "bound"), [(2.0, 9.0), (0.5, 9.0), (1.5, 32.0)])
def test_error_of_the_loss_itself_in_ulp(gamma: float, bound: float) -> None:
    x = sample(-20.0, LARGEST)
    loss, _ = library(x, gamma=gamma)
    wide = x.astype(np.float64)
    exact = exact_sigmoid(wide) ** gamma * exact_softplus(wide)
    report(f"library focal loss, gamma {gamma:g}", x.size, ulps(loss, exact), x, bound)


ALL_BITS: Bits = np.arange(65_536, dtype=np.uint16)


def float_samples() -> Floats:
    """About four million floats over all bit patterns, and denser ones where halves live."""
    generator = np.random.default_rng(7)
    bits = np.arange(0, 2**32, 2053, dtype=np.uint64).astype(np.uint32)
    spread = generator.standard_normal(1_000_000) * 2.0 ** generator.uniform(-30, 20, 1_000_000)
    specials = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0x7FC00000, 0x7F800000], np.uint32)
    return np.concatenate(
        [bits.view(np.float32), spread.astype(np.float32), specials.view(np.float32)]
    )


def half_value(bits: Bits, kind: str) -> Doubles:
    """The value of each pattern, from the definition of the format: exact in float64."""
    fraction_bits, bias = (10, 15) if kind == "half" else (7, 127)
    sign = np.where(bits & 0x8000, -1.0, 1.0)
    exponent = ((bits & 0x7FFF) >> fraction_bits).astype(np.int64)
    fraction = (bits & ((1 << fraction_bits) - 1)).astype(np.float64)
    top = (1 << (15 - fraction_bits)) - 1
    subnormal = fraction * 2.0 ** (1 - bias - fraction_bits)
    power = 2.0 ** (np.minimum(exponent, top - 1) - bias).astype(np.float64)
    normal = (1.0 + fraction / 2.0**fraction_bits) * power
    special = np.where(fraction == 0, np.inf, np.nan)
    return sign * np.where(exponent == 0, subnormal, np.where(exponent == top, special, normal))


KINDS = [("half", torch.float16), ("bfloat16", torch.bfloat16)]


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_every_half_to_float_and_back(kind: str, dtype: torch.dtype, emulator: ModuleType) -> None:
    got = getattr(emulator, f"{kind}_to_float")(ALL_BITS)
    exact = half_value(ALL_BITS, kind)
    assert np.array_equal(got, exact.astype(np.float32), equal_nan=True)
    assert np.array_equal(np.signbit(got), (ALL_BITS & 0x8000) != 0)
    theirs = torch.from_numpy(ALL_BITS.view(np.int16)).view(dtype).float().numpy()
    assert np.array_equal(got, theirs, equal_nan=True)

    back = getattr(emulator, f"float_to_{kind}")(got)
    nan = np.isnan(got)
    assert np.array_equal(back[~nan], ALL_BITS[~nan])
    assert np.isnan(half_value(back[nan], kind)).all()
    assert np.array_equal(back[nan] & 0x8000, ALL_BITS[nan] & 0x8000)


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_float_to_half_rounds_as_torch_does(
    kind: str, dtype: torch.dtype, emulator: ModuleType
) -> None:
    x = float_samples()
    theirs = torch.from_numpy(x).to(dtype).view(torch.int16).numpy().view(np.uint16)
    ours = getattr(emulator, f"float_to_{kind}")(x)
    nan = np.isnan(x)
    assert x.size > 3_000_000
    assert np.array_equal(ours[~nan], theirs[~nan])
    assert np.isnan(half_value(ours[nan], kind)).all()
    if kind == "half":
        with np.errstate(over="ignore", invalid="ignore"):
            numpys = x.astype(np.float16).view(np.uint16)
        assert np.array_equal(ours[~nan], numpys[~nan])


@pytest.mark.parametrize(("kind", "top"), [("half", 0x7C00), ("bfloat16", 0x7F80)])
def test_ties_go_to_even_and_neighbours_to_the_nearer(
    kind: str, top: int, emulator: ModuleType
) -> None:
    # Between every two neighbouring magnitudes: the midpoint, and one float on either side of it.
    lower = np.arange(0, top, dtype=np.uint16)
    upper = lower + np.uint16(1)
    low, high = half_value(lower, kind), half_value(upper, kind)
    high[-1] = 2 * low[-1] - low[-2]  # overflow starts half a step above the largest number
    middle = ((low + high) / 2).astype(np.float32)
    assert np.array_equal(middle.astype(np.float64), (low + high) / 2)
    convert = getattr(emulator, f"float_to_{kind}")
    even = np.where(lower % 2 == 0, lower, upper)
    for sign, flag in ((1.0, 0), (-1.0, 0x8000)):
        factor = np.float32(sign)
        assert np.array_equal(convert(factor * middle), even | flag)
        below = np.nextafter(middle, np.float32(0))
        above = np.nextafter(middle, np.float32(np.inf))
        assert np.array_equal(convert(factor * below), lower | flag)
        assert np.array_equal(convert(factor * above), upper | flag)
