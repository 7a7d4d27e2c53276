"""Netlists of ECP5 and iCE40 cells, as yosys and nextpnr write them in JSON, to Verilog that any simulator takes.

Small cells become expressions: LUTs, carries, flip-flops, alone and packed. Blocks become instances of the models in ``blocks_ecp5.v``
and ``blocks_ice40.v`` and of those that come with yosys. The PLL is left out: its outputs become ports, and so do the pins behind their
buffers. What an open input reads is what the hardware gives it: see `_HIGH`. A cell or a mode that is not known is a RuntimeError.

Sources: Project IceStorm's and Project Trellis' documentation of tiles, Lattice FPGA-TN-02204 (ECP5 memory), FPGA-TN-02205 (ECP5 DSP).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any

_BLOCKS = ("DP16KD", "MULT18X18D", "TRELLIS_DPR16X4", "SB_RAM40_4K", "SB_MAC16", "SB_SPRAM256KA")
"""Cells that become instances."""
_PACKED = {"ICESTORM_RAM": "SB_RAM40_4K", "ICESTORM_DSP": "SB_MAC16", "ICESTORM_SPRAM": "SB_SPRAM256KA"}
"""Blocks as nextpnr packs them, a port for each bit, and the cells with vectors that they were."""
_PADS = {"SB_IO": ("PACKAGE_PIN", "D_IN_0", "D_OUT_0"), "TRELLIS_IO": ("B", "O", "I")}
"""Buffers of pins: the ports for the pin, for what comes in, and for what goes out."""
_HIGH = {"CE", "CEN", "RCLKE", "WCLKE"}
"""iCE40 inputs that are high where they are left open; all others are low. ECP5 inputs are all high."""


class Cell:
    """A cell of a netlist in JSON."""

    def __init__(self, name: str, cell: dict[str, Any]):
        self.name, self.type = name, cell["type"]
        self.parameters, self.ports = cell["parameters"], cell["connections"]
        self.directions = cell["port_directions"]

    def __call__(self, port: str) -> str:
        """The wire at an input or output of one bit."""
        bits = self.ports.get(port)
        if not bits:
            return f"1'b{int(port in _HIGH or not self.type.startswith(('SB_', 'ICESTORM_')))}"
        return wire(bits[0])

    def muxed(self, port: str) -> str:
        """The wire behind an ECP5 input's multiplexer: as it is, inverted, or a constant."""
        match self.word(f"{port}MUX", port):
            case "0" | "1" as constant:
                return f"1'b{constant}"
            case "INV":
                return f"~{self(port)}"
        return self(port)

    def gives(self, port: str, expression: str) -> list[str]:
        """An output's assignment, if anything reads it."""
        return [f"assign {self(port)} = {expression};"] if self.ports.get(port) else []

    def number(self, parameter: str, default: int = 0) -> int:
        """A parameter that is a number; bits that are left open are 0."""
        text = self.parameters.get(parameter)
        return default if text is None else int(text.replace("x", "0"), 2)

    def word(self, parameter: str, default: str) -> str:
        """A parameter that is a word; yosys puts a blank behind those of digits only."""
        return str(self.parameters.get(parameter, default)).strip()

    def expect(self, **parameters: str) -> None:
        """Refuse a mode that the text made of this cell does not have."""
        for name, value in parameters.items():
            if self.word(name, value) != value:
                raise RuntimeError(f"{self.name}: a {self.type} with {name} {self.parameters[name]!r} is not modelled")


def wire(bit: int | str) -> str:
    """The name of a net, or a constant."""
    return f"n{bit}" if isinstance(bit, int) else f"1'b{bit}"


