"""The boards: one file per family, looked up by name here."""

from __future__ import annotations

from boards import icebreaker, ulx3s
from boards.platform import Board
from casc_hw.errors import CascError

_ALIASES = {"ulx3s": "ulx3s-85f"}


def all_boards() -> tuple[Board, ...]:
    """Every board, smallest device first within a family."""
    return icebreaker.BOARDS + ulx3s.BOARDS


def get(name: str) -> Board:
    """The board of that name; ``ulx3s`` is the 85F. Raises :class:`CascError` for an unknown one."""
    boards = {board.name: board for board in all_boards()}
    board = boards.get(_ALIASES.get(name, name))
    if board is None:
        raise CascError(f"board: {name!r} is not known; choose one of {', '.join(sorted([*boards, *_ALIASES]))}")
    return board
