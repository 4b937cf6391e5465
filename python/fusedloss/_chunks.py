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
from typing import NamedTuple

import torch
from torch import Tensor

from ._ops import accumulator_dtype
from .reference.linear import NORM_FLOOR

# A chunk takes an eighth of what all rows would, within these bytes, but has no fewer rows than are worth
# reading the weight and its gradient for: the products of 64 rows take a fifth longer than those of 128,
# and these a tenth longer than those of 512 (512 features, 100,000 classes, float32, one core).
SHARE = 8
CHUNK_BYTES = (16 * 2**20, 64 * 2**20)
CHUNK_ROWS = 128
# Elements of a block of the weight's gradient that is finished at once.
BLOCK_ELEMENTS = 2**20
# Classes of a product that is made transposed and copied into its place while it is in the cache, and
# from how many classes on: on a CPU in float32, 128 rows take a quarter less time than as they are.
BLOCK_CLASSES = 1024
MANY_CLASSES = 1024

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


class Walk:
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
        # MKL multiplies few rows slowly into long ones; oneDNN, which has the half types, does not.
        in_blocks = features.device.type == "cpu" and features.dtype == dtype
        in_blocks = in_blocks and columns >= MANY_CLASSES
        self.classes_at_once = min(BLOCK_CLASSES, columns // 16) if in_blocks else 0
        self.block = features.new_empty(self.classes_at_once * self.rows)
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

    def _product(self, features: Tensor, k: int, out: Tensor) -> None:
        """The logits of one center of each class. A bias and normalised centers do not go together."""
        center, bias, columns = self.weight.centers[k], self.bias, self.weight.columns
        if self.classes_at_once:
            for start in range(0, len(center), self.classes_at_once):
                block = slice(start, start + self.classes_at_once)
                place = out[:, block]
                part = self.block[: place.numel()].view(place.size(1), place.size(0))
                part = torch.mm(center[block], features.t(), out=part).t()
                if columns is not None:
                    torch.mul(part, columns[k, block], out=place)
                elif bias is not None:
                    torch.add(part, bias[block], out=place)
                else:
                    place.copy_(part)
            return
        if bias is None:
            torch.mm(features, center.t(), out=out)
        else:
            torch.addmm(bias, features, center.t(), out=out)
        if columns is not None:
            out.mul_(columns[k])

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
