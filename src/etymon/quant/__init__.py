"""Quantisation: surgery on a built model. The checkpoint rooms call the three functions of `kinds`."""

from etymon.quant.int8 import Int8Linear, apply_int8, is_quantized, quantize_int8
from etymon.quant.kinds import prepare_quantized, quantization_of, write_quantization

__all__ = [
    "Int8Linear",
    "apply_int8",
    "is_quantized",
    "prepare_quantized",
    "quantization_of",
    "quantize_int8",
    "write_quantization",
]
