"""The region losses' options, and what they mean to the operators.

Every loss of the family is a ratio of sums over a region, of which the kernels know only the factors:

    r = (gain I + s0) / (by_overlap I + by_mass P + by_truth T + s1)

with I = sum p t, P = sum p, T = sum t (of squares where asked for); see kernels/loss/overlap.h.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from ._ops import REDUCTIONS, as_class_weight

# No label equals it, and no number that a dense target holds.
NOTHING_IGNORED = -(2**63)
MODES = ("multiclass", "multilabel", "binary")
# In the order of the kernels' enum GeneralizedWeighting, of which 0 is a ratio for each class.
WEIGHTINGS = ("uniform", "simple", "square")
# What a second loss is called, by the operators' number for it.
JOINED = (None, "cross_entropy", "focal")


class SoftmaxRegionArguments(NamedTuple):
    """The numbers of the operators over a softmax, in forward's order."""

    gain: float
    by_overlap: float
    by_mass: float
    by_truth: float
    smooth_numerator: float
    smooth_denominator: float
    gamma: float
    log: bool
    weighting: int
    skip_absent: bool
    first_class: int
    factor: float
    joined: int
    joined_factor: float
    label_smoothing: float
    smooth_others: bool
    focal_gamma: float
    alpha_value: float
    squared: bool
    batch: bool
    ignore_index: int
    reduction: int

    def backward(self) -> tuple[Any, ...]:
        """Those that the backward operator takes."""
        return (
            self.weighting > 0,
            self.first_class,
            self.joined,
            self.label_smoothing,
            self.smooth_others,
            self.focal_gamma,
            self.alpha_value,
            self.squared,
            self.batch,
            self.ignore_index,
        )


class ElementRegionArguments(NamedTuple):
    """The numbers of the operators over elements, in forward's order."""

    gain: float
    by_overlap: float
    by_mass: float
    by_truth: float
    smooth_numerator: float
    smooth_denominator: float
    gamma: float
    log: bool
    weighting: int
    skip_absent: bool
    first_class: int
    factor: float
    activation: int  # 0: the input is probabilities, 1: sigmoid
    joined: int
    joined_factor: float
    label_smoothing: float
    focal_gamma: float
    alpha_value: float
    squared: bool
    batch: bool
    ignore_index: int
    reduction: int

    def backward(self) -> tuple[Any, ...]:
        """Those that the backward operator takes."""
        return (
            self.weighting > 0,
            self.first_class,
            self.activation,
            self.joined,
            self.label_smoothing,
            self.focal_gamma,
            self.alpha_value,
            self.squared,
            self.batch,
            self.ignore_index,
        )


RegionArguments = SoftmaxRegionArguments | ElementRegionArguments


class RegionCall(NamedTuple):
    """One call of a forward operator: its tensors and its numbers."""

    input: Tensor  # [N, C, ...]
    target: Tensor  # [N, ...] or [N, C, ...]
    region_weight: Tensor | None  # [C]
    side: Tensor | None  # [C], cross entropy's class weights or focal's alpha
    arguments: RegionArguments


@dataclass(frozen=True)
class RegionOptions:
    """The options of any loss of the family, under names that no two of them share."""

    ratio: str = "dice"  # dice | jaccard | tversky
    mode: str = "multiclass"
    from_logits: bool = True
    smooth: float | tuple[float, float] = 1e-5
    squared: bool = False
    batch: bool = False
    include_background: bool = True
    ignore_index: int | None = None
    weight: Tensor | None = None
    absent: str = "keep"
    log: bool = False
    reduction: str = "mean"
    # Tversky's.
    false_positives: float = 0.5
    false_negatives: float = 0.5
    exponent: float = 1.0
    # Generalized dice's; None: a ratio for each class.
    weighting: str | None = None
    # What is joined.
    joined: str | None = None
    factor: float = 1.0
    joined_factor: float = 1.0
    class_weight: Tensor | None = None
    alpha: float | Tensor | None = None
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0
    smoothing: str = "uniform"

    @property
    def softmax(self) -> bool:
        """Whether classes share a softmax; else elements stand alone."""
        return self.mode == "multiclass" and self.from_logits

    @property
    def smooths(self) -> tuple[float, float]:
        """What is added to numerator and denominator."""
        s = self.smooth
        return (float(s[0]), float(s[1])) if isinstance(s, tuple) else (float(s), float(s))


