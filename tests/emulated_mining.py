"""The CUDA kernels of hard example mining on the emulator, called as csrc/ calls them on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType
from typing import Any, NamedTuple

import torch
from emulated import DTYPES, View, _grad_like, _view, device_memory
from fusedloss._ops import REDUCTIONS
from torch import Tensor


class Wanted(IntEnum):
    """How the number of selected candidates is found: kernels/core/mining.h."""

    TOGETHER, NUMBER, FRACTION, RATIO = range(4)


class Forward(NamedTuple):
    """What the forward operator returns."""

    loss: Tensor
    scale: Tensor
    marks: Tensor
    selection: Tensor


class _EmulatedMining:
    """One mined loss on the emulator. A subclass says what the walk gets and how it is launched."""

    def __init__(
        self,
        module: ModuleType,
        input: Tensor,
        target: Tensor,
        *,
        wanted: Wanted,
        number: int = 0,
        factor: float = 0.0,
        whole_ties: bool = False,
        epsilon: float = 0.0,
        reduction: str = "mean",
        threshold: float = math.inf,
        ignore_index: int = -100,
    ) -> None:
        self.module, self.input, self.target = module, input, target
        self.dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.inputs: list[Tensor | None] = [input, target]
        self.reduction = reduction
        self.num_slices, self.slices = 1, (0, 0, [0] * input.dim())
        self.rule: dict[str, Any] = {
            "wanted": int(wanted),
            "number": number,
            "factor": factor,
            "whole_ties": whole_ties,
            "epsilon": epsilon,
            "reduction": REDUCTIONS[reduction],
            "threshold": threshold,
        }
        self.call: dict[str, Any] = {
            "sizes": list(input.shape),
            "class_dim": -1,
            "logits": _view(input, list(input.shape)),
            "target": _view(target, list(input.shape)),
            "normalizer": 0,
            "normalizer_value": 0.0,
            "scale": 0,
            "ignore_index": ignore_index,
            "num_classes": 1,
            "prescale": False,
            "reduction": REDUCTIONS[reduction],
            "workspace": 0,
        }

    def launch(self, direction: str, call: dict[str, Any], mining: dict[str, Any]) -> None:
        """Runs the kernels: `direction` is fwd or bwd."""
        raise NotImplementedError

    def empty_marks(self) -> Tensor:
        """Memory for marks, or what has their layout."""
        raise NotImplementedError

    def empty_values(self) -> Tensor | None:
        """Memory for what is summed in the place of marks, where that is needed."""
        return None

    def view(self, marks: Tensor) -> View:
        """What has the marks' layout along the input's dimensions."""
        return _view(marks, self.call["sizes"])

    def forward(self) -> Forward:
        """Marks, selects and sums up."""
        marks, values = self.empty_marks(), self.empty_values()
        none = self.reduction == "none"
        loss = self.empty_marks() if none else torch.full((), torch.nan, dtype=self.dtype)
        scale = torch.full((), torch.nan, dtype=self.dtype)
        selection = torch.full((self.num_slices, 2), -1.0, dtype=self.dtype)
        mining = {
            **self.rule,
            "marks": self.view(marks),
            "values": 0 if values is None else values.data_ptr(),
            "num_slices": self.num_slices,
            "slice_size": marks.numel() // max(self.num_slices, 1),
            "loss": loss.data_ptr(),
            "scale": scale.data_ptr(),
            "selection": selection.data_ptr(),
        }
        size = self.module.select_workspace_bytes(mining)
        workspace = torch.full((size,), 0xFF, dtype=torch.uint8)
        mining["workspace"] = workspace.data_ptr()
        touched = [*self.inputs, marks, values, loss, scale, selection, workspace]
        with device_memory(self.module, *touched):
            self.launch("fwd", self.call, mining)
        return Forward(loss, scale, marks, selection)

    def backward(self, grad_output: Tensor, forward: Forward, in_place: bool = False) -> Tensor:
        """The gradient of the input."""
        grad = self.input if in_place else _grad_like(self.input)
        one_number = grad_output.dim() == 0
        sizes = self.call["sizes"]
        call = {
            **self.call,
            "grad_output": _view(grad_output, sizes) if one_number else self.view(grad_output),
            "grad": _view(grad, sizes),
            "scale": forward.scale.data_ptr(),
        }
        mined = {
            "marks": self.view(forward.marks),
            "slice": self.slices,
            "selection": forward.selection.data_ptr(),
        }
        with device_memory(self.module, *self.inputs, grad_output, grad, *forward):
            self.launch("bwd", call, mined)
        return grad

    def run(
        self, schedule: str = "recompute", grad_output: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(loss, gradient). There is one schedule: what is selected is known after all losses are."""
        forward = self.forward()
        if grad_output is None:
            grad_output = torch.ones(forward.loss.shape, dtype=self.dtype)
        return forward.loss, self.backward(grad_output, forward)


