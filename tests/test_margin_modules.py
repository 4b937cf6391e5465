"""ArcFace and its family as modules that own their class centers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import fusedloss
import pytest
import torch
import torch.nn.functional as F
from fusedloss import (
    ArcFaceLoss,
    CombinedMarginLoss,
    CosFaceLoss,
    ModifiedSoftmaxLoss,
    NormFaceLoss,
    SphereFaceLoss,
)
from fusedloss.benchmarks.memory import peak_bytes, saved_bytes
from torch import Tensor, nn

CLASSES, WIDTH, ROWS = 9, 6, 14
VECTOR = torch.linspace(0.1, 0.6, CLASSES)
# (module, the function of its cosines, that one's options).
MODULES: dict[str, tuple[Callable[..., Any], Any, dict[str, Any]]] = {
    "ArcFace": (ArcFaceLoss, fusedloss.arcface_loss, {}),
    "ArcFace, options": (
        ArcFaceLoss,
        fusedloss.arcface_loss,
        {
            **{"margin": 0.3, "scale": 20.0, "monotonic": "none", "label_smoothing": 0.1},
            **{"gradient": "straight_through", "ignore_index": 3, "reduction": "sum"},
        },
    ),
    "ArcFace, by class": (ArcFaceLoss, fusedloss.arcface_loss, {"margin": VECTOR}),
    "CosFace": (CosFaceLoss, fusedloss.cosface_loss, {}),
    "CosFace, options": (
        CosFaceLoss,
        fusedloss.cosface_loss,
        {"margin": 0.2, "easy_margin": True, "filter_threshold": 0.4, "reduction": "none"},
    ),
    "SphereFace": (SphereFaceLoss, fusedloss.sphereface_loss, {}),
    "SphereFace, options": (
        SphereFaceLoss,
        fusedloss.sphereface_loss,
        {"margin": 1.3, "scale": 30.0, "easy_margin": True},
    ),
    "NormFace": (NormFaceLoss, fusedloss.normface_loss, {}),
    "NormFace, options": (NormFaceLoss, fusedloss.normface_loss, {"scale": 16.0}),
    "combined": (
        CombinedMarginLoss,
        lambda x, t, **o: fusedloss.margin_softmax_loss(
            x, t, **{"m1": 1.0, "m2": 0.3, "m3": 0.2, **o}
        ),
        {},
    ),
    "combined, options": (
        CombinedMarginLoss,
        fusedloss.margin_softmax_loss,
        {"m1": 0.9, "m2": 0.4, "m3": VECTOR, "scale": 32.0},
    ),
    "modified": (ModifiedSoftmaxLoss, fusedloss.modified_softmax_loss, {}),
    "modified, options": (
        ModifiedSoftmaxLoss,
        fusedloss.modified_softmax_loss,
        {"label_smoothing": 0.2, "ignore_index": 0, "reduction": "sum"},
    ),
}
each_module = pytest.mark.parametrize("name", MODULES)
each_class = pytest.mark.parametrize(
    "kind", sorted({made[0] for made in MODULES.values()}, key=str)
)


def build(name: str, **more: Any) -> Any:
    """The module with other centers than at the start, which all point somewhere."""
    torch.manual_seed(1)
    kind, _, options = MODULES[name]
    copies = {key: x.clone() if isinstance(x, Tensor) else x for key, x in options.items()}
    return kind(CLASSES, WIDTH, **copies, **more)


def batch(rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Embeddings and labels, two of which are -1 and one 3."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    labels[:3] = torch.tensor([-1, 3, -1])
    return 2 * torch.randn(rows, WIDTH, generator=generator), labels


def eager(module: Any, name: str, embeddings: Tensor, labels: Tensor) -> Tensor:
    """The function of the cosines of normalised copies."""
    _, function, options = MODULES[name]
    modified = isinstance(module, ModifiedSoftmaxLoss)
    x = F.linear(embeddings if modified else F.normalize(embeddings), F.normalize(module.weight))
    x = x.unflatten(1, (CLASSES, -1)).max(2).values
    return function(x, labels, **options)


@pytest.mark.parametrize("chunks", [{}, {"chunked": True}, {"chunked": True, "chunk_size": 4}])
@pytest.mark.parametrize("centers", [1, 3])
@each_module
def test_module_equals_function(name: str, centers: int, chunks: dict[str, Any]) -> None:
    module = build(name, sub_centers=centers, **chunks)
    embeddings, labels = batch()
    if MODULES[name][2].get("ignore_index", -1) != -1:
        labels = labels.clamp(min=0)
    x = embeddings.requires_grad_()
    loss, expected = module(x, labels), eager(module, name, x, labels)
    torch.testing.assert_close(loss, expected)
    upstream = torch.linspace(-1, 2, ROWS) if loss.dim() else None
    got = torch.autograd.grad(loss, (x, module.weight), upstream)
    wanted = torch.autograd.grad(expected, (x, module.weight), upstream)
    for ours, theirs in zip(got, wanted, strict=True):
        largest = float(theirs.abs().max())
        assert largest > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("centers", [1, 2])
@each_module
def test_copies(name: str, centers: int) -> None:
    module = build(name, sub_centers=centers, chunked=True, chunk_size=5)
    embeddings, labels = batch()
    labels = labels.clamp(min=0)
    expected = module(embeddings, labels)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for each in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ):
        assert torch.equal(each(embeddings, labels), expected)
        assert repr(each) == repr(module)
        assert isinstance(each.weight, nn.Parameter)
        with torch.no_grad():
            each.weight.zero_()  # its own
    assert torch.equal(module(embeddings, labels), expected)
    options = MODULES[name][2]
    vectors = [key for key, value in options.items() if isinstance(value, Tensor)]
    assert sorted(module.state_dict()) == sorted([*vectors, "weight"])
    assert [key for key, _ in module.named_parameters()] == ["weight"]
    assert module.weight.shape == (CLASSES * centers, WIDTH)
    other = build(name, sub_centers=centers)
    other.reset_parameters()
    assert not torch.equal(other(embeddings, labels), expected)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(embeddings, labels), expected)


@each_module
def test_repr_shows_options(name: str) -> None:
    text = repr(build(name, sub_centers=2))
    assert text.startswith(f"{MODULES[name][0].__name__}({CLASSES}, {WIDTH}, sub_centers=2, ")
    for key, value in MODULES[name][2].items():
        assert f"{key}=tensor[{CLASSES}]" in text or f"{key}={value!r}" in text


@each_class
def test_defaults_are_those_of_the_function(kind: Any) -> None:
    name = next(name for name, made in MODULES.items() if made[0] is kind and not made[2])
    embeddings, labels = batch()
    torch.manual_seed(0)
    module = kind(CLASSES, WIDTH)
    assert 0.005 < float(module.weight.detach().std()) < 0.02
    torch.testing.assert_close(module(embeddings, labels), eager(module, name, embeddings, labels))


def test_schedules() -> None:
    embeddings, labels = batch()
    module = build("ArcFace")
    for margin, scale in ((0.0, 8.0), (0.25, 16), (0.5, 64.0), (VECTOR, 64.0), (0.1, 64.0)):
        module.margin, module.scale = margin, scale
        x = F.linear(F.normalize(embeddings), F.normalize(module.weight))
        expected = fusedloss.arcface_loss(x, labels, margin=margin, scale=scale)
        torch.testing.assert_close(module(embeddings, labels), expected)
        assert ("margin" in module.state_dict()) == isinstance(margin, Tensor)
    combined = build("combined")
    combined.m1, combined.m3 = 1.2, 0.0
    expected = fusedloss.margin_softmax_loss(x, labels, m1=1.2, m2=0.3, m3=0.0)
    torch.testing.assert_close(combined(embeddings, labels), expected)
    module.margin, module.reduction, module.chunked = VECTOR.clone(), "sum", True
    assert copy.deepcopy(module).double().margin.dtype == torch.float64
    expected = fusedloss.arcface_loss(x, labels, margin=VECTOR, reduction="sum")
    torch.testing.assert_close(module(embeddings, labels), expected)


def test_a_margin_can_be_learnt() -> None:
    module = build("ArcFace")
    embeddings, labels = batch()
    module.margin = nn.Parameter(VECTOR.clone())
    module(embeddings, labels).backward()
    assert module.margin.grad is not None
    assert module.margin.grad.any()
    assert [key for key, _ in module.named_parameters()] == ["weight", "margin"]
    module.margin = 0.5
    assert [key for key, _ in module.named_parameters()] == ["weight"]


@pytest.mark.parametrize("centers", [1, 3])
@each_module
def test_logits(name: str, centers: int) -> None:
    module = build(name, sub_centers=centers)
    embeddings, _ = batch()
    modified = isinstance(module, ModifiedSoftmaxLoss)
    x = F.linear(embeddings if modified else F.normalize(embeddings), F.normalize(module.weight))
    scale = 1.0 if modified else MODULES[name][2].get("scale", 64.0)
    expected = scale * x.unflatten(1, (CLASSES, centers)).amax(2)
    got = module.logits(embeddings)
    torch.testing.assert_close(got, expected)
    (grad,) = torch.autograd.grad(got.square().sum(), module.weight)
    (wanted,) = torch.autograd.grad(expected.square().sum(), module.weight)
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(module.logits(embeddings), expected)
        module.weight[0] = 0
        assert module.logits(embeddings).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunked", [False, True])
def test_dtypes(chunked: bool, dtype: torch.dtype) -> None:
    module = build("ArcFace", dtype=dtype, chunked=chunked)
    assert module.weight.dtype == dtype
    embeddings, labels = batch()
    loss = module(embeddings.to(dtype), labels)
    expected = copy.deepcopy(module).double()(embeddings.to(dtype).double(), labels)
    torch.testing.assert_close(loss.double(), expected, rtol=0.05, atol=0.0)
    loss.backward()
    assert module.weight.grad.dtype == dtype
    assert build("ArcFace", device="meta").weight.is_meta


def test_training_learns() -> None:
    torch.manual_seed(0)
    labels = torch.arange(60) % 5
    data = torch.eye(5)[labels] @ torch.randn(5, 8) + 0.2 * torch.randn(60, 8)
    for chunked in (False, True):
        module = ArcFaceLoss(5, 8, scale=16.0, sub_centers=2, chunked=chunked, chunk_size=16)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            module(data, labels).backward()
            optimizer.step()
        assert float((module.logits(data).argmax(1) == labels).float().mean()) > 0.95


BIG_CLASSES, BIG_ROWS = 16_000, 200


def test_memory() -> None:
    labels = torch.randint(0, BIG_CLASSES, (BIG_ROWS,))
    embeddings = torch.randn(BIG_ROWS, 8)
    cosines = 4 * BIG_ROWS * BIG_CLASSES
    found = {}
    for chunked in (False, True):
        module = ArcFaceLoss(BIG_CLASSES, 8, chunked=chunked, chunk_size=20)

        def run(module: nn.Module = module) -> object:
            module.zero_grad()
            return module(embeddings, labels).backward()

        kept = saved_bytes(lambda m=module: m(embeddings, labels), [*module.parameters()])
        assert kept < 2 * 4 * BIG_CLASSES * 8  # the weight's gradient, no cosines
        run()
        module.zero_grad()
        found[chunked] = peak_bytes(run, torch.device("cpu"))
    if found[True] is None or found[False] is None:
        pytest.skip("the profiler gives no records here")
    assert cosines <= found[False] < 1.2 * cosines  # once
    assert found[True] < 0.3 * cosines


@each_class
@pytest.mark.parametrize(
    ("sizes", "options", "error", "message"),
    [
        ((0, 4), {}, ValueError, "num_classes is 0"),
        ((2.0, 4), {}, TypeError, "num_classes must be an int"),
        ((3, -1), {}, ValueError, "embedding_dim is -1"),
        ((3, "4"), {}, TypeError, "embedding_dim must be an int"),
        ((3, 4), {"sub_centers": 0}, ValueError, "sub_centers is 0"),
        ((3, 4), {"chunked": 1}, TypeError, "chunked must be a bool"),
        ((3, 4), {"chunk_size": 0}, ValueError, "chunk_size is 0"),
        ((3, 4), {"reduction": "avg"}, ValueError, "reduction is 'avg'"),
        ((3, 4), {"label_smoothing": 2.0}, ValueError, "label_smoothing is 2"),
        ((3, 4), {"ignore_index": 1.0}, TypeError, "ignore_index must be an int"),
    ],
)
def test_bad_arguments(
    kind: Any, sizes: tuple[Any, Any], options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"{kind.__name__}: {message}"):
        kind(*sizes, **options)


@pytest.mark.parametrize(
    ("kind", "option", "value", "message"),
    [
        (ArcFaceLoss, "margin", "x", "margin must be a number"),
        (ArcFaceLoss, "margin", torch.zeros(3), r"margin has shape \(3,\).*\(9,\)"),
        (ArcFaceLoss, "margin", torch.zeros(9, 1), r"margin has shape \(9, 1\)"),
        (ArcFaceLoss, "scale", 0.0, "scale is 0"),
        (ArcFaceLoss, "monotonic", "no", "monotonic is 'no'"),
        (ArcFaceLoss, "gradient", "no", "gradient is 'no'"),
        (ArcFaceLoss, "easy_margin", 1, "easy_margin must be a bool"),
        (SphereFaceLoss, "margin", 0.0, "margin is 0"),
        (CosFaceLoss, "scale", -1.0, "scale is -1"),
        (CombinedMarginLoss, "m1", 0.0, "m1 is 0"),
        (CombinedMarginLoss, "m2", torch.zeros(8), r"m2 has shape \(8,\)"),
        (NormFaceLoss, "filter_threshold", "x", "filter_threshold must be a number"),
    ],
)
def test_bad_options_and_settings(kind: Any, option: str, value: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{kind.__name__}: {message}"):
        kind(CLASSES, WIDTH, **{option: value})
    module = kind(CLASSES, WIDTH)
    before, embeddings, labels = repr(module), *batch()
    expected = module(embeddings, labels)
    with pytest.raises((TypeError, ValueError), match=f"{kind.__name__}: {message}"):
        setattr(module, option, value)
    assert repr(module) == before
    assert torch.equal(module(embeddings, labels), expected)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("embeddings", "labels", "error", "message"),
    [
        (None, None, TypeError, "embeddings must be a tensor"),
        (torch.zeros(2, 5), None, ValueError, r"weight has shape \(9, 6\).*embeddings.*\(2, 5\)"),
        (torch.zeros(2), None, ValueError, r"embeddings has shape \(2,\)"),
        (torch.zeros(2, 6).half(), None, TypeError, "weight has dtype float32, but embeddings"),
        (torch.zeros(2, 6), [0, 1], TypeError, "labels must be a tensor"),
        (torch.zeros(2, 6), torch.zeros(3).long(), ValueError, r"labels has shape \(3,\)"),
        (torch.zeros(2, 6), torch.zeros(2), TypeError, "labels has dtype float32"),
    ],
)
def test_bad_batches(
    embeddings: Any, labels: Any, error: type[Exception], message: str, chunked: bool
) -> None:
    with pytest.raises(error, match=f"ArcFaceLoss: {message}"):
        ArcFaceLoss(CLASSES, WIDTH, chunked=chunked)(embeddings, labels)
