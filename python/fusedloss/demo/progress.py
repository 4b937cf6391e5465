"""Progress of a long loop: tqdm where it is installed, else a bar of our own.

Where the output is no terminal, a plain line is printed now and then instead of a moving bar.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TextIO

_BAR_WIDTH = 30
_PLAIN_LINES = 10


class Progress:
    """Counts the steps of a loop; iterate over ``range(total)`` through it.

    >>> with Progress(2, "training", stream) as progress:
    ...     for step in progress:
    ...         progress.note = "loss 0.3"
    """

    def __init__(self, total: int, label: str, stream: TextIO | None = None) -> None:
        self.note = ""
        self._total = total
        self._label = label
        self._stream = sys.stdout if stream is None else stream
        self._moving = self._stream.isatty()
        self._start = time.monotonic()
        self._tqdm: Any = _tqdm(total, label, self._stream) if self._moving else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
        elif self._moving:
            self._stream.write("\n")
        self._stream.flush()

    def __iter__(self) -> Iterator[int]:
        for step in range(self._total):
            yield step
            self._show(step + 1)

    def _show(self, done: int) -> None:
        if self._tqdm is not None:
            self._tqdm.set_postfix_str(self.note, refresh=False)
            self._tqdm.update(1)
        elif self._moving:
            filled = _BAR_WIDTH * done // self._total
            bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
            self._stream.write(f"\r{self._label} [{bar}] {self._status(done)}  ")
            self._stream.flush()
        elif done * _PLAIN_LINES // self._total > (done - 1) * _PLAIN_LINES // self._total:
            self._stream.write(f"{self._label} {self._status(done)}\n")
            self._stream.flush()

    def _status(self, done: int) -> str:
        elapsed = time.monotonic() - self._start
        left = elapsed / done * (self._total - done)
        width = len(str(self._total))
        return f"{done:{width}}/{self._total}  {elapsed:4.0f} s, {left:4.0f} s left  {self.note}"


def _tqdm(total: int, label: str, stream: TextIO) -> Any:
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc=label, file=stream, dynamic_ncols=True)
