"""The core for somebody else's SoC: AXI4-Stream in and out."""

from __future__ import annotations

from amaranth.hdl import ClockDomain, Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.core import Core, CoreSpec


class AxiCore(wiring.Component):
    """`Core` with the port names of AXI4-Stream.

    Members
    -------
    aclk, aresetn: clock, and synchronous reset, active low.
    s_axis_tdata, _tvalid, _tready, _tlast: In: one byte a pixel, the image's first pixel in the lowest byte of its first
        transfer, ``pixels.beat`` a transfer; ``tlast`` with an image's last. A byte above the pixel maximum counts as the maximum.
    m_axis_tdata, _tvalid, _tready, _tlast: Out: 32-bit words, see `rtl_gen.gates.readout.WORD`.
    s_axis_weights_tdata, _tvalid, _tready, _tlast: In, where weights are loaded: 16-bit words, see `rtl_gen.gates.core.weight_words`.
    busy, error: Out, see `Core`.
    """

    def __init__(self, spec: CoreSpec):
        self.spec = spec
        weights = {"tdata": In(16), "tvalid": In(1), "tready": Out(1), "tlast": In(1)} if spec.stored else {}
        super().__init__(
            {f"s_axis_weights_{name}": member for name, member in weights.items()}
            | {
                "aclk": In(1),
                "aresetn": In(1),
                "s_axis_tdata": In(8 * spec.pixels.beat),
                "s_axis_tvalid": In(1),
                "s_axis_tready": Out(1),
                "s_axis_tlast": In(1),
                "m_axis_tdata": Out(32),
                "m_axis_tvalid": Out(1),
                "m_axis_tready": In(1),
                "m_axis_tlast": Out(1),
                "busy": Out(1),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        maximum = self.spec.pixels.maximum
        m.domains.sync = sync = ClockDomain(local=True)
        m.submodules.core = core = Core(self.spec)
        m.d.comb += [sync.clk.eq(self.aclk), sync.rst.eq(~self.aresetn)]
        if self.spec.stored:
            m.d.comb += [
                core.weights.valid.eq(self.s_axis_weights_tvalid),
                self.s_axis_weights_tready.eq(core.weights.ready),
                core.weights.p.data.eq(self.s_axis_weights_tdata),
                core.weights.p.last.eq(self.s_axis_weights_tlast),
            ]
        for lane in range(self.spec.pixels.beat):
            byte = self.s_axis_tdata.word_select(lane, 8)
            m.d.comb += core.pixels.p.data[lane].eq(Mux(byte > maximum, maximum, byte))
        m.d.comb += [
            core.pixels.valid.eq(self.s_axis_tvalid),
            self.s_axis_tready.eq(core.pixels.ready),
            core.pixels.p.last.eq(self.s_axis_tlast),
            self.m_axis_tvalid.eq(core.result.valid),
            core.result.ready.eq(self.m_axis_tready),
            self.m_axis_tdata.eq(core.result.p.data),
            self.m_axis_tlast.eq(core.result.p.last),
            self.busy.eq(core.busy),
            self.error.eq(core.error),
        ]
        return m
