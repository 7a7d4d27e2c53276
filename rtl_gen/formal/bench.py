"""A bench of claims around a part, and the engines in yosys that prove or refute them: temporal induction (`sat -tempinduct`), which needs
invariants, and property-directed reachability (ABC's `pdr`), which finds its own."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from amaranth.back import rtlil
from amaranth.hdl import Assert, Assume, ClockDomain, Elaboratable, Module, Mux, Signal, Value

from casc_hw.errors import CascError
from rtl_gen import tools

_SCRIPT = """read_rtlil design.il
hierarchy -top top
proc
flatten
{upsets}
memory_collect
memory_map
{left}
chformal -lower
dffunmap
formalff -clk2ff -ff2anyinit
opt -full
"""  # as $anyinit, registers that begin at any value are no constants to `opt`
_SAT = """formalff -anyinit2ff
tee -q -o {log} sat -tempinduct {half} -prove-asserts -set-assumes -maxsteps {depth} -timeout {timeout} {show} top
"""

_PDR = """techmap
opt -full
formalff -anyinit2ff
simplemap
dffunmap
simplemap
aigmap
write_aiger -zinit design.aig
design -reset
read_rtlil inverter.il
abc -script pdr.abc
"""
_ABC = "read_aiger design.aig; fold; strash; {search} -T {timeout}; write_status status"
_INVERTER = r"""module \top
  wire input 1 \a
  wire output 2 \y
  cell $_NOT_ \not
    connect \A \a
    connect \Y \y
  end
end
"""  # yosys runs ABC on some logic only

LONGEST = 150
"""Cycles in which a failure is looked for."""
Engine = Literal["induction", "pdr"]
Verdict = Literal["proved", "bounded", "refuted", "undecided"]


class Bench(Elaboratable):
    """A module ``m`` in which ports are free, some cycles are ruled out (`assume`), and claims hold in every cycle (`claim`).

    The clock has no reset: registers and memories begin at their initial values, as they do after configuration; registers of parts
    with ``any_start`` begin at any value, as they may after an upset, and so does what is ``left`` by a reset.
    """

    def __init__(self) -> None:
        self.m = Module()
        self.m.domains.sync = sync = ClockDomain("sync", reset_less=True)
        self._held: list[Signal] = []
        self.inputs: list[Signal] = [sync.clk]
        self.claims: list[tuple[str, bool]] = []
        """Names, and whether each is the part's contract or tells of its inside."""
        self.upset: list[str] = []
        """Parts whose registers begin at any value."""
        self.left: list[str] = []
        """How registers and memories begin, in their names, that do so, too."""

    def free(self, name: str, shape: Any = 1) -> Any:
        """A signal of any value in any cycle."""
        signal: Any = Signal(shape, name=name)
        self.inputs.append(Value.cast(signal))
        return signal

    def fixed(self, name: str, size: int) -> Signal:
        """A number of `range` (``size``), any one, the same for ever."""
        number, kept = (Signal(range(max(size, 2)), name=f"{part}{name}") for part in ("", "kept_"))
        chosen, begun = self.free(f"any_{name}", range(max(size, 2))), Signal(name=f"begun_{name}")
        self.m.d.comb += number.eq(Mux(begun, kept, chosen))
        self.m.d.sync += [begun.eq(1), kept.eq(number)]
        self.assume(number < size)
        return number

    def assume(self, condition: Any) -> None:
        """Cycles without ``condition`` do not occur."""
        self.m.d.comb += Assume(condition)

    def claim(self, name: str, condition: Any, *, inside: bool = False) -> None:
        """``condition`` holds in every cycle: the part's contract, or of its ``inside``, what induction needs to succeed."""
        self.claims.append((name, inside))
        self._held.append(held := Signal(name=f"claim_{len(self._held)}"))
        self.m.d.comb += held.eq(Value.cast(condition).bool())

    def invariant(self, name: str, condition: Any) -> None:
        """A claim about the inside."""
        self.claim(name, condition, inside=True)

    def assert_claims(self, among: str | None) -> dict[str, str]:
        """Asks for the claims with ``among`` in their names ("": all of the contract; None: all); returns the names of their signals."""
        asked = {}
        for (name, inside), held in zip(self.claims, self._held, strict=True):
            if among is None or (among in name if among else not inside):
                self.m.d.comb += Assert(held)
                asked[held.name] = name
        return asked

    def before(self, value: Any, name: str) -> Signal:
        """``value`` in the cycle before; 0 at first."""
        last = Signal.like(Value.cast(value), name=f"before_{name}")
        self.m.d.sync += last.eq(value)
        return last

    def history(self, value: Any, cycles: int, name: str) -> list[Any]:
        """``value`` now, one cycle ago, and so on, up to so many; 0 at first."""
        return list(accumulate(range(cycles), lambda value, stage: self.before(value, f"{name}_{stage}"), initial=value))

    def waits(self, condition: Any, most: int) -> Signal:
        """For how many cycles, up to now, ``condition`` has held; counts to one more than ``most``."""
        idle = Signal(range(most + 2), name="idle")
        self.m.d.sync += idle.eq(Mux(condition, idle + 1, 0))
        return idle

    def elaborate(self, platform: object) -> Module:
        return self.m

    # Streams.

    def drive(self, port: Any, name: str, *, stable: bool = False) -> None:
        """Any transfers into ``port``; with ``stable`` an offer stands until it is taken, as it does by the contract of streams."""
        valid, payload = self.free(f"{name}_valid"), self.free(f"{name}_payload", Value.cast(port.payload).shape())
        self.m.d.comb += [port.valid.eq(valid), Value.cast(port.payload).eq(payload)]
        if stable:
            self.assume(self.stands(port, name))

    def take(self, port: Any, name: str) -> None:
        """Any back-pressure on ``port``."""
        self.m.d.comb += port.ready.eq(self.free(f"{name}_ready"))

    def stands(self, port: Any, name: str) -> Value:
        """What was offered and not taken is offered still, unchanged."""
        waited = self.before(port.valid & ~port.ready, f"{name}_waited")
        payload = self.before(port.payload, f"{name}_payload")
        return ~waited | (port.valid & (Value.cast(port.payload) == payload))

    def part(self, name: str, component: Any, *, any_start: bool = False, left: Sequence[str] = ()) -> Inside:
        """``component`` as a submodule, its inside open; with ``any_start`` its registers begin at any value, reachable or not.

        ``left``: beginnings of names of registers and memories that a reset leaves as they are: they begin at any value.
        """
        inside = Inside(component)
        self.upset += [name] * any_start
        self.left += [f"{name}.{start}" for start in left]
        setattr(self.m.submodules, name, component)
        return inside