def netlist_verilog(design: dict[str, Any]) -> str:
    """Module ``netlist`` of the module ``top`` in ``design``: its own ports, those with a buffer behind it, and where there is a PLL
    ``io_clk``, ``clk`` and ``locked``."""
    top = design["modules"]["top"]
    cells = [Cell(name, cell) for name, cell in top["cells"].items() if cell["type"] != "$scopeinfo"]
    clocks = clock_nets(cells)
    ports = {name: (port["direction"], list(map(wire, port["bits"]))) for name, port in top["ports"].items()}
    pins = {port["bits"][0]: name for name, port in top["ports"].items()}
    lines: list[str] = []
    starts: dict[str, str] = {}  # registers, and what they hold at first
    for cell in cells:
        if cell.type in _PADS:
            pin, comes, goes = (cell.ports.get(port) for port in _PADS[cell.type])
            assert pin is not None
            del ports[pins[pin[0]]]
            if comes and wire(comes[0]) not in clocks.values():
                ports[pins[pin[0]]] = "input", [wire(comes[0])]
            elif goes:
                ports[pins[pin[0]]] = "output", [wire(goes[0])]
        elif cell.type not in _PLLS and cell("GLOBAL_BUFFER_OUTPUT") not in clocks.values():
            lines += _text(cell, starts)
    ports |= {name: ("input", [net]) for name, net in clocks.items()}
    nets = {bit for cell in cells for bits in cell.ports.values() for bit in bits if isinstance(bit, int)}
    head = ", ".join(f"{direction} [{len(bits) - 1}:0] {name}" for name, (direction, bits) in ports.items())
    declared = (f"logic {name}{f' = {starts[name]}' if name in starts else ''};" for name in map(wire, sorted(nets)))
    joined = (
        f"assign {f'{{{inside}}} = {name}' if direction == 'input' else f'{name} = {{{inside}}}'};"
        for name, (direction, bits) in ports.items()
        for inside in [", ".join(reversed(bits))]
    )
    return "\n".join([f"module netlist ({head});", *declared, *joined, *lines, "endmodule", ""])


_PLLS = ("EHXPLLL", "SB_PLL40_2_PAD", "ICESTORM_PLL")
_PLL_PORTS = {"io_clk": "PLLOUTGLOBALA", "clk": "PLLOUTGLOBALB", "locked": "LOCK"}
"""What the PLL of an iCE40 gives, before it is placed."""


def clock_nets(cells: Iterable[Cell]) -> dict[str, str]:
    """The nets that carry the oscillator, the PLL's clock, and its lock, if there is a PLL."""
    pll = next((cell for cell in cells if cell.type in _PLLS), None)
    if pll is None:
        return {}
    if pll.type == "EHXPLLL":
        trees = {cell("CLKO"): cell("CLKI") for cell in cells if cell.type == "DCCA"}  # where it is placed, the oscillator's is before it
        return {"io_clk": trees.get(pll("CLKI"), pll("CLKI")), "clk": pll("CLKOS"), "locked": pll("LOCK")}
    if pll.type == "SB_PLL40_2_PAD":
        return {name: pll(port) for name, port in _PLL_PORTS.items()}
    # Once placed, its outputs are the clock trees' and have no wire to the buffers there.
    trees = {cell.name[-len("_pllout_a") :]: cell("GLOBAL_BUFFER_OUTPUT") for cell in cells if cell.type == "SB_GB"}
    return {"io_clk": trees["_pllout_a"], "clk": trees["_pllout_b"], "locked": pll("LOCK")}