class MinedCrossEntropy(_EmulatedMining):
    """Cross entropy of mined rows."""

    def __init__(
        self,
        module: ModuleType,
        input: Tensor,
        target: Tensor,
        *,
        weight: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(module, input, target, **options)
        self.weight = None if weight is None else weight.to(self.dtype)
        self.inputs.append(self.weight)
        self.class_dim = 0 if input.dim() == 1 else 1
        self.call |= {
            "class_dim": self.class_dim,
            "num_classes": input.size(self.class_dim),
            "target": self.view(target),
            "class_weight": 0 if self.weight is None else self.weight.data_ptr(),
            "weight_value": 1.0,
            "terms": 0,
            "target_share": 1.0,
            "uniform_share": 0.0,
            "saved_stride": 0,
            "has_ceiling": False,
            "ceiling": 0.0,
            "weighted_mean": False,
            "nothing_is_zero": True,
        }

    def view(self, marks: Tensor) -> View:
        strides = [
            0 if n == 1 else step for n, step in zip(marks.shape, marks.stride(), strict=True)
        ]
        strides.insert(self.class_dim, 0)
        return (marks.data_ptr(), DTYPES.index(marks.dtype), strides)

    def empty_marks(self) -> Tensor:
        return torch.full(self.target.shape, -1.0, dtype=self.dtype)

    def empty_values(self) -> Tensor | None:
        return None if self.weight is None else self.empty_marks()

    def launch(self, direction: str, call: dict[str, Any], mining: dict[str, Any]) -> None:
        getattr(self.module, f"mined_cross_entropy_{direction}")(call, mining)


class MinedBinaryCrossEntropy(_EmulatedMining):
    """Binary cross entropy of mined elements. `dims`: each slice along them mines for itself."""

    def __init__(
        self,
        module: ModuleType,
        input: Tensor,
        target: Tensor,
        *,
        from_logits: bool = True,
        mask: Tensor | None = None,
        dims: tuple[int, ...] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(module, input, target, **options)
        self.from_logits = from_logits
        self.call |= {"side_value": 0.0, "indexed": False}
        if mask is not None:
            mask = mask.expand(input.shape)
            self.call["weight"] = _view(mask, list(input.shape))
        self.inputs.append(mask)
        all_dims = tuple(range(input.dim()))
        self.mined = all_dims if dims is None else dims
        self.others = tuple(d for d in all_dims if d not in self.mined)
        strides = [0] * input.dim()
        for d in reversed(self.others):
            strides[d] = 0 if input.size(d) == 1 else self.num_slices
            self.num_slices *= input.size(d)
        self.slices = (0, 0, strides)

    def empty_marks(self) -> Tensor:
        """In the input's order of memory; several slices lie one after the other."""
        if self.num_slices == 1:
            return _grad_like(self.input.to(self.dtype))
        order = (*self.others, *self.mined)
        marks = torch.full([self.input.size(d) for d in order], -1.0, dtype=self.dtype)
        return marks.permute([order.index(d) for d in range(self.input.dim())])

    def launch(self, direction: str, call: dict[str, Any], mining: dict[str, Any]) -> None:
        run = getattr(self.module, f"mined_binary_cross_entropy_{direction}")
        run(call, self.from_logits, mining)


# --- What a table of losses calls: the public functions' options


def ohem_cross_entropy(
    module: ModuleType,
    input: Tensor,
    target: Tensor,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    **options: Any,
) -> MinedCrossEntropy:
    """OHEM over rows."""
    nll = -math.log(threshold) if threshold > 0 else math.inf
    if input.dtype != torch.float64:
        nll = torch.tensor(nll, dtype=torch.float32).item()
    rule = {"wanted": Wanted.TOGETHER, "number": min_kept, "whole_ties": True}
    return MinedCrossEntropy(module, input, target, threshold=nll, **rule, **options)


def topk_cross_entropy(
    module: ModuleType, input: Tensor, target: Tensor, k: float = 0.1, **options: Any
) -> MinedCrossEntropy:
    """The k hardest rows."""
    rule: dict[str, Any] = {"wanted": Wanted.FRACTION, "factor": k}
    if isinstance(k, int):
        rule = {"wanted": Wanted.NUMBER, "number": k}
    return MinedCrossEntropy(module, input, target, **rule, **options)


def hard_negative_mining(
    module: ModuleType,
    input: Tensor,
    target: Tensor,
    dim: int | tuple[int, ...] | None = None,
    negative_ratio: float = 3.0,
    fallback_negatives: int = 0,
    eps: float = 1e-6,
    **options: Any,
) -> MinedBinaryCrossEntropy:
    """The hardest negatives beside all positives; of the whole input without `dim`."""
    if dim is not None:
        given = (dim,) if isinstance(dim, int) else dim
        options["dims"] = tuple(sorted(d % input.dim() for d in given))
    rule = {"wanted": Wanted.RATIO, "factor": negative_ratio, "number": fallback_negatives}
    return MinedBinaryCrossEntropy(module, input, target, epsilon=eps, **rule, **options)


# By the public function's name.
MINED_LOSSES: dict[str, Callable[..., MinedCrossEntropy | MinedBinaryCrossEntropy]] = {
    "ohem_cross_entropy_loss": ohem_cross_entropy,
    "topk_cross_entropy_loss": topk_cross_entropy,
    "balanced_bce_loss": hard_negative_mining,
    "hard_negative_mining_loss": hard_negative_mining,
}