# (fixed options, {public name: ours}) of each public function.
FUNCTIONS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "dice_loss": ({}, {}),
    "jaccard_loss": ({"ratio": "jaccard"}, {}),
    "tversky_loss": (
        {"ratio": "tversky"},
        {"alpha": "false_positives", "beta": "false_negatives", "gamma": "exponent"},
    ),
    "generalized_dice_loss": ({"weighting": "square"}, {}),
    "dice_cross_entropy_loss": (
        {"joined": "cross_entropy"},
        {"dice_weight": "factor", "ce_weight": "joined_factor"},
    ),
    "dice_focal_loss": (
        {"joined": "focal", "focal_gamma": 2.0},
        {"dice_weight": "factor", "focal_weight": "joined_factor", "gamma": "focal_gamma"},
    ),
}


def region_options(function: str, options: dict[str, Any]) -> RegionOptions:
    """A public function's keyword arguments; those that are missing have its defaults."""
    fixed, names = FUNCTIONS[function]
    return replace(
        RegionOptions(**fixed), **{names.get(name, name): value for name, value in options.items()}
    )


def _factors(options: RegionOptions) -> tuple[float, float, float, float]:
    """gain, by_overlap, by_mass, by_truth."""
    if options.ratio == "jaccard":  # I / (P + T - I)
        return 1.0, -1.0, 1.0, 1.0
    if options.ratio == "tversky":  # I / (I + a (P - I) + b (T - I))
        a, b = float(options.false_positives), float(options.false_negatives)
        return 1.0, 1.0 - a - b, a, b
    return 2.0, 0.0, 1.0, 1.0  # 2 I / (P + T)


def has_channel(input: Tensor) -> bool:
    """Whether a binary input has a dimension of classes, which it may lack.

    One whose second dimension is 1 has it: whichever way it is read, the regions are the same.
    """
    return input.dim() > 1 and input.size(1) == 1


def with_channels(input: Tensor, target: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Both with a batch dimension, and where elements count with one of classes."""
    if mode == "binary":
        input = input if has_channel(input) else input.unsqueeze(1)
        return input, target if target.dim() == input.dim() else target.unsqueeze(1)
    if input.dim() == 1:
        return input.unsqueeze(0), target.unsqueeze(0)
    return input, target


def region_call(input: Tensor, target: Tensor, options: RegionOptions) -> RegionCall:
    """What checked arguments are to the operators."""
    input, target = with_channels(input, target, options.mode)
    soft_rows = options.mode == "multiclass" and target.dim() == input.dim()
    ignored = options.ignore_index
    # Nothing at all has loss 0, whatever is added to numerator and denominator.
    smooths = options.smooths if input.numel() else (1.0, 1.0)
    numbers: dict[str, Any] = {
        **dict(zip(SoftmaxRegionArguments._fields, (*_factors(options), *smooths), strict=False)),
        "gamma": float(options.exponent),
        "log": options.log,
        "weighting": 0 if options.weighting is None else 1 + WEIGHTINGS.index(options.weighting),
        "skip_absent": options.absent == "skip",
        "first_class": 0 if options.include_background else 1,
        "factor": float(options.factor),
        "joined": JOINED.index(options.joined),
        "joined_factor": float(options.joined_factor),
        "label_smoothing": float(options.label_smoothing),
        "focal_gamma": float(options.focal_gamma),
        "squared": options.squared,
        "batch": options.batch,
        "ignore_index": NOTHING_IGNORED if ignored is None or soft_rows else ignored,
        "reduction": REDUCTIONS[options.reduction],
    }
    side, alpha = options.class_weight, options.alpha
    if isinstance(alpha, Tensor):
        side, alpha = alpha.expand(input.size(1)), None
    arguments: RegionArguments
    if options.softmax:
        arguments = SoftmaxRegionArguments(
            **numbers,
            smooth_others=options.smoothing == "others",
            alpha_value=1.0 if alpha is None else float(alpha),
        )
    else:
        arguments = ElementRegionArguments(
            **numbers,
            activation=int(options.from_logits),
            alpha_value=-1.0 if alpha is None else float(alpha),
        )
    weight = as_class_weight(options.weight, input)
    return RegionCall(input, target, weight, as_class_weight(side, input), arguments)