def _text(cell: Cell, starts: dict[str, str]) -> list[str]:
    """What a cell does, in Verilog; its register goes to ``starts``."""
    if cell.type in _PACKED:
        return [_packed(cell)]
    if cell.type in _BLOCKS:
        return [_block(cell)]
    if cell.type.startswith("SB_DFF"):
        return [_dff(cell, starts)]
    match cell.type:
        case "SB_GB":
            return cell.gives("GLOBAL_BUFFER_OUTPUT", cell("USER_SIGNAL_TO_GLOBAL_BUFFER"))
        case "SB_LUT4":
            return cell.gives("O", _lut(cell, "LUT_INIT", "I0", "I1", "I2", "I3"))
        case "SB_CARRY":
            return cell.gives("CO", _majority(cell("I0"), cell("I1"), cell("CI")))
        case "ICESTORM_LC":
            return _logic_cell(cell, starts)
        case "LUT4":
            return cell.gives("Z", _lut(cell, "INIT", *"ABCD"))
        case "PFUMX":
            return cell.gives("Z", f"{cell('C0')} ? {cell('ALUT')} : {cell('BLUT')}")
        case "L6MUX21":
            return cell.gives("Z", f"{cell('SD')} ? {cell('D1')} : {cell('D0')}")
        case "CCU2C":
            middle = f"\\{cell.name}.middle "
            return [
                f"wire {middle};",
                *_carry(cell, "INIT0", "INJECT1_0", ("A0", "B0", "C0", "D0"), cell("CIN"), "S0", middle),
                *_carry(cell, "INIT1", "INJECT1_1", ("A1", "B1", "C1", "D1"), middle, "S1", cell("COUT") if cell.ports.get("COUT") else ""),
            ]
        case "TRELLIS_FF":
            return [_trellis_ff(cell, starts)]
        case "TRELLIS_COMB":
            return _comb(cell)
        case "TRELLIS_RAMW":  # hands data and addresses on to the LUTs that are RAM
            pins = [*zip(("WADO0", "WADO1", "WADO2", "WADO3"), ("D0", "B0", "C0", "A0"), strict=True)]
            pins += zip(("WDO0", "WDO1", "WDO2", "WDO3"), ("C1", "A1", "D1", "B1"), strict=True)
            return [line for out, in_ in pins for line in cell.gives(out, cell(in_))]
        case "DCCA":
            return cell.gives("CLKO", cell("CLKI"))
    raise RuntimeError(f"{cell.name}: {cell.type} is not modelled")


def _lut(cell: Cell, init: str, *ports: str) -> str:
    """The bit of ``init`` at the address whose lowest bit comes first."""
    size = 1 << len(ports)
    return f"{size}'h{cell.number(init):x} >> {{{', '.join(cell(port) for port in reversed(ports))}}}"


def _majority(a: str, b: str, c: str) -> str:
    return f"{a} & {b} | ({a} | {b}) & {c}"


def _register(
    q: str, d: str, clock: str, *, enable: str, reset: str, value: str, asynchronous: bool = False, reset_first: bool = True
) -> str:
    """A flip-flop; ``reset_first``: a reset at the clock's edge does not ask for ``enable``. ``clock`` may be inverted."""
    edge = f"negedge {clock[1:]}" if clock.startswith("~") else f"posedge {clock}"
    if asynchronous:
        level = f"negedge {reset[1:]}" if reset.startswith("~") else f"posedge {reset}"
        return f"always @({edge}, {level}) if ({reset}) {q} <= {value}; else if ({enable}) {q} <= {d};"
    if reset_first:
        return f"always @({edge}) if ({reset}) {q} <= {value}; else if ({enable}) {q} <= {d};"
    return f"always @({edge}) if ({enable}) {q} <= {reset} ? {value} : {d};"


def _dff(cell: Cell, starts: dict[str, str]) -> str:
    """SB_DFF, then N for the falling edge, E for an enable, S or R for set or reset, and before these S where it is synchronous."""
    falling, enabled, to = re.findall(r"SB_DFF(N?)(E?)(SS|SR|S|R|)", cell.type)[0]
    synchronous, to = len(to) == 2, to[-1:]
    starts[cell("Q")] = "1'b0"
    return _register(
        cell("Q"),
        cell("D"),
        "~" * bool(falling) + cell("C"),
        enable=cell("E") if enabled else "1'b1",
        reset=cell(to) if to else "1'b0",
        value=f"1'b{int(to == 'S')}",
        asynchronous=bool(to) and not synchronous,
        reset_first=False,
    )


def _logic_cell(cell: Cell, starts: dict[str, str]) -> list[str]:
    """An iCE40's LUT, carry and flip-flop."""
    lines = []
    if cell.number("CARRY_ENABLE"):
        carry = f"1'b{cell.number('CIN_SET')}" if cell.number("CIN_CONST") else cell("CIN")
        lines += cell.gives("COUT", _majority(cell("I1"), cell("I2"), carry))
    lut = _lut(cell, "LUT_INIT", "I0", "I1", "I2", "I3")
    lines += cell.gives("LO", lut)
    if not cell.number("DFF_ENABLE"):
        return lines + cell.gives("O", lut)
    q = cell("O")
    starts[q] = "1'b0"
    flip_flop = _register(
        q,
        f"{q}_d",
        "~" * cell.number("NEG_CLK") + cell("CLK"),
        enable=cell("CEN"),
        reset=cell("SR"),
        value=f"1'b{cell.number('SET_NORESET')}",
        asynchronous=bool(cell.number("ASYNC_SR")),
        reset_first=False,
    )
    return [*lines, f"wire {q}_d = {lut};", flip_flop]


