"""What was trained, in numbers: the content of `evaluate/model.json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from etymon.nn import Model, count


def describe(model: Model) -> dict[str, Any]:
    """Return the name, shape and parameter counts of `model` and the bytes that its weights take as they are now."""
    spec = model.spec
    return {
        "name": spec.name,
        "family": spec.family,
        "parameters": asdict(count(spec)),
        "layers": spec.trunk.depth,
        "dim": spec.dim,
        "vocab": spec.vocab,
        "context": spec.context,
        "dtype": str(model.dtype).removeprefix("torch."),
        "bytes": nbytes(model),
    }


def nbytes(model: Model) -> int:
    """Return the bytes of all parameters and buffers, shared ones once."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
