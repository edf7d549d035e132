"""Quantisation: surgery on a built model. The checkpoint rooms call the three functions of `kinds`."""

from etymon.quant.kinds import prepare_quantized, quantization_of, write_quantization

__all__ = ["prepare_quantized", "quantization_of", "write_quantization"]
