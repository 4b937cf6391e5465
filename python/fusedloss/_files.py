"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; what is there takes the place of ``path`` when all went well.

    A run that is interrupted while it writes leaves the file of the run before as it was.
    """
    path = Path(os.path.realpath(path))  # of a link: the file, not the link
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # matplotlib reads the suffix
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
