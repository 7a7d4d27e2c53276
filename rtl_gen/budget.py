"""What a device has to give: the budget every plan is drawn up under and every build is reported against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BLOCK_RAM_BITS = {"DP16KD": 18 * 1024, "SB_RAM40_4K": 4 * 1024}
"""Bits in one block RAM of each kind."""


@dataclass(frozen=True)
class Budget:
    """Resources of one device, as nextpnr counts them.

    ``lut4`` and ``ff`` are 4-input look-up tables and flip-flops, ``block_rams`` is in blocks of ``block_ram_kind``, ``dsps`` in
    18x18 (ECP5) or 16x16 (UP5K) multipliers, ``spram`` in single-port blocks of 16 Ki x 16 bits, which start with unknown contents.
    """

    name: str
    lut4: int
    ff: int
    block_rams: int
    block_ram_kind: Literal["DP16KD", "SB_RAM40_4K"]
    dsps: int
    spram: int = 0

    def times(self, factor: int) -> Budget:
        """A device so many times as large."""
        counts = (self.lut4, self.ff, self.block_rams, self.dsps, self.spram)
        lut4, ff, block_rams, dsps, spram = (factor * count for count in counts)
        return Budget(f"{factor} x {self.name}", lut4, ff, block_rams, self.block_ram_kind, dsps, spram)

    @property
    def block_ram_bits(self) -> int:
        """Bits in one block RAM."""
        return BLOCK_RAM_BITS[self.block_ram_kind]