def _carry(cell: Cell, init: str, inject: str, inputs: Sequence[str], carry: str, sum_: str, out: str) -> list[str]:
    """Half of a CCU2C: a LUT of four, which propagates, and its quarter of two inputs, which generates, unless ``inject`` stops both."""
    lut, pair = _lut(cell, init, *inputs), f"4'h{cell.number(init) & 15:x} >> {{{cell(inputs[1])}, {cell(inputs[0])}}}"
    name = f"\\{cell.name}.{sum_} "
    lines = [f"wire {name} = {lut};"]
    if cell.word(inject, "YES" if cell.type == "CCU2C" else "NO") == "YES":
        return lines + cell.gives(sum_, name) + ([f"assign {out} = {name} & {carry};"] if out else [])
    generate = f"\\{cell.name}.{sum_}.pair "
    lines += [f"wire {generate} = {pair};", *cell.gives(sum_, f"{name} ^ {carry}")]
    return lines + ([f"assign {out} = {name} ? {carry} : {generate};"] if out else [])


def _trellis_ff(cell: Cell, starts: dict[str, str]) -> str:
    cell.expect(LSRMODE="LSR")
    value = f"1'b{int(cell.word('REGSET', 'RESET') == 'SET')}"
    starts[cell("Q")] = value
    return _register(
        cell("Q"),
        cell("DI" if cell.word("SD", "1") == "1" else "M"),  # from the LUT before it, or past it
        cell.muxed("CLK"),
        enable=cell.muxed("CE") if "CEMUX" in cell.parameters else "1'b1",
        reset=cell.muxed("LSR") if cell.ports.get("LSR") else "1'b0",
        value=value,
        asynchronous=cell.word("SRMODE", "LSR_OVER_CE") == "ASYNC",
    )


def _comb(cell: Cell) -> list[str]:
    """An ECP5's LUT as nextpnr packs it, alone, as half of a CCU2C or as a RAM, and the multiplexer behind it."""
    match cell.word("MODE", "LOGIC"):
        case "LOGIC":
            lut = f"\\{cell.name}.lut "
            high, low = (cell("FXB"), cell("FXA")) if cell.ports.get("FXA") or cell.ports.get("FXB") else (cell("F1"), lut)
            lines = [f"wire {lut} = {_lut(cell, 'INITVAL', *'ABCD')};", *cell.gives("F", lut)]
            return lines + cell.gives("OFX", f"{cell('M')} ? {high} : {low}")
        case "CCU2":
            return _carry(cell, "INITVAL", "CCU2_INJECT1", "ABCD", cell("FCI"), "F", cell("FCO") if cell.ports.get("FCO") else "")
        case "DPRAM":  # read like a LUT, so by addresses in the order D, B, C, A
            ram, clock = f"\\{cell.name}.ram ", cell.muxed("WCK")
            init = sum((cell.number("INITVAL") >> (d << 3 | c << 2 | b << 1 | a) & 1) << (a << 3 | c << 2 | b << 1 | d)
                       for a, b, c, d in product((0, 1), repeat=4))  # fmt: skip
            edge = f"negedge {clock[1:]}" if clock.startswith("~") else f"posedge {clock}"
            write = ", ".join(cell(f"WAD{bit}") for bit in (3, 2, 1, 0))
            return [
                f"logic [15:0] {ram} = 16'h{init:x};",
                f"always @({edge}) if ({cell.muxed('WRE')}) {ram}[{{{write}}}] <= {cell('WD')};",
                *cell.gives("F", f"{ram}[{{{', '.join(map(cell, 'ACBD'))}}}]"),
            ]
        case "RAMW_BLOCK" if not any(cell.ports.values()):  # the place that TRELLIS_RAMW takes up
            return []
    raise RuntimeError(f"{cell.name}: a TRELLIS_COMB of mode {cell.word('MODE', '')} is not modelled")


