"""ArcFace and its family as modules, which own the class centers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _checks
from .._chunks import Head
from ..functional.linear import check_chunk_size, check_sub_centers, linear_margin_softmax
from ..functional.margin_softmax import MarginSoftmaxOptions, check_margin_softmax_options
from ..reference.linear import NORM_FLOOR
from ._base import LossModule

# The options that every loss of the family has, and those of the losses that bend the angle.
_SHARED = ("label_smoothing", "filter_threshold", "ignore_index", "reduction")
_ANGLE = ("easy_margin", "monotonic", "gradient")
_CHUNKS = ("chunked", "chunk_size")


def _size(function: str, name: str, value: object) -> int:
    size = _checks.integer(function, name, value)
    if size < 1:
        raise ValueError(f"{function}: {name} is {size}, accepted are integers >= 1")
    return size


class MarginSoftmaxModule(LossModule):
    """What the family shares: the class centers, their cosines with embeddings, and checked options.

    Attributes:
        weight: parameter ``[num_classes * sub_centers, embedding_dim]``, of which the rows cK to
            cK + K - 1 are class c. Drawn from a normal distribution of deviation 0.01, as insightface
            does; where centers are normalised, their length only sets how fast they turn.
    """

    # What `margin_softmax_loss` calls that which is the margin here.
    _margin: str | None = None
    _fixed: dict[str, Any] = {}  # noqa: RUF012 - read only
    _normalize_features = True

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        sub_centers: int,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
        **options: Any,
    ) -> None:
        name = type(self).__name__
        super().__init__()
        self.num_classes = _size(name, "num_classes", num_classes)
        self.embedding_dim = _size(name, "embedding_dim", embedding_dim)
        self.sub_centers = check_sub_centers(name, sub_centers)
        self._check(options)
        for option, value in options.items():
            self._put(option, value)
        rows = self.num_classes * self.sub_centers
        self.weight = nn.Parameter(torch.empty(rows, embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the class centers anew."""
        nn.init.normal_(self.weight, std=0.01)

    def _check(self, options: dict[str, Any]) -> MarginSoftmaxOptions:
        """All options, as their function takes them."""
        name = type(self).__name__
        given = dict(options)
        _checks.flag(name, "chunked", given.pop("chunked"))
        check_chunk_size(name, given.pop("chunk_size"))
        if self._margin is not None:
            limits: dict[str, Any] = {"low": 0.0, "open_low": True} if self._margin == "m1" else {}
            margin = _checks.number_or_tensor(name, "margin", given.pop("margin"), **limits)
            given[self._margin] = margin
        for ours in ("margin", "m1", "m2", "m3"):
            value = options.get(ours)
            if isinstance(value, Tensor) and value.dim() == 1 and len(value) != self.num_classes:
                raise ValueError(
                    f"{name}: {ours} has shape {tuple(value.shape)}, accepted are a number and "
                    f"({self.num_classes},), one for each class"
                )
        return check_margin_softmax_options(name, **given, **self._fixed)

    def _put(self, name: str, value: Any) -> None:
        """An option as an attribute, as a buffer if it is a tensor."""
        for place in (self.__dict__, self._buffers, self._parameters):
            place.pop(name, None)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.register_buffer(name, value)
        else:
            super().__setattr__(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        """An option may change between steps; one that is refused leaves the old one in place."""
        if name in self._option_names and "weight" in self.__dict__.get("_parameters", ()):
            self._check({**self._options(), name: value})
            self._put(name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of ``embeddings [N, embedding_dim]`` for class indices ``labels [N]``."""
        chunk = check_chunk_size("", self.chunk_size) if self.chunked else None
        return linear_margin_softmax(
            type(self).__name__,
            embeddings,
            self.weight,
            labels,
            self._check(self._options()),
            Head(self._normalize_features, True, self.sub_centers),
            chunk,
            called="embeddings",
            labels="labels",
        )

    def logits(self, embeddings: Tensor) -> Tensor:
        """``[N, num_classes]``: the scaled cosines without a margin, of sub-centers the largest."""
        unit = F.normalize(embeddings) if self._normalize_features else embeddings
        x: Tensor = F.linear(unit, self.weight)
        norm = torch.linalg.vector_norm(self.weight, dim=1).clamp(min=NORM_FLOOR)
        x *= self._options().get("scale", 1.0) / norm
        if self.sub_centers == 1:
            return x
        largest: Tensor = x.unflatten(1, (self.num_classes, self.sub_centers)).amax(2)
        return largest

    def extra_repr(self) -> str:
        """Sizes and options, as ``repr`` shows them: of a tensor its length."""
        sizes = f"{self.num_classes}, {self.embedding_dim}"
        centers = f", sub_centers={self.sub_centers}" if self.sub_centers > 1 else ""
        return f"{sizes}{centers}, {super().extra_repr()}"


class ArcFaceLoss(MarginSoftmaxModule):
    """ArcFace over class centers of its own: ``margin`` radians are added to the angle.

    Embeddings ``[N, embedding_dim]`` and centers are normalised, their cosines go to
    :func:`fusedloss.arcface_loss`, which explains the options; they are attributes of their names, and
    may be set between steps (``scale`` and ``margin`` for a schedule; each value is checked).

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: m, in radians; a number, or one for each class as a tensor ``[C]``, which becomes a
            buffer.
        scale: s > 0.
        sub_centers: centers of each class, of which the one closest to the embedding counts.
        chunked: never make the cosines ``[N, C]`` whole. Without it they exist once, during forward,
            in the embeddings' dtype, and nothing of their size is kept for backward; with it the
            memory beside the gradients is that of a chunk. In neither case is there a normalised copy
            of the weight. With ``reduction="none"`` backward makes the cosines again.
        chunk_size: rows of a chunk, see :func:`fusedloss.linear_margin_softmax_loss`, whose notes on
            gradients and dtypes hold here too; embeddings must have the weight's dtype.
        device: where the weight lies.
        dtype: its dtype.

    Source: Deng et al., ArcFace, 2019 (arXiv:1801.07698); sub-centers of Deng et al., Sub-center
    ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces, 2020.
    """

    _margin = "m2"
    _option_names = ("margin", "scale", *_ANGLE, *_SHARED, *_CHUNKS)

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: float | Tensor = 0.5,
        scale: float = 64.0,
        *,
        sub_centers: int = 1,
        easy_margin: bool = False,
        monotonic: str = "linear",
        gradient: str = "exact",
        label_smoothing: float = 0.0,
        filter_threshold: float | None = None,
        ignore_index: int = -1,
        reduction: str = "mean",
        chunked: bool = False,
        chunk_size: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_dim,
            sub_centers,
            device,
            dtype,
            margin=margin,
            scale=scale,
            easy_margin=easy_margin,
            monotonic=monotonic,
            gradient=gradient,
            label_smoothing=label_smoothing,
            filter_threshold=filter_threshold,
            ignore_index=ignore_index,
            reduction=reduction,
            chunked=chunked,
            chunk_size=chunk_size,
        )


class CosFaceLoss(MarginSoftmaxModule):
    """CosFace over class centers of its own: ``margin`` is taken off the cosine.

    Options as in :func:`fusedloss.cosface_loss`; everything else as in :class:`ArcFaceLoss`.

    Source: Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, 2018
    (arXiv:1801.09414).
    """

    _margin = "m3"
    _option_names = ("margin", "scale", "easy_margin", *_SHARED, *_CHUNKS)

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: float | Tensor = 0.35,
        scale: float = 64.0,
        *,
        sub_centers: int = 1,
        easy_margin: bool = False,
        label_smoothing: float = 0.0,
        filter_threshold: float | None = None,
        ignore_index: int = -1,
        reduction: str = "mean",
        chunked: bool = False,
        chunk_size: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_dim,
            sub_centers,
            device,
            dtype,
            margin=margin,
            scale=scale,
            easy_margin=easy_margin,
            label_smoothing=label_smoothing,
            filter_threshold=filter_threshold,
            ignore_index=ignore_index,
            reduction=reduction,
            chunked=chunked,
            chunk_size=chunk_size,
        )


class SphereFaceLoss(MarginSoftmaxModule):
    """SphereFace over class centers of its own: the angle is multiplied by ``margin`` > 0.

    Options as in :func:`fusedloss.sphereface_loss`, which also says where the default comes from;
    everything else as in :class:`ArcFaceLoss`.

    Source: Liu et al., SphereFace: Deep Hypersphere Embedding for Face Recognition, 2017
    (arXiv:1704.08063).
    """

    _margin = "m1"
    _option_names = ("margin", "scale", *_ANGLE, *_SHARED, *_CHUNKS)

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: float | Tensor = 1.7,
        scale: float = 64.0,
        *,
        sub_centers: int = 1,
        easy_margin: bool = False,
        monotonic: str = "linear",
        gradient: str = "exact",
        label_smoothing: float = 0.0,
        filter_threshold: float | None = None,
        ignore_index: int = -1,
        reduction: str = "mean",
        chunked: bool = False,
        chunk_size: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_dim,
            sub_centers,
            device,
            dtype,
            margin=margin,
            scale=scale,
            easy_margin=easy_margin,
            monotonic=monotonic,
            gradient=gradient,
            label_smoothing=label_smoothing,
            filter_threshold=filter_threshold,
            ignore_index=ignore_index,
            reduction=reduction,
            chunked=chunked,
            chunk_size=chunk_size,
        )


class NormFaceLoss(MarginSoftmaxModule):
    """NormFace over class centers of its own: a softmax over scaled cosines without a margin.

    Options as in :func:`fusedloss.normface_loss`; everything else as in :class:`ArcFaceLoss`.

    Source: Wang et al., NormFace: L2 Hypersphere Embedding for Face Verification, 2017
    (arXiv:1704.06369).
    """

    _option_names = ("scale", *_SHARED, *_CHUNKS)

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        scale: float = 64.0,
        *,
        sub_centers: int = 1,
        label_smoothing: float = 0.0,
        filter_threshold: float | None = None,
        ignore_index: int = -1,
        reduction: str = "mean",
        chunked: bool = False,
        chunk_size: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_dim,
            sub_centers,
            device,
            dtype,
            scale=scale,
            label_smoothing=label_smoothing,
            filter_threshold=filter_threshold,
            ignore_index=ignore_index,
            reduction=reduction,
            chunked=chunked,
            chunk_size=chunk_size,
        )


class CombinedMarginLoss(MarginSoftmaxModule):
    """The combined margin over class centers of its own: cos(m1 theta + m2) - m3.

    Options as in :func:`fusedloss.margin_softmax_loss`; everything else as in :class:`ArcFaceLoss`. The
    defaults are the paper's CM1.

    Source: Deng et al., ArcFace, 2019 (arXiv:1801.07698), section 3.2.
    """

    _option_names = ("m1", "m2", "m3", "scale", *_ANGLE, *_SHARED, *_CHUNKS)

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        m1: float | Tensor = 1.0,
        m2: float | Tensor = 0.3,
        m3: float | Tensor = 0.2,
        scale: float = 64.0,
        *,
        sub_centers: int = 1,
        easy_margin: bool = False,
        monotonic: str = "linear",
        gradient: str = "exact",
        label_smoothing: float = 0.0,
        filter_threshold: float | None = None,
        ignore_index: int = -1,
        reduction: str = "mean",
        chunked: bool = False,
        chunk_size: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_dim,
            sub_centers,
            device,
            dtype,
            m1=m1,
            m2=m2,
            m3=m3,
            scale=scale,
            easy_margin=easy_margin,
            monotonic=monotonic,
            gradient=gradient,
            label_smoothing=label_smoothing,
            filter_threshold=filter_threshold,
            ignore_index=ignore_index,
            reduction=reduction,
            chunked=chunked,
            chunk_size=chunk_size,
        )


class ModifiedSoftmaxLoss(MarginSoftmaxModule):
    """SphereFace's "modified softmax": normalised class centers, embeddings of any length, no margin.

    The logits are ``|embedding| cos(theta)``, as in :func:`fusedloss.modified_softmax_loss`; all else
    as in :class:`ArcFaceLoss`.

    Source: Liu et al., SphereFace: Deep Hypersphere Embedding for Face Recognition, 2017
    (arXiv:1704.08063), section 3.1.
    """

    _fixed: dict[str, Any] = {"scale": 1.0}  # noqa: RUF012 - read only
    _normalize_features = False
    _option_names = (*_SHARED, *_CHUNKS)

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        sub_centers: int = 1,
        label_smoothing: float = 0.0,
        filter_threshold: float | None = None,
        ignore_index: int = -1,
        reduction: str = "mean",
        chunked: bool = False,
        chunk_size: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_dim,
            sub_centers,
            device,
            dtype,
            label_smoothing=label_smoothing,
            filter_threshold=filter_threshold,
            ignore_index=ignore_index,
            reduction=reduction,
            chunked=chunked,
            chunk_size=chunk_size,
        )
