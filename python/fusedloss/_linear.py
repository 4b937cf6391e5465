"""A linear layer and the loss of its logits, in chunks of rows: the logits never exist whole.

A chunk's logits are made in one buffer, turned into their gradient where they stand, and multiplied
into the gradients of features and weight while they are there: three matrix products for each chunk
and no product is done twice. Chunks of classes would need a fourth, since a row's softmax is known
only when all of its classes have been seen.

Normalisation: x_ij = u_i . w_j / |w_j| with u_i = f_i / |f_i|. A chunk of features is small and is
normalised as a copy; the lengths of the weight are factors of the columns of the logits, so that
no normalised weight exists. With G = dL/dx and A = (G / |w|)^T u, both products of which are needed
anyhow, dL/dw_j = A_j - (A_j . v_j) v_j, where v_j = w_j / |w_j|; likewise for the features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _checks, reference
from ._autograd import CrossEntropyArguments, MarginArguments, finish_gradient
from ._ops import REDUCTION_NAMES, REDUCTIONS, accumulator_dtype, ops
from .reference.linear import NORM_FLOOR

# A chunk takes an eighth of what all rows would, within these bytes, but has no fewer rows than are worth
# reading the weight and its gradient for: the products of 64 rows take a fifth longer than those of 128,
# and these a tenth longer than those of 512 (512 features, 100,000 classes, float32, one core).
SHARE = 8
CHUNK_BYTES = (16 * 2**20, 64 * 2**20)
CHUNK_ROWS = 128
# Elements of a block of the weight's gradient that is finished at once.
BLOCK_ELEMENTS = 2**20

LinearArguments = CrossEntropyArguments | MarginArguments
# Losses [n] of logits [n, C]; with True, the logits are overwritten with their gradient.
ChunkLoss = Callable[[Tensor, Tensor, bool], Tensor]


class Head(NamedTuple):
    """How logits come from features and weight."""

    normalize_features: bool
    normalize_weight: bool
    sub_centers: int


PLAIN = Head(False, False, 1)


def chunk_rows(features: Tensor, weight: Tensor, head: Head, asked: int) -> int:
    """Rows of a chunk: `asked`, or where that is 0 chunks of equal size by the constants above."""
    count = features.size(0)
    if asked > 0:
        return min(asked, count)
    columns = weight.size(0) // head.sub_centers
    # Of each row: its logits, twice and two bytes with sub-centers, and three copies of its features.
    row = features.element_size() * (columns + 3 * features.size(1))
    if head.sub_centers > 1:
        row += (features.element_size() + 2) * columns
    low, high = CHUNK_BYTES
    most = max(CHUNK_ROWS, min(max(count * row // SHARE, low), high) // row)
    chunks = max(1, -(-count // most))
    return -(-count // chunks)


def _row_blocks(matrix: Tensor) -> Iterator[slice]:
    rows = max(1, BLOCK_ELEMENTS // max(1, matrix.size(1)))
    for start in range(0, matrix.size(0), rows):
        yield slice(start, start + rows)


def _norms(x: Tensor) -> Tensor:
    """Lengths [n, 1] of rows."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return norms


def _through_norm(grad: Tensor, unit: Tensor, norm: Tensor) -> Tensor:
    """The gradient of rows x from `grad`, that of ``unit = x / max(norm, floor)``."""
    along = (grad * unit).sum(1, keepdim=True).masked_fill_(norm < NORM_FLOOR, 0)
    return (grad - unit * along) / norm.clamp(min=NORM_FLOOR)


