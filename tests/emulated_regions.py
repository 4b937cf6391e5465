"""The region losses' CUDA kernels on the emulator, called with CPU tensors the way csrc/ calls them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from emulated import DTYPES, TERMS, View, _grad_like, _view, device_memory
from fusedloss._regions import FUNCTIONS, JOINED, region_call, region_options
from torch import Tensor

NOTHING, CROSS_ENTROPY, FOCAL = range(len(JOINED))


class _EmulatedRegions:
    """One region loss on the emulator: forward, then backward.

    `function` is the public one whose keyword arguments `options` are.
    """

    engine = ""

    def __init__(
        self,
        module: ModuleType,
        input: Tensor,
        target: Tensor,
        function: str = "dice_loss",
        **options: Any,
    ) -> None:
        self.module, self.given = module, input
        made = region_call(input, target, region_options(function, options))
        self.input, self.target = made.input, made.target
        self.region_weight, self.side = made.region_weight, made.side
        self.numbers: dict[str, Any] = made.arguments._asdict()
        self.dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.sizes = list(self.input.shape)
        self.groups = 1 if self.numbers["batch"] else self.sizes[0]
        self.classes = self.sizes[1]
        self.inputs = [self.input, self.target, self.region_weight, self.side]
        self.joined = self.numbers["joined"]
        self.none = self.numbers["reduction"] == 0
        self.region = {
            **self.numbers,
            "index": (0, 0, [0 if self.numbers["batch"] else self.classes, 1]),
            "num_groups": self.groups,
            "num_classes": self.classes,
            "region_weight": 0 if self.region_weight is None else self.region_weight.data_ptr(),
            "upstream_group_stride": 0,
            "upstream_class_stride": 0,
        }
        self.call: dict[str, Any] = {
            "sizes": self.sizes,
            "class_dim": 1,
            "logits": _view(self.input, self.sizes),
            "target": self.target_view(),
            "normalizer": 0,
            "normalizer_value": 0.0,
            "ignore_index": self.numbers["ignore_index"],
            "num_classes": self.classes,
            "prescale": False,
            "reduction": self.numbers["reduction"],
            "workspace": 0,
        }

    @property
    def indexed(self) -> bool:
        """Whether targets are class indices."""
        return self.target.dim() < self.input.dim()

    def row_view(self, rows: Tensor) -> View:
        """A tensor without the class dimension along the logits' dimensions."""
        strides = [0 if n == 1 else step for n, step in zip(rows.shape, rows.stride(), strict=True)]
        return (rows.data_ptr(), DTYPES.index(rows.dtype), [strides[0], 0, *strides[1:]])

    def target_view(self) -> View:
        """The target along the logits' dimensions."""
        return self.row_view(self.target) if self.indexed else _view(self.target, self.sizes)

    def loss_shape(self) -> list[int]:
        """One number, or what reduction "none" gives."""
        if not self.none:
            return []
        if self.numbers["weighting"]:
            return [self.groups]
        by_class = [self.classes - self.numbers["first_class"]]
        return by_class if self.numbers["batch"] else [self.groups, *by_class]

    def launch(self, direction: str, call: dict[str, Any], region: dict[str, Any]) -> None:
        """Runs the kernels: `direction` is fwd or bwd."""
        getattr(self.module, f"{self.engine}_regions_{direction}")(call, region)

    def empty_saved(self) -> Tensor | None:
        """Memory for what a row leaves for backward."""
        return None

    def saved_entries(self) -> dict[str, Any]:
        """Where it lies, as entries of the call."""
        return {}

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, scale, slopes), as the forward operator returns them."""
        nan, dtype = torch.nan, self.dtype
        loss = torch.full(self.loss_shape(), nan, dtype=dtype)
        scale = torch.full((2,), nan, dtype=dtype)
        slopes = torch.full((self.groups * self.classes, 2), nan, dtype=dtype)
        self.saved = self.empty_saved()
        region = {**self.region, "loss": loss.data_ptr(), "slopes": slopes.data_ptr()}
        call = {**self.call, **self.saved_entries(), "scale": scale.data_ptr()}
        size = getattr(self.module, f"{self.engine}_regions_workspace_bytes")(call, region)
        workspace = torch.full((size,), 0xFF, dtype=torch.uint8)
        call["workspace"] = workspace.data_ptr()
        if self.input.numel() == 0:  # the binding launches nothing
            return loss.zero_(), scale.zero_(), slopes.zero_()
        touched = [*self.inputs, loss, scale, slopes, self.saved, workspace]
        with device_memory(self.module, *touched):
            self.launch("fwd", call, region)
        return loss, scale, slopes

    def backward(
        self, grad_output: Tensor, scale: Tensor, slopes: Tensor, in_place: bool = False
    ) -> Tensor:
        """The gradient of the input, or of all its dimensions in its place."""
        grad = self.input if in_place else _grad_like(self.input)
        steps = list(grad_output.stride())
        by_group = grad_output.dim() > 0 and (self.numbers["weighting"] or self.groups_listed())
        region = {
            **self.region,
            "slopes": slopes.data_ptr(),
            "upstream": grad_output.data_ptr(),
            "upstream_group_stride": steps.pop(0) if by_group else 0,
            "upstream_class_stride": steps.pop(0) if steps else 0,
        }
        call = {
            **self.call,
            **self.saved_entries(),
            "reduction": 1,
            "grad": _view(grad, self.sizes),
            "scale": scale.data_ptr(),
        }
        with device_memory(self.module, *self.inputs, grad_output, scale, slopes, grad, self.saved):
            self.launch("bwd", call, region)
        return grad.view(self.given.shape) if grad.dim() != self.given.dim() else grad

    def groups_listed(self) -> bool:
        """Whether losses have a dimension of samples."""
        return not self.numbers["batch"]

    def run(
        self, schedule: str = "recompute", grad_output: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(loss, gradient). There is one schedule: no gradient is known before all sums are."""
        loss, scale, slopes = self.forward()
        upstream = torch.ones((), dtype=self.dtype) if grad_output is None else grad_output
        upstream = upstream.expand(loss.shape) if grad_output is None else upstream
        return loss, self.backward(upstream, scale, slopes)


