"""1BitSquared iCEBreaker: an iCE40 UP5K, a 12 MHz oscillator on the PLL's pad, two LEDs, and a UART on the USB plug (FT2232H)."""

from __future__ import annotations

from amaranth_boards.icebreaker import ICEBreakerPlatform

from boards.platform import Board
from rtl_gen.budget import Budget

BOARDS = (
    Board(
        name="icebreaker",
        title="1BitSquared iCEBreaker, iCE40UP5K",
        family="ice40",
        budget=Budget("iCE40UP5K", 5280, 5280, 30, "SB_RAM40_4K", 8, spram=4),
        amaranth_platform=ICEBreakerPlatform,
        source_hz=12e6,
        limit_hz=185e6,
        leds=2,
        nextpnr=("--up5k", "--package", "sg48"),
    ),
)