class _Weight:
    """The weight as `sub_centers` matrices [C, D], their inverse lengths, and their gradients."""

    def __init__(self, weight: Tensor, head: Head, with_grad: bool) -> None:
        self.weight = weight
        shape = (-1, head.sub_centers)
        self.centers = weight.unflatten(0, shape).unbind(1)
        self.grad = torch.empty_like(weight) if with_grad else weight.new_empty(0)
        self.grads = self.grad.unflatten(0, shape).unbind(1) if with_grad else ()
        self.norm = self.columns = None
        if head.normalize_weight:
            dtype = accumulator_dtype(weight.dtype)
            self.norm = torch.empty(weight.size(0), 1, dtype=dtype, device=weight.device)
            for block in _row_blocks(weight):
                self.norm[block] = _norms(weight[block].to(dtype))
            inverse = self.norm.clamp(min=NORM_FLOOR).reciprocal_()
            # More than float16 holds: a center as short as that has no direction, and no gradient.
            inverse.masked_fill_(inverse > torch.finfo(weight.dtype).max, 0)
            self.columns = inverse.to(weight.dtype).view(shape).t().contiguous()

    def finish(self) -> None:
        """Takes the gradient, which lacks no more than that, through the normalisation."""
        if self.norm is None:
            return
        dtype = self.norm.dtype
        for block in _row_blocks(self.weight):
            grad, weight, norm = self.grad[block], self.weight[block], self.norm[block]
            along = (grad.to(dtype) * weight.to(dtype)).sum(1, keepdim=True)
            along.div_(norm.square()).masked_fill_(norm < NORM_FLOOR, 0)
            if dtype == grad.dtype:
                grad.addcmul_(weight, along, value=-1)
            else:
                grad.copy_(grad.to(dtype) - weight.to(dtype) * along)