class SoftmaxRegions(_EmulatedRegions):
    """Regions over a softmax."""

    engine = "softmax"

    def __init__(
        self, module: ModuleType, input: Tensor, target: Tensor, *a: Any, **o: Any
    ) -> None:
        super().__init__(module, input, target, *a, **o)
        n = self.numbers
        smooths = n["label_smoothing"] > 0 and self.joined != NOTHING
        terms = "none"
        if not self.indexed:
            terms = "probabilities"
        elif smooths:
            weights = self.joined == CROSS_ENTROPY and self.side is not None
            terms = "weights" if weights else "uniform"
        shares = (1.0, 0.0)
        if self.joined == CROSS_ENTROPY:
            shares = module.cross_entropy_shares(
                n["label_smoothing"], n["smooth_others"], self.classes
            )
        self.terms = TERMS[terms]
        self.call |= {
            "class_weight": 0 if self.side is None else self.side.data_ptr(),
            "weight_value": n["alpha_value"] if self.joined == FOCAL else 1.0,
            "terms": self.terms,
            "target_share": shares[0],
            "uniform_share": shares[1],
            "saved_stride": 0,
            "has_ceiling": False,
            "ceiling": 0.0,
            "weighted_mean": self.joined == CROSS_ENTROPY
            and self.indexed
            and self.side is not None,
            "nothing_is_zero": True,
        }

    def empty_saved(self) -> Tensor | None:
        numbers = self.module.saved_numbers(self.terms, self.joined == FOCAL, False)
        rows = [self.sizes[0], *self.sizes[2:]]
        return torch.full([numbers, *rows], torch.nan, dtype=self.dtype)

    def saved_entries(self) -> dict[str, Any]:
        assert self.saved is not None
        return {"saved": self.row_view(self.saved[0]), "saved_stride": self.saved.stride(0)}


class ElementRegions(_EmulatedRegions):
    """Regions over single elements."""

    engine = "element"

    def __init__(
        self, module: ModuleType, input: Tensor, target: Tensor, *a: Any, **o: Any
    ) -> None:
        super().__init__(module, input, target, *a, **o)
        self.call |= {
            "class_dim": 1 if self.indexed else -1,
            "side_value": self.numbers["alpha_value"],
            "indexed": self.indexed,
        }
        if self.side is not None:
            strides = [0, self.side.stride(0), *[0] * (len(self.sizes) - 2)]
            self.call["side"] = (self.side.data_ptr(), DTYPES.index(self.side.dtype), strides)


def emulated_regions(
    module: ModuleType, input: Tensor, target: Tensor, function: str = "dice_loss", **options: Any
) -> SoftmaxRegions | ElementRegions:
    """The walk that the public function would take."""
    walk = SoftmaxRegions if region_options(function, options).softmax else ElementRegions
    return walk(module, input, target, function, **options)


# What a table of losses calls, by the public function's name.
REGION_LOSSES: dict[str, Callable[..., SoftmaxRegions | ElementRegions]] = {
    name: partial(emulated_regions, function=name) for name in FUNCTIONS
}
