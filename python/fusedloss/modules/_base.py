"""What the loss modules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class LossModule(nn.Module):
    """A loss whose options are attributes of their own names."""

    _option_names: tuple[str, ...]

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._option_names}

    def extra_repr(self) -> str:
        """The options, as ``repr`` shows them: of a tensor its length."""
        return ", ".join(
            f"{name}=tensor[{value.numel()}]" if isinstance(value, Tensor) else f"{name}={value!r}"
            for name, value in self._options().items()
        )


class ElementLoss(LossModule):
    """A loss of single elements."""

    _function: Callable[..., Tensor]

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """The loss of ``input`` for ``target``, as the function of this name takes them."""
        return self._function(
            input, target, weight=weight, normalizer=normalizer, **self._options()
        )
