"""int8 weight-only quantisation (being written)."""

from __future__ import annotations

from etymon.nn import Model


def is_quantized(model: Model) -> bool:
    """Return whether the model's matrices are int8."""
    return False


def apply_int8(model: Model) -> None:
    """Swap linear layers for int8 ones before a quantised state dict is loaded."""
    raise NotImplementedError
