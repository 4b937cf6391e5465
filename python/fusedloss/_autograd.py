"""What the autograd of all native operators shares."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._ops import ops

# Whether the running backward keeps its graph for another one. Without the query (a private one) a
# graph is taken to be kept, which costs a copy of the gradient.
_keeps_graph: Callable[[], bool] = getattr(
    torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True
)
# Whether a gradient is a batch in disguise (`is_grads_batched`, vmap): no rule can batch an operator that
# works in place.
_BATCH_QUERIES: list[Callable[[Tensor], bool]] = [
    getattr(torch._C._functorch, name)
    for name in ("is_batchedtensor", "is_legacy_batchedtensor")
    if hasattr(torch._C._functorch, name)
]


def differentiates(*values: object) -> bool:
    """Whether autograd records a call with these arguments."""
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in values
    )


# The innermost hooks on saved tensors (checkpointing uses them), None without any. Where the query, a
# private one, is missing, there might be some.
_saved_tensor_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: True
)


def may_overwrite(input: Tensor) -> bool:
    """Whether a backward may write the gradient over the memory of `input`.

    Not over a leaf, whose ``.grad`` it would become; not where elements share a place; and not under
    hooks on saved tensors, which hide from autograd that another operator's saved logits changed.
    """
    return (
        not input.is_leaf
        and not torch.compiler.is_compiling()
        and _saved_tensor_hooks(True) is None
        and not _overlaps_itself(input)
    )


def _overlaps_itself(x: Tensor) -> bool:
    """Whether two elements of `x` share a place, or its strides do not exclude it."""
    reach = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride < reach:
            return True
        reach = max(reach, stride * size)
    return False


def _is_batched(grad: Tensor) -> bool:
    return any(query(grad) for query in _BATCH_QUERIES)


def memory_is_free(grad_output: Tensor) -> bool:
    """Whether this backward may write over what forward saved: nobody will read it again."""
    return not (torch.compiler.is_compiling() or _keeps_graph() or _is_batched(grad_output))


def finish_gradient(grad: Tensor, grad_output: Tensor, scale: Tensor) -> Tensor:
    """`grad`, computed in forward for an incoming gradient of 1, times the true one and `scale`.

    In place where the graph is not used again, and without touching memory where the product is 1.
    """
    if not memory_is_free(grad_output):
        result: Tensor = ops.scale_gradient(grad, grad_output, scale)
        return result
    ops.scale_gradient_(grad, grad_output, scale)
    return grad


class _Bound:
    """What torch asks of bound arguments."""

    kwargs: dict[str, Any] = {}  # noqa: RUF012 - read only

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args

    def apply_defaults(self) -> None:
        """There are none."""


class _Positional(inspect.Signature):
    """Binds positional arguments without matching names.

    torch looks a Function's signature up and binds to it in every call, which takes longer than the
    kernel of a small loss.
    """

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """`args` as they are."""
        return super().bind(*args, **kwargs) if kwargs else _Bound(args)


def positional(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """A Function that is only ever called with all of its arguments, by position."""
    parameters = inspect.signature(function.forward).parameters.values()
    function.forward.__signature__ = _Positional(list(parameters))  # type: ignore[attr-defined]
    return function


class LossFunction(torch.autograd.Function):
    """What the Functions of all losses have in common: their first argument is what they differentiate
    by, their first result the loss.
    """

    @staticmethod
    def vmap(*_: object) -> Any:
        """There is no rule: an operator takes one batch."""
        raise NotImplementedError(
            "fusedloss: vmap has no rule for native losses; call them within"
            " fusedloss.backend('reference')"
        )


def evaluate(function: type[LossFunction], input: Tensor, *rest: object) -> Tensor:
    """The loss of a Function's arguments."""
    loss: Tensor = function.apply(input, *rest)[0]  # type: ignore[no-untyped-call]
    return loss


def reference_gradient(
    loss: Callable[[Tensor], Tensor], input: Tensor, grad_output: Tensor
) -> Tensor:
    """The gradient of `loss` at `input`, which autograd can differentiate again."""
    # vjp rather than autograd.grad: it nests inside torch.func transforms as well.
    grad: Tensor = torch.func.vjp(loss, input)[1](grad_output)[0]
    return grad
