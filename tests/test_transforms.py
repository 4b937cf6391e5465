"""torch.func's transforms of every loss, compiled too; and that the list of losses is whole."""

from __future__ import annotations

from collections.abc import Callable

import fusedloss
import pytest
import smoke
import torch
from torch import Tensor

ALIASES = {"cosface_loss", "sphereface_loss", "normface_loss", "modified_softmax_loss"}
each_loss = pytest.mark.parametrize("name", sorted(set(smoke.LOSSES) - ALIASES))


def function_of_input(name: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A loss as a function of its first argument, and that argument."""
    make, options = smoke.LOSSES[name]
    input, *others = (x.detach() for x in make())
    loss = getattr(fusedloss, name)
    return lambda x: loss(x, *others, **options), input


def test_the_list_holds_every_public_loss() -> None:
    assert smoke.public_losses() == set(smoke.LOSSES)


@each_loss
@pytest.mark.parametrize("schedule", ["forward", "recompute"])
def test_compiled_grad_of_the_input_itself(name: str, schedule: str) -> None:
    """Dynamo takes the argument of torch.func.grad for one without gradient: see _checks.tensor."""
    function, input = function_of_input(name)
    torch._dynamo.reset()
    with fusedloss.gradient_schedule(schedule):
        expected = torch.func.grad(function)(input)
        compiled = torch.compile(
            lambda x: torch.func.grad(function)(x), backend="eager", fullgraph=True
        )
        got = compiled(input)
    assert expected.any()
    atol = 1e-6 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=atol)


def test_compiled_grad_of_a_target() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 6, 5, generator=generator)
    for function in (
        lambda y: fusedloss.smooth_l1_loss(x, y),
        lambda y: fusedloss.cross_entropy(x, y),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(torch.func.grad(function), backend="eager", fullgraph=True)
        expected = torch.func.grad(function)(y)
        assert expected.any()
        torch.testing.assert_close(compiled(y), expected)


# nll_loss is made of torch's operators.
@pytest.mark.parametrize("name", sorted(set(smoke.LOSSES) - ALIASES - {"nll_loss"}))
def test_vmap_names_the_way_out(name: str) -> None:
    function, input = function_of_input(name)
    batch = torch.stack([input, input])
    with pytest.raises(NotImplementedError, match=r"fusedloss.backend\('reference'\)"):
        torch.vmap(function)(batch)
    with fusedloss.backend("reference"):
        losses = torch.vmap(function)(batch)
    torch.testing.assert_close(losses[0], function(input), rtol=1e-5, atol=1e-6)
