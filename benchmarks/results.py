"""What one run measured: plain dataclasses that turn into JSON. Times in ms, sizes in bytes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

CLONE, PRODUCTS = "clone", "products"
YARDSTICKS = (CLONE, PRODUCTS)
"""What is timed beside the contenders and is no loss: of the logits, of a linear layer."""


@dataclass(frozen=True)
class Timing:
    """Times of one contender, one sample a round, in milliseconds per call."""

    samples_ms: tuple[float, ...]
    calls_per_sample: int = 1

    @property
    def median(self) -> float:
        """Median over the rounds in ms."""
        return statistics.median(self.samples_ms)

    @property
    def fastest(self) -> float:
        """Shortest sample in ms."""
        return min(self.samples_ms)

    @property
    def slowest(self) -> float:
        """Longest sample in ms."""
        return max(self.samples_ms)


@dataclass(frozen=True)
class Errors:
    """Distance from the float64 reference.

    value: |v - ref| / |ref|; gradient: relative L2; worst: largest |g - ref| / max |ref|. Of
    several gradients the largest error.
    """

    value: float
    gradient: float
    worst: float


@dataclass
class ContenderResult:
    """All that was measured of one contender in one case; None was not measured.

    other_function: what it computes where that is not the function of the case, else empty.
    """

    contender: str
    errors: Errors | None = None
    train: Timing | None = None
    forward: Timing | None = None
    train_default_malloc: Timing | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None
    other_function: str = ""


@dataclass
class CaseResult:
    """One workload on one device.

    left_out: contenders that did not run, with the reason.
    foreign_cores: cores busy with other processes meanwhile; rows: logits over the classes;
    gradient_bytes: of the gradients that are asked for.
    """

    case: str
    loss: str
    series: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    elements: int
    logits_bytes: int
    contenders: dict[str, ContenderResult] = field(default_factory=dict)
    foreign_cores: float | None = None
    rows: int = 0
    gradient_bytes: int = 0
    left_out: dict[str, str] = field(default_factory=dict)

    def train_ms(self, contender: str) -> float | None:
        """Median of forward + backward in ms, None where it was not measured."""
        found = self.contenders.get(contender)
        return None if found is None or found.train is None else found.train.median

    def ratio(self, numerator: str, denominator: str) -> float | None:
        """Quotient of two contenders' medians of forward + backward."""
        above, below = self.train_ms(numerator), self.train_ms(denominator)
        return None if above is None or not below else above / below

    def peak_over_logits(self, contender: str) -> float | None:
        """Peak bytes above the inputs, in sizes of the logits."""
        found = self.contenders.get(contender)
        if found is None or found.peak_bytes is None or not self.logits_bytes:
            return None
        return found.peak_bytes / self.logits_bytes

    def beyond_gradient(self, contender: str, let_go: int = 0) -> int | None:
        """Peak bytes above the inputs, the gradients and `let_go` more."""
        found = self.contenders.get(contender)
        if found is None or found.peak_bytes is None:
            return None
        return max(0, found.peak_bytes - self.gradient_bytes - let_go)