def _packed(cell: Cell) -> str:
    """An iCE40's packed block as an instance of the cell it was."""
    if any(cell.number(name) for name in ("NEG_CLK_R", "NEG_CLK_W")):
        raise RuntimeError(f"{cell.name}: a {cell.type} with a falling edge is not modelled")
    parameters = {name: text for name, text in cell.parameters.items() if not name.startswith("NEG_CLK_")}
    return _instance(_PACKED[cell.type], cell, parameters, _vectors(cell, "_"))


def _block(cell: Cell) -> str:
    """A block as an instance; an ECP5's with its ports' bits together."""
    parameters, kept = cell.parameters, set(cell.ports)
    if cell.type == "DP16KD":
        cell.expect(REGMODE_A="NOREG", REGMODE_B="NOREG", CSDECODE_A="0b000", CSDECODE_B="0b000")
        if not all(cell.muxed(port) in ("1'b0", "~1'b1") for port in ("RSTA", "RSTB")):
            cell.expect(RESETMODE="SYNC")
        rows = [cell.parameters.get(f"INITVAL_{row:02X}", "0") for row in range(64)]
        parameters = {"INIT": "".join(row.zfill(320) for row in reversed(rows))}
        modes = ("DATA_WIDTH_A", "DATA_WIDTH_B", "WRITEMODE_A", "WRITEMODE_B")
        parameters |= {name: cell.parameters[name] for name in modes if name in cell.parameters}
        kept = {f"{name}{port}" for name in ("DI", "DO", "AD", "CS", "CE", "OCE", "CLK", "WE", "RST") for port in "AB"}
    elif cell.type == "MULT18X18D":
        cell.expect(REG_INPUTA_CLK="NONE", REG_INPUTB_CLK="NONE", REG_PIPELINE_CLK="NONE", REG_OUTPUT_CLK="NONE")
        parameters, kept = {}, {"A", "B", "P", "SIGNEDA", "SIGNEDB"}
    elif cell.type == "TRELLIS_DPR16X4":
        cell.expect(WCKMUX="WCK", WREMUX="WRE")
        parameters = {"INITVAL": cell.parameters["INITVAL"]}
    single = cell.type in ("DP16KD", "MULT18X18D")
    ports = _vectors(cell, "") if single else {port: list(map(wire, bits)) for port, bits in cell.ports.items()}
    return _instance(cell.type, cell, parameters, {port: bits for port, bits in ports.items() if port in kept})


def _vectors(cell: Cell, between: str) -> dict[str, list[str]]:
    """Ports that are numbered, together, the lowest bit first."""
    vectors: dict[str, dict[int, str]] = defaultdict(dict)
    for port, bits in cell.ports.items():
        name, place = re.fullmatch(rf"(.*?)(?:{between}(\d+))?", port).groups()  # type: ignore[union-attr]
        unread = not bits and cell.directions[port] == "output"
        vectors[name][int(place or 0)] = f"\\{cell.name}.{port} " if unread else cell.muxed(port)
    return {port: [bits.get(place, "1'b1") for place in range(max(bits) + 1)] for port, bits in vectors.items()}


def _instance(model: str, cell: Cell, parameters: dict[str, str], ports: dict[str, list[str]]) -> str:
    """An instance of ``model``; each port's lowest bit first."""
    given = (f".{name}({_value(text)})" for name, text in parameters.items())
    connected = (f".{port}({{{', '.join(reversed(bits))}}})" for port, bits in ports.items() if bits)
    return f"{model} #({', '.join(given)}) \\{cell.name}  ({', '.join(connected)});"


def _value(text: str) -> str:
    """A parameter as a literal."""
    return f"{len(text)}'b{text}" if re.fullmatch("[01xz]+", text) else f'"{text.strip()}"'


