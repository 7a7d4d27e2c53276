"""A convolution's way over its map: events become weight rows, cell by cell."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from casc_hw.fixed import Interval
from rtl_gen.gates.streams import EventFormat, MapShape, place_bits, shape_of, step_layout

HAZARD = 3
"""Marks that must lie between the one that puts a column into the row memory and the one that takes it out (see `Synapses`)."""


@dataclass(frozen=True)
class Geometry:
    """Which sources reach which neurons.

    Padded coordinates are ``Y = y + padding``. An input row belongs to output row ``Y // stride`` and the ``taps - 1`` before it, with
    the kernel's row ``Y % stride + tap * stride``; columns likewise. A *cell* is an input row and an output column: its sources
    share their targets, the window of ``taps``. ``flat``: one cell, every source reaches every neuron (kernel = map).

    Attributes
    ----------
    source: shape of the map that sends.
    outputs: channels that receive.
    kernel, stride, padding: (vertical, horizontal).
    groups: of channels.
    """

    source: MapShape
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    flat: bool = False

    def __post_init__(self) -> None:
        channels = self.source[0]
        if self.flat and (self.kernel, self.stride, self.padding, self.groups) != ((1, 1), (1, 1), (0, 0), 1):
            raise ValueError("a flat geometry has no kernel")
        if channels % self.groups or self.outputs % self.groups:
            raise ValueError(f"{channels} to {self.outputs} channels are not divisible into {self.groups!r} groups")
        if any(padding >= kernel for padding, kernel in zip(self.padding, self.kernel, strict=True)):
            raise ValueError(f"padding {self.padding!r} is not less than the kernel {self.kernel!r}")
        if not self.flat and min(self.target[1:]) < 1:
            raise ValueError(f"kernel {self.kernel!r} is larger than the padded map {self.source!r}")

    @property
    def target(self) -> MapShape:
        """Shape of the map that receives."""
        if self.flat:
            return self.outputs, 1, 1
        _, height, width = self.source
        sizes = zip((height, width), self.kernel, self.stride, self.padding, strict=True)
        return (self.outputs, *((size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in sizes))  # type: ignore[return-value]

    @property
    def taps(self) -> tuple[int, int]:
        """Neurons, down and across, that one source of each channel reaches at most."""
        return -(-self.kernel[0] // self.stride[0]), -(-self.kernel[1] // self.stride[1])

    @property
    def phases(self) -> int:
        """Places a source can have in its stride."""
        return self.stride[0] * self.stride[1]

    @property
    def rows(self) -> int:
        """Input rows walked, those below the map that are needed to complete the last neurons included."""
        return 1 if self.flat else (self.target[1] - 1 + self.taps[0]) * self.stride[0] - self.padding[0]

    @property
    def columns(self) -> int:
        """Cells of a row in which a neuron's column is entered or completed."""
        return self.target[2] - 1 + self.taps[1]

    @property
    def kept_rows(self) -> bool:
        """Whether partial sums outlive a row."""
        return self.taps[0] > 1 or self.stride[0] > 1

    @property
    def sources(self) -> int:
        """Sources that a neuron's weight rows are for, one row for each of their phases."""
        channels, height, width = self.source
        return channels * height * width if self.flat else channels * self.phases


@dataclass(frozen=True)
class CellFormat:
    """What `Walk` makes of events, for weights of ``geometry`` in ``sets`` sets of groups.

    A transfer is an event (``row``: its weight row within a chunk, ``set``, ``value``), or with ``mark`` the end of a cell:

    ``first``, ``end``: the step's first cell, its last. ``empty``: instead of all cells, a step without events.
    ``emit``: the window's last neuron is complete. ``down``: the row completes an output row, partial sums move on by one tap.
    ``keep``: the leaving column is one of the map's. ``leave``, ``enter``: columns that leave and enter the window.
    ``top``, ``fresh``: the entering column is of the first row, and holds nothing yet; is of a row that begins an output row, and
    its first tap holds nothing. ``own_top``, ``own_fresh``: the same of this cell. Of a flat geometry, a step is one cell, and these
    flags are not there but for ``empty``. ``steps``: see `step_layout`.
    """

    geometry: Geometry
    sets: int
    value: Interval
    steps: bool = True

    @property
    def layout(self) -> data.StructLayout:
        column = unsigned(place_bits(self.geometry.target[2]))
        flags = ["mark", "empty"]
        if not self.geometry.flat:
            flags += ["first", "end", "emit", "down", "keep", "top", "fresh", "own_top", "own_fresh"]
        return data.StructLayout(
            dict.fromkeys(flags, 1)
            | {
                "step": step_layout(self.steps),
                "leave": column,
                "enter": column,
                "row": unsigned(place_bits(self.geometry.sources)),
                "set": unsigned(place_bits(self.sets)),
                "value": shape_of(self.value),
            }
        )

    @property
    def signature(self) -> stream.Signature:
        return stream.Signature(self.layout)


