"""Memories, multipliers, adders and registers as yosys maps them do what the RTL does, cycle by cycle: it is the models that are tested."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Literal

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Cat, ClockDomain, Elaboratable, Module, Mux, Signal, signed
from amaranth.lib.memory import Memory

from rtl_gen import tools
from rtl_gen.build import _FLOWS
from rtl_gen.verilog import to_verilog
from sim.cells import Cell, bitstream_verilog, netlist_verilog
from sim.netlist import block_models

CYCLES = 5000
SHAPES = {
    "ecp5": [(36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384), (20, 700)],
    "ice40": [(16, 256), (8, 512), (4, 1024), (2, 2048), (20, 300)],
}
"""Width and depth of memories; each kind of port is in it."""
BENCH = """
module bench (input clk);
  wire [{last}:0] expected, got;
  integer cycle = 0, wrong = 0;
  top expected_ (.clk(clk), .out(expected));
  netlist got_ (.clk(clk), .out(got));
  always @(negedge clk) begin
    cycle <= cycle + 1;
    if (got !== expected && wrong < 3) begin
      wrong <= wrong + 1;
      $display("cycle %0d: got %h, expected %h", cycle, got, expected);
    end
  end
endmodule
"""
MAIN = """
#include <cstdio>
#include "Vbench.h"
int main() {{
    Vbench bench;
    for (int edge = 0; edge < 2 * {cycles}; edge++) {{
        bench.clk = edge & 1;
        bench.eval();
    }}
    puts("done");
}}
"""


class Parts(Elaboratable):
    """Memories of ``shapes`` and a small one read at once, products of signed and unsigned factors, a sum, fed by a shift register."""

    def __init__(self, shapes: list[tuple[int, int]]):
        self.shapes = shapes
        self.sync = ClockDomain("sync", reset_less=True)
        self.out = Signal(sum(width for width, _ in shapes) + 4 + 24 + 24 + 16)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains += self.sync
        noise, chance = Signal(96, init=0x9E3779B97F4A7C15F39CC060), random.Random(5)
        m.d.sync += noise.eq(Cat(noise[7:], noise[:7]) + 0x2545F4914F6CDD1D8B1FA3C5)
        outs = []
        for number, (width, depth) in enumerate([*self.shapes, (4, 16)]):
            at_once = number == len(self.shapes)
            memory = Memory(shape=width, depth=depth, init=[chance.getrandbits(width) for _ in range(depth)])
            m.submodules[f"memory{number}"] = memory
            write, read = memory.write_port(), memory.read_port(domain="comb" if at_once else "sync")
            before, place = Signal.like(write.addr), Signal.like(write.addr)
            bits = len(write.addr)
            m.d.sync += before.eq(write.addr)
            m.d.comb += [
                write.addr.eq(Mux(noise[number : number + bits] < depth, noise[number : number + bits], number)),
                write.data.eq(noise[40 - number :]),
                write.en.eq(noise[60 + number]),
                place.eq(Mux(noise[70 + number], before, noise[20 + number : 20 + number + bits])),
                read.addr.eq(Mux(place < depth, place, 1)),
            ]
            if not at_once:
                m.d.comb += read.en.eq((read.addr != write.addr) & noise[80 + number])
            outs.append(read.data)
        # Signals of their own for the unsigned factors: yosys 0.70 writes the unsigned product of signed wires as a signed one.
        a, b, c, d = Signal(signed(12)), Signal(signed(12)), Signal(12), Signal(12)
        products = [Signal(24), Signal(24)]
        m.d.sync += [a.eq(noise), b.eq(noise[30:]), c.eq(noise[9:]), d.eq(noise[44:])]
        m.d.sync += [products[0].eq(a * b), products[1].eq(c * d)]
        total = Signal(16)
        with m.If(noise[3]):
            m.d.sync += total.eq(total + noise[50:66] - a)
        with m.Elif(noise[4:8] == 0):
            m.d.sync += total.eq(0x5A5A)
        m.d.comb += self.out.eq(Cat(*outs, *products, total))
        return m


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ecp5", "ice40"])
def test_as_the_rtl(family: Literal["ecp5", "ice40"], tmp_path: Path) -> None:
    parts = Parts(SHAPES[family])
    (tmp_path / "top.il").write_text(rtlil.convert(parts, name="top", ports=[parts.sync.clk, parts.out]))
    (tmp_path / "top.ys").write_text(f"read_rtlil top.il\n{_FLOWS[family].synthesis}\nwrite_json top.json\n")
    subprocess.run([tools.find("yosys").path, "-q", "top.ys"], cwd=tmp_path, check=True, capture_output=True)
    design = json.loads((tmp_path / "top.json").read_text())
    kinds = {cell["type"] for cell in design["modules"]["top"]["cells"].values()}
    assert kinds >= {"ecp5": {"DP16KD", "MULT18X18D", "TRELLIS_DPR16X4", "CCU2C"}, "ice40": {"SB_RAM40_4K", "SB_MAC16", "SB_CARRY"}}[family]
    again = Parts(SHAPES[family])
    rtl, bench = to_verilog(again, "top", [again.sync.clk, again.out]), BENCH.format(last=len(parts.out) - 1)
    (tmp_path / "bench.v").write_text("\n".join([rtl, netlist_verilog(design), *block_models(family), bench]))
    (tmp_path / "main.cpp").write_text(MAIN.format(cycles=CYCLES))
    command = ["verilator", "--cc", "--exe", "--build", "-O3", "-Wno-fatal", "-Wno-lint", "--top-module", "bench", "--x-assign", "unique"]
    command += ["--Mdir", "obj", "-o", "bench", "-MAKEFLAGS", "OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O0", "bench.v", "main.cpp"]
    done = subprocess.run(command, cwd=tmp_path, env=tools.verilator_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert subprocess.run([tmp_path / "obj" / "bench"], capture_output=True, text=True, check=True).stdout.splitlines() == ["done"]


def test_unknown_cells_and_modes_are_refused() -> None:
    def module(cell: dict[str, object]) -> dict[str, object]:
        return {"modules": {"top": {"ports": {}, "cells": {"it": cell}}}}

    with pytest.raises(RuntimeError, match="it: SB_I2C is not modelled"):
        netlist_verilog(module({"type": "SB_I2C", "parameters": {}, "connections": {}, "port_directions": {}}))
    registers = {"type": "MULT18X18D", "parameters": {"REG_OUTPUT_CLK": "CLK0"}, "connections": {}, "port_directions": {}}
    with pytest.raises(RuntimeError, match="it: a MULT18X18D with REG_OUTPUT_CLK 'CLK0' is not modelled"):
        netlist_verilog(module(registers))


def test_open_inputs_read_what_the_hardware_gives_them() -> None:
    def cell(type_: str, **parameters: str) -> Cell:
        return Cell("it", {"type": type_, "parameters": parameters, "connections": {"CEN": [], "I0": [], "WEA": []}, "port_directions": {}})

    assert (cell("ICESTORM_LC")("CEN"), cell("ICESTORM_LC")("I0")) == ("1'b1", "1'b0")
    assert cell("DP16KD").muxed("WEA") == "1'b1"
    assert cell("DP16KD", WEAMUX="INV").muxed("WEA") == "~1'b1"
    assert cell("DP16KD", WEAMUX="0").muxed("WEA") == "1'b0"


def routed(**cells: tuple[str, dict[str, str], dict[str, int]]) -> str:
    """Verilog of cells as nextpnr writes an ECP5's: type, parameters, nets of ports of one bit."""
    design = {
        name: {
            "type": kind,
            "parameters": parameters,
            "connections": {port: [net] for port, net in nets.items()},
            "port_directions": {},
        }
        for name, (kind, parameters, nets) in cells.items()
    }
    ports = {"clk25": {"direction": "input", "bits": [1]}}
    return netlist_verilog({"modules": {"top": {"cells": design, "ports": ports}}})


