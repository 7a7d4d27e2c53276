"""What goes on the chip: the core and its host link, between two clocks and a handful of pins."""

from __future__ import annotations

from math import prod
from typing import Any

from amaranth.hdl import Cat, Const, Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.fifo import AsyncFIFO
from amaranth.lib.wiring import In, Out

from casc_hw.errors import CascError
from rtl_gen.cycles import worst_cycles
from rtl_gen.gates.core import weight_words
from rtl_gen.gates.flash import PINS, FlashReader, FlashSpec
from rtl_gen.gates.link import HostLink, LinkSpec
from rtl_gen.plan import Plan

BAUD = 1_000_000
"""Bits a second on the wire: exact in the 12 and in the 25 MHz of the boards' oscillators."""


def link_spec(plan: Plan, clock_hz: float, baud: int = BAUD) -> LinkSpec:
    """The host link of ``plan``'s core where ``io`` runs at ``clock_hz``; CascError where the link cannot carry the network.

    The watchdog leaves the longest image there can be eight times the cycles it needs, ``sync`` being at least ``io``'s eighth.
    """
    shapes = [(plan.spec.readout if layer.neurons is None else layer.neurons).currents.shape for layer in plan.spec.layers]
    try:
        return LinkSpec(
            digest=bytes.fromhex(plan.digest),
            levels=plan.levels,
            margin=plan.margin,
            input_shape=plan.input_shape,
            input_max=plan.input_max,
            outputs=tuple(prod(shape) for shape in shapes),
            beat=plan.beat,
            clock_hz=clock_hz,
            watchdog=min(64 * worst_cycles(plan.spec) + 1_000_000, (1 << 32) - 1),
            baud=baud,
            grid=shapes[-1][1:],
            counting=plan.spec.counting,
        )
    except ValueError as error:
        raise CascError(f"{plan.net}: {error}; choose another baud rate or a smaller network") from error


class BoardTop(wiring.Component):
    """``core`` behind a UART; where its weights are loaded, they come from flash. The clock domains ``io`` (``spec.clock_hz``) and ``sync``
    come from outside.

    ``core`` is an Elaboratable with ``pixels``, ``result``, ``busy`` and ``error`` in ``sync``, perhaps ``weights`` (see
    `rtl_gen.gates.core.Core`); the link resets it, as `ResetInserter` does.

    Members
    -------
    rx, tx: the UART's pins (``rx`` not synchronised).
    leds: Out: the highest is error, the next busy, those below show the class in binary; of one, busy; of two, busy and error.
    busy: Out: an image or an answer is under way, or weights are being read (``io``).
    flash: Out, where weights are loaded: the pins of a flash that holds them, see `FlashReader`. Wrong ones are an error for good: no pixel
        is taken, and the link answers images with a fault.
    """

    def __init__(self, core: Any, spec: LinkSpec, leds: int):
        self.core, self.spec = core, spec
        self.flash_spec = FlashSpec.of(weight_words(core.spec)) if hasattr(core, "weights") else None
        flash = {} if self.flash_spec is None else {"flash": Out(PINS)}
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "leds": Out(leds), "busy": Out(1)} | flash)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        core = self.core
        m.submodules.link = link = HostLink(self.spec)
        m.submodules.core = ResetInserter({"sync": link.core_reset})(core)
        m.d.comb += [link.rx.eq(self.rx), self.tx.eq(link.tx)]
        wiring.connect(m, link.pixels, core.pixels)
        wiring.connect(m, core.result, link.result)

        state, seen = Signal(2), Signal(2)  # busy, error; a flip-flop before the crossing
        m.d.sync += state.eq(Cat(core.busy, core.error) & ~link.core_reset.replicate(2))
        m.submodules.state_cross = FFSynchronizer(state, seen, o_domain="io")
        reading, no_weights = self._weights(m)
        m.d.comb += self.busy.eq(~link.idle | seen[0] | reading)
        lights = Cat(self.busy, link.failed | seen[1] | no_weights)
        below = max(len(self.leds) - 2, 0)
        m.d.comb += self.leds.eq(Cat(link.shown[:below], Const(0, max(below - 8, 0)), lights) if below else lights)
        return m

    def _weights(self, m: Module) -> tuple[Any, Any]:
        """Read the core's weights, if it takes any; whether they are being read, and whether that has failed."""
        if self.flash_spec is None:
            return 0, 0
        m.submodules.flash = flash = FlashReader(self.flash_spec)
        m.submodules.weights_cross = cross = AsyncFIFO(
            width=len(self.core.weights.payload.as_value()), depth=4, w_domain="io", r_domain="sync"
        )
        wiring.connect(m, flash.pins, wiring.flipped(self.flash))
        m.d.comb += [
            cross.w_data.eq(flash.words.payload),
            cross.w_en.eq(flash.words.valid),
            flash.words.ready.eq(cross.w_rdy),
            self.core.weights.payload.eq(cross.r_data),
            self.core.weights.valid.eq(cross.r_rdy),
            cross.r_en.eq(self.core.weights.ready),
        ]
        return flash.busy, flash.failed
