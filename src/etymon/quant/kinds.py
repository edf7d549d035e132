"""Which quantisation a model or a checkpoint directory has, and how a model is made ready for quantised tensors."""

from __future__ import annotations

import json
from pathlib import Path

from etymon.errors import CheckpointError
from etymon.files import write_json
from etymon.nn import Model
from etymon.quant.int8 import apply_int8, is_quantized

FILE = "quantization.json"


def quantization_of(thing: Model | Path) -> str | None:
    """Return the kind of quantisation ("int8") of a built model or a checkpoint directory, None when there is none."""
    if isinstance(thing, Path):
        if not (thing / FILE).exists():
            return None
        try:
            kind = json.loads((thing / FILE).read_text(encoding="utf-8"))["kind"]
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(f"{thing / FILE}: not a JSON object with a 'kind'") from None
        if kind != "int8":
            raise CheckpointError(f"{thing / FILE}: unknown kind {kind!r}; known: int8")
        return str(kind)
    return "int8" if is_quantized(thing) else None


def prepare_quantized(model: Model, kind: str) -> None:
    """Swap the modules of a model (built on any device, "meta" too) so that it takes a quantised state dict."""
    assert kind == "int8"
    apply_int8(model)


def write_quantization(directory: Path, kind: str) -> None:
    """Record the kind in a checkpoint directory."""
    write_json(directory / FILE, {"kind": kind})
