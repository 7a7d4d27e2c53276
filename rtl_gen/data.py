"""Files that are written, for the command line; `casc_hw.data` reads."""

from __future__ import annotations

import os
from pathlib import Path

from casc_hw.errors import CascError


def write_text(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all."""
    if not path.name:
        raise CascError(f"{str(path)!r}: names no file; give one")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CascError(f"{path}: cannot be written: {error.strerror or error}; choose another place") from error