def bitstream_verilog(text: str, configuration: str, chipdb: str) -> str:
    """Module ``netlist`` of what ``icebox_vlog`` makes of a bitstream, its comments included.

    The PLL's outputs become ports, and a pin's buffer always drives it. Multipliers and SPRAM, which ``icebox_vlog`` leaves out, are read
    from ``configuration`` (``iceunpack``) and from what Project IceStorm's ``chipdb`` says of their wires and bits.
    """
    pll = re.search(r"^SB_PLL40_2_PAD #\(.*?^\);\n", text, re.MULTILINE | re.DOTALL)
    if pll is None:
        raise RuntimeError("the bitstream has no PLL")
    nets = {name: re.search(rf"\.{port}\((\w+)\)", pll[0])[1] for name, port in _PLL_PORTS.items()}  # type: ignore[index]
    blocks = _unpacked_blocks(text, configuration, chipdb)
    driven = (f"assign {net} = {name};\n" for name, net in nets.items())
    text = text.replace(pll[0], "".join([*driven, *blocks]))
    text = re.sub(r"^(assign \w+ = )\w+ \? (\w+) : 1'bz;", r"\1\2;", text, flags=re.MULTILINE)
    text = re.sub(r"^wire \w+__io;\n", "", text, flags=re.MULTILINE)  # ports, told twice
    return text.replace("module netlist (", f"module netlist ({', '.join(f'input {name}' for name in nets)}, ", 1)


def _unpacked_blocks(text: str, configuration: str, chipdb: str) -> Iterator[str]:
    """Multipliers and SPRAM of a bitstream as instances."""
    nets: dict[tuple[str, str, str], str] = {}  # by tile and wire
    for name, wires in re.findall(r"^(?:wire|reg) (\w+)[^\n]*;\n((?:// .*\n)+)", text, re.MULTILINE):
        nets |= dict.fromkeys(re.findall(r"\((\d+), (\d+), '(.*?)'\)", wires), name)
    sections = re.findall(r"^\.(\w+)_tile (\d+) (\d+)\n([01\n]*)", configuration, re.MULTILINE)
    tiles = {(x, y): (kind, rows.split()) for kind, x, y, rows in sections}
    places = {
        kind: {name: (int(row), int(column)) for name, row, column in re.findall(r"IpConfig\.(CBIT_\d) B(\d+)\[(\d+)\]", section)}
        for kind, section in re.findall(r"^\.(\w+)_tile_bits.*\n((?:.+\n)*)", chipdb, re.MULTILINE)
    }
    for x, y, z, kind, section in re.findall(r"^\.extra_cell (\d+) (\d+) (\d+) (MAC16|SPRAM)\n((?:.+\n)*)", chipdb, re.MULTILINE):
        ports: dict[str, list[str]] = defaultdict(lambda: [""] * 32)
        parameters: dict[str, str] = {}
        for name, *tile, place in map(str.split, section.splitlines()):
            base, bit = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()  # type: ignore[union-attr]
            if place.startswith("CBIT_"):
                tile_kind, rows = tiles[tile[0], tile[1]]
                row, column = places[tile_kind][place]
                parameters[base] = rows[row][column] + parameters.get(base, "")
            else:
                net = nets.get((tile[0], tile[1], place)) or nets.get((tile[0], tile[1], f"lutff_global/{place}"))
                unread = base in ("O", "CO", "DATAOUT")
                ports[base][int(bit or 0)] = net or (f"\\block_{x}_{y}_{z}.{name} " if unread else f"1'b{int(base in _HIGH)}")
        on, read = parameters.pop("SPRAM_EN", None), any(net.startswith("n") for net in ports["O"] + ports["DATAOUT"])
        if on == "1" and not read:
            raise RuntimeError(f"the SPRAM at {x} {y} {z} is on and nothing reads it")
        if on != "0" and read:
            given = "".join(f".{name}({len(value)}'b{value}), " for name, value in parameters.items())[:-2]
            connected = ", ".join(f".{port}({{{', '.join(filter(None, reversed(bits)))}}})" for port, bits in ports.items() if any(bits))
            yield f"{'SB_MAC16' if kind == 'MAC16' else 'SB_SPRAM256KA'} #({given}) block_{x}_{y}_{z} ({connected});\n"
