"""The network side: integers, ClipQuan, conversion, the reference. Knows torch, and no hardware."""

from casc_hw.bounds import LayerBounds, bounds
from casc_hw.clipquan import ClipQuan
from casc_hw.convert import Conversion, convert
from casc_hw.errors import CascError
from casc_hw.fixed import Interval
from casc_hw.network import IntegerNet, Linear
from casc_hw.reference import Answer, Trace, quantised_ann, simulate, sleep_bound
from casc_hw.vectors import save_vectors

__all__ = [
    "Answer",
    "CascError",
    "ClipQuan",
    "Conversion",
    "IntegerNet",
    "Interval",
    "LayerBounds",
    "Linear",
    "Trace",
    "bounds",
    "convert",
    "quantised_ann",
    "save_vectors",
    "simulate",
    "sleep_bound",
]