@dataclass(frozen=True)
class WalkSpec:
    """Attributes
    ----------
    events: what enters; its shape is the geometry's source.
    cells: what leaves.
    columns: cells of a row, at least the geometry's (see `HAZARD`).
    """

    events: EventFormat
    cells: CellFormat
    columns: int


class Walk(wiring.Component):
    """Walks the cells of each step in raster order, with the events of each; a step without events is one ``empty`` mark.

    A cycle an event, a cycle a cell. Sources that reach no neuron are dropped.

    Members
    -------
    i: In, events in wire order.
    o: Out, see `CellFormat`.
    """

    def __init__(self, spec: WalkSpec):
        self.spec = spec
        super().__init__({"i": In(spec.events.signature), "o": Out(spec.cells.signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        geometry, event, out = self.spec.cells.geometry, self.i.p, self.o.p
        channels, _, width = geometry.source
        sources = channels // self.spec.cells.sets
        m.d.comb += [out.step.eq(event.step), out.value.eq(event.value)]
        m.d.comb += out.set.eq(sum((event.channel >= sources * index for index in range(1, self.spec.cells.sets)), Const(0)))
        if geometry.flat:
            m.d.comb += out.row.eq(event.channel + channels * (event.x + width * event.y))
            touched = Signal()
            m.d.comb += [
                out.mark.eq(event.mark),
                out.empty.eq(event.mark & ~touched),
                self.o.valid.eq(self.i.valid),
                self.i.ready.eq(self.o.ready),
            ]
            with m.If(self.i.valid & self.i.ready):
                m.d.sync += touched.eq(~event.mark)
            return m

        (down, across), (padding_y, padding_x), (taps_y, taps_x) = geometry.stride, geometry.padding, geometry.taps
        rows, columns, last_column = geometry.rows, self.spec.columns, geometry.columns - 1
        y, column = Signal(range(max(rows, 2))), Signal(range(max(columns, 2)))
        edge = Signal(range(columns * across + 1), init=across - padding_x if across >= padding_x else 0)  # first x beyond the column
        phase, band = Signal(range(max(down, 2)), init=padding_y % down), Signal(range(rows + padding_y + 1), init=padding_y // down)
        first, end, row_end, bottom, here, lost, advance = Signal(), Signal(), Signal(), Signal(), Signal(), Signal(), Signal()
        # With padding beyond the stride the first columns end left of the map: count from where that is not negative.
        lead = max(padding_x - across, 0)
        m.d.comb += [
            first.eq((y == 0) & (column == 0)),
            bottom.eq(y == rows - 1),
            row_end.eq(column == columns - 1),
            end.eq(bottom & (column == last_column)),
            here.eq((event.y == y) & (event.x + lead < edge)),
            lost.eq((event.y >= rows) | (event.x >= geometry.columns * across - padding_x)),
        ]
        touched = Signal()  # the step has had an event
        empty = event.mark & ~touched
        next_first_row = end | (~row_end & (y == 0))
        next_phase0 = Mux(end, padding_y % down == 0, Mux(row_end, (phase == down - 1), phase == 0))
        m.d.comb += [
            out.mark.eq(event.mark | ~here),
            out.empty.eq(empty),
            out.first.eq(first),
            out.end.eq(end | empty),
            out.down.eq(phase == down - 1),
            out.keep.eq((column >= taps_x - 1) & (column <= last_column)),
            out.emit.eq(out.keep & out.down & (band >= taps_y - 1)),
            out.leave.eq(column - (taps_x - 1)),
            out.enter.eq(Mux(row_end | end, 0, column + 1)),
            out.top.eq(next_first_row),
            out.fresh.eq(next_phase0),
            out.own_top.eq(y == 0),
            out.own_fresh.eq(phase == 0),
            out.row.eq(event.channel * geometry.phases + phase * across + (event.x + lead + across - edge)),
            self.o.valid.eq(self.i.valid & (event.mark | ~lost)),
            self.i.ready.eq(Mux(event.mark, self.o.ready & (end | empty), lost | (here & self.o.ready))),
            advance.eq(self.o.valid & self.o.ready & out.mark & ~empty),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += touched.eq(~event.mark & (touched | ~lost))
        with m.If(advance):
            m.d.sync += [column.eq(column + 1), edge.eq(edge + across)]
            with m.If(row_end | end):
                m.d.sync += [column.eq(0), edge.eq(edge.init), y.eq(y + 1), phase.eq(phase + 1)]
                with m.If(phase == down - 1):
                    m.d.sync += [phase.eq(0), band.eq(band + 1)]
            with m.If(end):
                m.d.sync += [y.eq(0), phase.eq(phase.init), band.eq(band.init)]
        return m