@pytest.mark.parametrize(("source", "port", "net"), [("1 ", "DI", 5), ("0 ", "M", 6)])
def test_a_register_takes_its_lut_or_what_passes_it(source: str, port: str, net: int) -> None:
    text = routed(ff=("TRELLIS_FF", {"SD": source, "CEMUX": "1 "}, {"CLK": 2, port: net, "Q": 4}))
    assert f"n4 <= n{net};" in text


@pytest.mark.parametrize(("low", "high", "wanted"), [("F", "F1", r"n9 ? n7 : \mux.lut "), ("FXA", "FXB", "n9 ? n7 : n8")])
def test_multiplexers_behind_luts(low: str, high: str, wanted: str) -> None:
    text = routed(mux=("TRELLIS_COMB", {"INITVAL": "1"}, {"A": 3, high: 7, low: 8, "M": 9, "OFX": 10}))
    assert f"assign n10 = {wanted};" in text


def test_the_place_of_a_ram_s_writing_has_no_logic() -> None:
    assert routed(place=("TRELLIS_COMB", {"MODE": "RAMW_BLOCK"}, {})) == routed()
    with pytest.raises(RuntimeError, match="RAMW_BLOCK is not modelled"):
        routed(place=("TRELLIS_COMB", {"MODE": "RAMW_BLOCK"}, {"F": 3}))


def test_the_oscillator_comes_before_its_clock_tree() -> None:
    text = routed(
        pin=("TRELLIS_IO", {"DIR": "INPUT"}, {"B": 1, "O": 2}),
        tree=("DCCA", {}, {"CLKI": 2, "CLKO": 3}),
        pll=("EHXPLLL", {}, {"CLKI": 3, "CLKOS": 4, "LOCK": 5}),
    )
    assert "{n2} = io_clk;" in text
    assert "assign n3 = n2;" in text
    assert "clk25" not in text.replace("io_clk25", "")


CHIPDB = """
.ipcon_tile_bits 54 16
IpConfig.CBIT_0 B0[1]

.extra_cell 25 0 3 SPRAM
CLOCK 25 1 clk
WREN 25 3 lutff_4/in_1
DATAOUT_0 25 1 slf_op_0
SPRAM_EN 25 1 CBIT_0

"""
UNPACKED = """module netlist (input rx);
wire n1;
// (25, 1, 'clk')
wire n2;
// (24, 1, 'neigh_op_rgt_0')
// (25, 1, '{wire}')
SB_PLL40_2_PAD #(
) pll (
  .PLLOUTGLOBALA(n3), .PLLOUTGLOBALB(n1), .LOCK(n4)
);
endmodule
"""


def test_spram_of_a_bitstream() -> None:
    """Its clock and its outputs have names of their own, and one that nothing reads is not passed over in silence."""
    on, off = (f".ipcon_tile 25 1\n0{bit}\n" for bit in (1, 0))
    text = bitstream_verilog(UNPACKED.format(wire="slf_op_0"), on, CHIPDB)
    assert "SB_SPRAM256KA #() block_25_0_3 (.CLOCK({n1}), .WREN({1'b0}), .DATAOUT({n2}));" in text
    unread = UNPACKED.format(wire="slf_op_1")
    assert "SPRAM" not in bitstream_verilog(unread, off, CHIPDB)
    with pytest.raises(RuntimeError, match="the SPRAM at 25 0 3 is on and nothing reads it"):
        bitstream_verilog(unread, on, CHIPDB)
