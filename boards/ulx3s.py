"""Radiona ULX3S: an ECP5 from 12F to 85F, a 25 MHz oscillator, eight LEDs, and a UART on the USB plug (FT231X)."""

from __future__ import annotations

from amaranth_boards.ulx3s import ULX3S_12F_Platform, ULX3S_25F_Platform, ULX3S_45F_Platform, ULX3S_85F_Platform

from boards.platform import Board
from rtl_gen.budget import Budget

_DEVICES = {  # the 12F is the 25F's die, and nextpnr offers all of it
    "12": (ULX3S_12F_Platform, Budget("LFE5U-12F", 24288, 24288, 56, "DP16KD", 28)),
    "25": (ULX3S_25F_Platform, Budget("LFE5U-25F", 24288, 24288, 56, "DP16KD", 28)),
    "45": (ULX3S_45F_Platform, Budget("LFE5U-45F", 43848, 43848, 108, "DP16KD", 72)),
    "85": (ULX3S_85F_Platform, Budget("LFE5U-85F", 83640, 83640, 208, "DP16KD", 156)),
}

BOARDS = tuple(
    Board(
        name=f"ulx3s-{size}f",
        title=f"Radiona ULX3S, {budget.name}",
        family="ecp5",
        budget=budget,
        amaranth_platform=platform,
        source_hz=25e6,
        limit_hz=257e6,
        leds=8,
        nextpnr=(f"--{size}k", "--package", "CABGA381", "--speed", "6"),
    )
    for size, (platform, budget) in _DEVICES.items()
)