class Inside:
    """What a component keeps to itself: its registers, memories and submodules, for invariants that tell of them.

    ``inside["name"]`` is the local variable of that name in its ``elaborate``, ``inside["method.name"]`` of another method.
    """

    def __init__(self, component: Any) -> None:
        self.component = component
        self._locals: dict[str, Any] = {}
        before = sys.getprofile()
        sys.setprofile(self._returned)
        try:
            module = component.elaborate(None)
        finally:
            sys.setprofile(before)
        component.elaborate = lambda platform: module  # it is not elaborated again
        self.m: Any = module

    def _returned(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "return" and frame.f_locals.get("self") is self.component:
            method = "" if frame.f_code.co_name == "elaborate" else f"{frame.f_code.co_name}."
            self._locals |= {f"{method}{name}": value for name, value in frame.f_locals.items()}

    def __getitem__(self, name: str) -> Any:
        return self._locals[name]

    @property
    def state(self) -> Signal:
        """The state of its FSM: 0 for the first that ``elaborate`` names, and so on."""
        state: Signal = self.m._generated["fsm"].state
        return state

    def at(self, name: str) -> Any:
        """Whether its FSM is in that state."""
        return self.state == self.m._generated["fsm"].encoding[name]

    def child(self, name: str) -> Inside:
        return Inside(self[name])

    def word(self, memory: str, address: Any) -> Value:
        """What the memory holds at ``address``."""
        port = self[memory].read_port(domain="comb")
        self.m.d.comb += port.addr.eq(address)
        return Value.cast(port.data)


class Buffered:
    """Inside Amaranth's `SyncFIFOBuffered` of a depth of two or more: what waits in it, and that its counters agree.

    Members
    -------
    level: transfers that wait.
    """

    def __init__(self, bench: Bench, fifo: Inside) -> None:
        self._bench, self._fifo, self._size = bench, fifo, fifo.component.depth - 1
        self._front, self.level, inner = fifo.component.r_rdy, fifo.component.level, fifo["inner_level"]
        produce, self._consume = fifo["produce"], fifo["consume"]
        bench.claim("the FIFO's count does not overflow", inner <= self._size)
        bench.invariant("the FIFO's places exist", (produce < self._size) & (self._consume < self._size))
        bench.invariant("the FIFO's places and its count agree", self._place(inner) == produce)
        bench.invariant("the output is empty for a cycle at most", self._front | (inner <= 1))

    def _place(self, ahead: Any) -> Value:
        end = self._consume + ahead
        return Mux(end >= self._size, end - self._size, end)

    def word(self, ahead: Any) -> Value:
        """What the transfer carries that leaves after ``ahead`` others, of those that wait."""
        address = Signal(range(max(self._size, 2)))
        self._bench.m.d.comb += address.eq(self._place(ahead - self._front))
        return Mux(self._front & (ahead == 0), Value.cast(self._fifo.component.r_data), self._fifo.word("storage", address))


class Watch:
    """One transfer of a stream, any one, followed from ``i`` to ``o``, and how many are on the way.

    Members
    -------
    level: transfers taken in and not yet given out.
    waiting: the one watched is among them; ``ahead``: so many leave first; ``payload``: what it carries.
    """

    def __init__(self, bench: Bench, i: Any, o: Any, capacity: int) -> None:
        m = bench.m
        size = Value.cast(i.payload).shape()
        self.level, self.ahead = Signal(range(capacity + 2)), Signal(range(capacity + 2))
        self.waiting, seen, self.payload = Signal(), Signal(), Signal(size)
        enter, leave, pick = i.valid & i.ready, o.valid & o.ready, bench.free("pick")
        m.d.sync += self.level.eq(self.level + enter - leave)
        with m.If(enter & pick & ~seen):
            m.d.sync += [seen.eq(1), self.waiting.eq(1), self.ahead.eq(self.level - leave), self.payload.eq(i.payload)]
        with m.Elif(self.waiting & leave):
            m.d.sync += [self.ahead.eq(self.ahead - 1), self.waiting.eq(self.ahead != 0)]
        bench.claim(
            "what is taken in is given out as it was, in order, once", ~(self.waiting & leave & (self.ahead == 0)) | self.is_in(o.payload)
        )
        bench.claim("nothing is given out that was not taken in", ~o.valid | (self.level != 0))
        bench.claim("never more than there is room for", self.level <= capacity)
        bench.invariant("the one watched is on the way until it leaves", ~self.waiting | (self.ahead < self.level))
        bench.claim("an offer stands until it is taken", bench.stands(o, "o"))

    def is_in(self, payload: Any) -> Value:
        return Value.cast(payload) == self.payload

    def kept(self, place: Any, payload: Any) -> Value:
        """If ``place`` transfers are ahead of the one watched, ``payload`` is it."""
        return ~(self.waiting & (self.ahead == place)) | self.is_in(payload)


@dataclass(frozen=True)
class Result:
    """What became of a proof.

    Attributes
    ----------
    verdict: proved (on every path, of any length), bounded (on every path of ``depth`` cycles), refuted, or undecided.
    depth: cycles of the induction, of the bound, or until the claim fails.
    failed: the claims that fail, of a refutation.
    """

    verdict: Verdict
    depth: int
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Property:
    """Claims about one part.

    Attributes
    ----------
    name: for ``--only``.
    claim: in one sentence.
    bench: makes the bench, whose claims have names of their own.
    depth: the longest induction tried.
    engine: induction, or "pdr", which needs no invariants and so less to read, and takes longer.
    fast: of the subset for every day.
    bounded: the claims are shown for runs of ``depth`` cycles only.
    """

    name: str
    claim: str
    bench: Callable[[], Bench]
    depth: int = 8
    fast: bool = True
    engine: Engine = "induction"
    bounded: bool = False


def prove(
    bench: Bench, depth: int, *, engine: Engine = "induction", bounded: bool = False, among: str | None = None, timeout: int = 600
) -> Result:
    """Proves the claims of ``bench`` by induction over at most ``depth`` cycles; ``bounded``: only for so many from the start.

    With the engine "pdr", for runs of any length, or, ``bounded``, after a search among the runs of `LONGEST` cycles, which names no
    claims; else ``depth`` is how far a run goes that names those that fail.
    ``among``: only these, see `Bench.assert_claims`. A SAT instance, or all of "pdr", may take ``timeout`` seconds.
    """
    claims = bench.assert_claims(among)
    text = rtlil.convert(bench, name="top", ports=bench.inputs, emit_src=False)
    script = _SCRIPT.format(
        upsets="\n".join(f"setattr -unset init w:{name}.*" for name in bench.upset),
        left="\n".join(f"setattr -unset init w:{start}*" for start in bench.left),
    )
    if engine == "pdr":
        for search in (f"bmc3 -F {LONGEST}", "pdr") if bounded else ("pdr",):  # the former misses what fails in the first cycle, always
            abc = _ABC.format(search=search, timeout=timeout)
            status = _yosys(text, script + _PDR, "status", {"pdr.abc": abc, "inverter.il": _INVERTER})
            if status.startswith("snl_SAT"):
                break
        if not (found := re.match(r"snl_(UNSAT|SAT|UNK) (-?\d+) \S+( \d+ \d+)?", status)):
            raise RuntimeError(f"yosys has not looked at the claims: {status[:400]}")
        if found[1] != "SAT":
            return Result("proved" if found[1] == "UNSAT" else "undecided", int(found[2]))
        depth = max(depth, int(found[3].split()[1]) + 1)
        if bounded:
            return Result("refuted", depth)
        bounded = True
    show = " ".join(f"-show {signal}" for signal in claims)
    half = "-tempinduct-baseonly" if bounded else ""
    sat = _SAT.format(log="sat.log", half=half, depth=depth, timeout=timeout, show=show)
    return _read(_yosys(text, script + sat, "sat.log"), claims, depth, bounded)


def _yosys(text: str, script: str, writes: str, files: dict[str, str] | None = None) -> str:
    """What ``script``, which finds ``files`` beside it, writes to ``writes`` about the RTLIL ``text``."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {"design.il": text, "design.ys": script, **(files or {})}.items():
            Path(folder, name).write_text(content)
        done = subprocess.run([tools.find("yosys").path, "-q", "design.ys"], cwd=folder, capture_output=True, text=True, check=False)
        log = Path(folder, writes)
        if not log.exists():  # the exit status tells nothing: after ABC it is 1
            raise CascError(f"prove: yosys failed: {(done.stderr or done.stdout).strip()[-400:]}; report it")
        return log.read_text()


def _read(said: str, claims: dict[str, str], depth: int, bounded: bool) -> Result:
    """The verdict in what `sat` printed."""
    if len(re.findall(r"^\[base case 1\]", said, re.MULTILINE)) != 1 or (claims and "Import proof for assert: \\claim_" not in said):
        raise RuntimeError(f"yosys has not looked at the claims: {said[-400:]}")
    if "proof finished - model found for base case: FAIL!" in said:
        model = said.rpartition("[base case ")[2]  # those of inductions, before, are no runs from the start
        shown = [(int(step), signal) for step, signal in re.findall(r"^ +(\d+) \\(claim_\d+) +0 ", model, re.MULTILINE)]
        last = max(step for step, _ in shown)
        failed = {signal for step, signal in shown if step == last}
        return Result("refuted", last, tuple(name for signal, name in claims.items() if signal in failed))
    if bounded and "-> proved base case" in said:
        return Result("bounded", depth)
    if not bounded and "Induction step proven: SUCCESS!" in said:
        return Result("proved", max(map(int, re.findall(r"^\[induction step (\d+)\]", said, re.MULTILINE))))
    return Result("undecided", depth)