class _Walk:
    """Losses and gradients of all rows, chunk after chunk."""

    def __init__(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factor: Tensor | None,
        head: Head,
        loss: ChunkLoss,
        chunk: int,
        wanted: list[bool],
    ) -> None:
        dtype = accumulator_dtype(features.dtype)
        self.features, self.bias, self.head, self.loss = features, bias, head, loss
        self.dtype, self.wanted = dtype, wanted
        self.factor = None if factor is None else factor.to(dtype).expand(features.size(0))
        self.weight = _Weight(weight, head, wanted[1])
        count, columns = features.size(0), weight.size(0) // head.sub_centers
        self.rows = chunk_rows(features, weight, head, chunk)
        self.losses = features.new_empty(count, dtype=dtype)
        self.of_features = torch.empty_like(features) if wanted[0] else features.new_empty(0)
        self.of_bias = features.new_zeros(columns if wanted[2] else 0, dtype=dtype)
        # The logits of a chunk; with sub-centers also another's, and whose are the largest.
        self.buffers = [features.new_empty(self.rows, columns)]
        if head.sub_centers > 1:
            self.buffers.append(torch.empty_like(self.buffers[0]))
            self.buffers.append(torch.empty_like(self.buffers[0], dtype=torch.uint8))
            self.zero = features.new_zeros(())

    def run(self, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(losses [N], gradient of features, of weight, of bias); empty where not wanted."""
        count = self.features.size(0)
        kept = (target.long() != ignore_index).unsqueeze(1)
        for start in range(0, count, self.rows or 1):
            chunk = slice(start, start + self.rows)
            self._chunk(chunk, target[chunk], kept[chunk])
        self.buffers.clear()
        if self.wanted[1]:
            if count == 0:
                self.weight.grad.zero_()
            self.weight.finish()
        of_bias = self.of_bias.to(self.features.dtype)
        return self.losses, self.of_features, self.weight.grad, of_bias

    def _chunk(self, chunk: slice, target: Tensor, kept: Tensor) -> None:
        # What an ignored row holds has no effect: its gradient is 0, but 0 times NaN is not.
        wide = torch.where(kept, self.features[chunk], 0).to(self.dtype)
        norm = None
        if self.head.normalize_features:
            norm = _norms(wide)
            wide = wide / norm.clamp(min=NORM_FLOOR)
        features = wide.to(self.features.dtype)
        x = self._logits(features)
        self.losses[chunk] = self.loss(x, target, any(self.wanted))
        if not any(self.wanted):
            return
        factor = None if self.factor is None else self.factor[chunk].unsqueeze(1)
        weighed = features if factor is None else (wide * factor).to(features.dtype)
        self._products(chunk, x, weighed)
        if self.wanted[0] and (norm is not None or factor is not None):
            grad = self.of_features[chunk].to(self.dtype)
            if norm is not None:
                grad = _through_norm(grad, wide, norm)
            self.of_features[chunk] = grad if factor is None else grad * factor
        if self.wanted[2]:
            ones = x.new_ones(len(x)) if factor is None else factor.squeeze(1).to(x.dtype)
            self.of_bias += x.t().mv(ones)

    def _product(self, features: Tensor, k: int, out: Tensor) -> Tensor:
        center = self.weight.centers[k].t()
        if self.bias is None:
            torch.mm(features, center, out=out)
        else:
            torch.addmm(self.bias, features, center, out=out)
        return out if self.weight.columns is None else out.mul_(self.weight.columns[k])

    def _logits(self, features: Tensor) -> Tensor:
        """The logits of a chunk; of sub-centers the largest, and which that is."""
        x, *more = (buffer[: len(features)] for buffer in self.buffers)
        self._product(features, 0, x)
        if self.head.sub_centers > 1:
            other, largest = more
            largest.zero_()
            for k in range(1, self.head.sub_centers):
                self._product(features, k, other)
                largest.masked_fill_(other > x, k)
                torch.maximum(x, other, out=x)
        return x

    def _products(self, chunk: slice, grad: Tensor, features: Tensor) -> None:
        """Adds this chunk to the gradients, `grad` being that of its logits."""
        for k, center in enumerate(self.weight.centers):
            part = grad
            if self.head.sub_centers > 1:
                part, largest = (buffer[: len(grad)] for buffer in self.buffers[1:])
                torch.where(largest == k, grad, self.zero, out=part)
            if self.weight.columns is not None:
                part.mul_(self.weight.columns[k])
            if self.wanted[0]:
                _add_product(self.of_features[chunk], part, center, first=k == 0)
            if self.wanted[1]:
                _add_product(self.weight.grads[k], part.t(), features, first=chunk.start == 0)


def _add_product(sum: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    if first:
        torch.mm(a, b, out=sum)
    else:
        sum.addmm_(a, b)


def _check_labels(function: str, target: Tensor, classes: int, ignore_index: int) -> None:
    """On the CPU a bad label is found before any product is made; a GPU's kernels make its row NaN."""
    if target.device.type != "cpu":
        return
    target = target.long()
    found = target[_checks.is_bad_label(target, classes, ignore_index)]
    if found.numel():
        raise _checks.label_error(function, int(found[0]), classes, called="weight")


def _run(
    function: str,
    walk: Callable[[], _Walk],
    features: Tensor,
    target: Tensor,
    classes: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_labels(function, target, classes, ignore_index)
    with torch.autocast(features.device.type, enabled=False), torch.no_grad():
        return walk().run(target, ignore_index)


# Operators, so that torch.compile takes the walk for one node of its graph.
_GIVEN = "Tensor features, Tensor weight, Tensor? bias, Tensor target, Tensor? factor"
_HOW = "int chunk, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)"


@torch.library.custom_op(
    "fusedloss::linear_cross_entropy",
    mutates_args=(),
    schema=f"({_GIVEN}, float label_smoothing, bool smooth_others, float z_loss, int ignore_index, "
    f"{_HOW}",
)
def _linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    factor: Tensor | None,
    label_smoothing: float,
    smooth_others: bool,
    z_loss: float,
    ignore_index: int,
    chunk: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [N] and gradients of the arguments that are `wanted`, each row's times `factor`."""
    numbers = (label_smoothing, smooth_others, z_loss, ignore_index, REDUCTIONS["none"])

    def loss(x: Tensor, label: Tensor, with_grad: bool) -> Tensor:
        if with_grad:
            result: Tensor = ops.cross_entropy_fwd_(x, label, None, *numbers)[0]
        else:
            result = ops.cross_entropy_fwd(x, label, None, *numbers, False, False)[0]
        return result

    return _run(
        "linear_cross_entropy",
        lambda: _Walk(features, weight, bias, factor, PLAIN, loss, chunk, wanted),
        features,
        target,
        weight.size(0),
        ignore_index,
    )


@torch.library.custom_op(
    "fusedloss::linear_margin_softmax",
    mutates_args=(),
    schema=f"({_GIVEN}, Tensor? m1, Tensor? m2, Tensor? m3, float scale, float m1_value, "
    "float m2_value, float m3_value, bool easy, bool linear, bool straight_through, "
    "float label_smoothing, float ceiling, int ignore_index, bool normalize_features, "
    f"bool normalize_weight, int sub_centers, {_HOW}",
)
def _linear_margin_softmax(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    factor: Tensor | None,
    m1: Tensor | None,
    m2: Tensor | None,
    m3: Tensor | None,
    scale: float,
    m1_value: float,
    m2_value: float,
    m3_value: float,
    easy: bool,
    linear: bool,
    straight_through: bool,
    label_smoothing: float,
    ceiling: float,
    ignore_index: int,
    normalize_features: bool,
    normalize_weight: bool,
    sub_centers: int,
    chunk: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [N] and gradients of the arguments that are `wanted`, each row's times `factor`."""
    margins = (m1, m2, m3, scale, m1_value, m2_value, m3_value, easy, linear, straight_through)
    numbers = (*margins, label_smoothing, ceiling, ignore_index, REDUCTIONS["none"])

    def loss(x: Tensor, label: Tensor, with_grad: bool) -> Tensor:
        if with_grad:
            result: Tensor = ops.margin_softmax_fwd_(x, label, *numbers)[0]
        else:
            result = ops.margin_softmax_fwd(x, label, *numbers, False, False)[0]
        return result

    head = Head(normalize_features, normalize_weight, sub_centers)
    return _run(
        "linear_margin_softmax_loss",
        lambda: _Walk(features, weight, bias, factor, head, loss, chunk, wanted),
        features,
        target,
        weight.size(0) // sub_centers,
        ignore_index,
    )


def _fake(features: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted, bias = rest[-1], rest[0]
    losses = features.new_empty(features.size(0), dtype=accumulator_dtype(features.dtype))
    none = features.new_empty(0)
    return (
        losses,
        torch.empty_like(features) if wanted[0] else none,
        torch.empty_like(weight) if wanted[1] else none.clone(),
        torch.empty_like(bias) if wanted[2] else none.clone(),
    )


_linear_cross_entropy.register_fake(_fake)
_linear_margin_softmax.register_fake(_fake)


class LinearLoss(torch.autograd.Function):
    """A linear layer and its loss; the type of ``arguments`` tells which.

    (features, weight, bias, target, m1, m2, m3, arguments, head, chunk, wanted) -> (loss, scale,
    gradient of features, of weight, of bias). Gradients are made in forward for those that are
    ``wanted``, those of a mean except in float16 with its divisor in them; with none ``wanted``,
    backward makes them from the start.
    """

    @staticmethod
    def forward(
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        m1: Tensor | None,
        m2: Tensor | None,
        m3: Tensor | None,
        arguments: LinearArguments,
        head: Head,
        chunk: int,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        dtype = accumulator_dtype(features.dtype)
        given = (features, weight, bias, target)
        factor, scale = None, torch.ones((), dtype=dtype, device=features.device)
        if arguments.reduction == REDUCTIONS["mean"]:
            count = (target.long() != arguments.ignore_index).sum().to(dtype)
            scale = count.clamp(min=1).reciprocal()
            # Divided by many rows a float16 gradient would vanish before a loss scale lifts it.
            if any(wanted) and features.dtype != torch.float16:
                factor, scale = scale, torch.ones_like(scale)
        losses, of_features, of_weight, of_bias = _walk(
            given, factor, (m1, m2, m3), arguments, head, chunk, wanted
        )
        loss = losses
        if arguments.reduction != REDUCTIONS["none"]:
            loss = losses.sum()
        if arguments.reduction == REDUCTIONS["mean"]:
            # A mean over nothing is NaN for cross entropy, as in torch, and 0 with margins.
            loss /= count if isinstance(arguments, CrossEntropyArguments) else count.clamp(min=1)
        return loss, scale, of_features, of_weight, of_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.arguments, ctx.head, ctx.chunk, ctx.wanted = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        *given, m1, m2, m3, scale, of_features, of_weight, of_bias = ctx.saved_tensors
        rest = (None,) * 8
        if grad_output is None:
            return None, None, None, *rest
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_differentiable_gradient(ctx, grad_output, needed), *rest
        grads: tuple[Tensor, ...] = (of_features, of_weight, of_bias)
        if any(ctx.wanted):
            grads = tuple(
                finish_gradient(grad, grad_output, scale) if need else grad
                for grad, need in zip(grads, needed, strict=True)
            )
        else:
            factor = grad_output * scale
            how = (ctx.arguments, ctx.head, ctx.chunk, needed)
            grads = _walk(given, factor, (m1, m2, m3), *how)[1:]
        return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), *rest


def _walk(
    given: Any,
    factor: Tensor | None,
    margins: tuple[Tensor | None, Tensor | None, Tensor | None],
    arguments: LinearArguments,
    head: Head,
    chunk: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    numbers, how = arguments[:-1], (chunk, list(wanted))  # all but the reduction
    result: tuple[Tensor, Tensor, Tensor, Tensor]
    if isinstance(arguments, CrossEntropyArguments):
        result = ops.linear_cross_entropy(*given, factor, *numbers, *how)
    else:
        result = ops.linear_margin_softmax(*given, factor, *margins, *numbers, *head, *how)
    return result


def _differentiable_gradient(
    ctx: Any, grad_output: Tensor, needed: tuple[bool, bool, bool]
) -> list[Tensor | None]:
    """The gradients as functions that autograd can differentiate again; the logits exist whole."""
    features, weight, bias, target, m1, m2, m3, *_ = ctx.saved_tensors
    args: LinearArguments = ctx.arguments
    head: Head = ctx.head
    given = [features, weight, bias]

    def loss(*changed: Tensor) -> Tensor:
        values = iter(changed)
        f, w, b = (next(values) if need else same for need, same in zip(needed, given, strict=True))
        shared: dict[str, Any] = {
            "ignore_index": args.ignore_index,
            "label_smoothing": args.label_smoothing,
            "reduction": REDUCTION_NAMES[args.reduction],
        }
        if isinstance(args, CrossEntropyArguments):
            smoothing = "others" if args.smooth_others else "uniform"
            return reference.linear_cross_entropy(
                f, w, target, b, smoothing=smoothing, z_loss=args.z_loss, **shared
            )
        return reference.linear_margin_softmax_loss(
            f,
            w,
            target,
            scale=args.scale,
            m1=args.m1 if m1 is None else m1,
            m2=args.m2 if m2 is None else m2,
            m3=args.m3 if m3 is None else m3,
            easy_margin=args.easy,
            monotonic="linear" if args.linear else "none",
            gradient="straight_through" if args.straight_through else "exact",
            filter_threshold=args.ceiling if args.ceiling < torch.inf else None,
            sub_centers=head.sub_centers,
            normalize_features=head.normalize_features,
            normalize_weight=head.normalize_weight,
            **shared,
        )

    wrt = [value for value, need in zip(given, needed, strict=True) if need]
    grads = iter(torch.func.vjp(loss, *wrt)[1](grad_output))
    return [next(grads) if need else None for need in needed]
