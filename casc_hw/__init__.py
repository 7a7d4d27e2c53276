"""The network side: integers, ClipQuan, conversion, the reference. Knows torch, and no hardware.

Names are imported when first used, so that what needs no torch (errors, intervals) does not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casc_hw.clipquan import ClipQuan
    from casc_hw.conversion import Conversion, Loss, convert
    from casc_hw.errors import CascError
    from casc_hw.fixed import Interval
    from casc_hw.intervals import LayerBounds, bounds
    from casc_hw.network import IMAGE, FloatNet, IntegerNet, Layer, Pool, Synapses, output_shape, to_wire
    from casc_hw.nir_graph import from_nir, to_nir
    from casc_hw.qat import clip_quant
    from casc_hw.qonnx_graph import from_qonnx
    from casc_hw.reference import Answer, Trace, events_of, quantised_ann, simulate, sleep_bound
    from casc_hw.spiking import Activity, SpikingNet, Statistics, Step
    from casc_hw.training import Epoch, Tuned, finetune, fit
    from casc_hw.vectors import save_vectors

_HOME = {
    "intervals": ("LayerBounds", "bounds"),
    "clipquan": ("ClipQuan",),
    "conversion": ("Conversion", "Loss", "convert"),
    "errors": ("CascError",),
    "fixed": ("Interval",),
    "network": ("IMAGE", "FloatNet", "IntegerNet", "Layer", "Pool", "Synapses", "output_shape", "to_wire"),
    "nir_graph": ("from_nir", "to_nir"),
    "qat": ("clip_quant",),
    "qonnx_graph": ("from_qonnx",),
    "reference": ("Answer", "Trace", "events_of", "quantised_ann", "simulate", "sleep_bound"),
    "spiking": ("Activity", "SpikingNet", "Statistics", "Step"),
    "training": ("Epoch", "Tuned", "finetune", "fit"),
    "vectors": ("save_vectors",),
}

__all__ = [
    "IMAGE",
    "Activity",
    "Answer",
    "CascError",
    "ClipQuan",
    "Conversion",
    "Epoch",
    "FloatNet",
    "IntegerNet",
    "Interval",
    "Layer",
    "LayerBounds",
    "Loss",
    "Pool",
    "SpikingNet",
    "Statistics",
    "Step",
    "Synapses",
    "Trace",
    "Tuned",
    "bounds",
    "clip_quant",
    "convert",
    "events_of",
    "finetune",
    "fit",
    "from_nir",
    "from_qonnx",
    "output_shape",
    "quantised_ann",
    "save_vectors",
    "simulate",
    "sleep_bound",
    "to_nir",
    "to_wire",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"casc_hw.{module}"), name)
    raise AttributeError(f"module 'casc_hw' has no attribute {name!r}")
