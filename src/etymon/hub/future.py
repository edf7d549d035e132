"""Heads that look ahead, on disk: `future_heads.json` beside `future_heads.safetensors`, in a directory of their own or
in that of their model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from etymon.errors import CheckpointError, ConfigError
from etymon.files import atomic_path, write_json
from etymon.hub import huggingface
from etymon.hub.tensors import open_tensors, read_json
from etymon.nn.future import FutureHeads
from etymon.nn.mtp import AnyHeads, SequentialHeads
from etymon.spec import ModelSpec

STEM = "future_heads"
FORMAT = 1
SIZES = ("dim", "count", "vocab")
KEPT = ".correction"  # of a router, in its own precision


def write_future_heads(heads: AnyHeads, directory: str | Path) -> None:
    """Write the heads into `directory`, which is made if need be."""
    directory = Path(directory)
    state = heads.linear.state_dict() if isinstance(heads, FutureHeads) else heads.state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(directory / f"{STEM}.safetensors") as path:
        save_file(tensors, path, metadata={"format": "pt"})
    if isinstance(heads, FutureHeads):
        said: dict[str, Any] = {name: getattr(heads, name) for name in SIZES}
    else:
        said = {"kind": "sequential", "depth": heads.depth, "spec": heads.spec.to_dict()}
    write_json(directory / f"{STEM}.json", {"format": FORMAT} | said)


def holds_future_heads(directory: str | Path) -> bool:
    """Whether heads lie in a directory, or layers of a published checkpoint that are such."""
    return (Path(directory) / f"{STEM}.json").exists() or huggingface.depth_ahead(Path(directory)) > 0


def copy_future_heads(source: Path, target: Path) -> None:
    """Write the heads that lie beside one model beside another; where there are none, do nothing."""
    if holds_future_heads(source):
        write_future_heads(read_future_heads(source), target)


def read_future_heads(
    directory: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> AnyHeads:
    """Read heads, or the layers behind the last one of a published DeepSeek-V3; their dtype is that of the file by
    default. Raises CheckpointError for files that are missing, damaged or do not fit each other."""
    directory = Path(directory)
    path = directory / f"{STEM}.json"
    if not path.exists() and (depth := huggingface.depth_ahead(directory)):
        spec, tensors = huggingface.read_ahead(directory, depth)
        with torch.device("meta"):
            published = SequentialHeads(spec, depth)
        _fill(published, tensors, device, dtype or huggingface.stored_dtype(directory), directory)
        return published
    value = read_json(path)
    if value.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {value.get('format')!r}, this version reads {FORMAT}")
    try:
        with torch.device("meta"):
            heads = _described(value, path)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except RuntimeError:
        raise CheckpointError(f"{path}: {value}: by this, it should be more than a tensor can hold") from None
    with open_tensors(directory, STEM) as files:
        found = {name: files.read(name) for name in sorted(files.names())}
    target = heads.linear if isinstance(heads, FutureHeads) else heads
    kind = {tensor.dtype for name, tensor in found.items() if not name.endswith(KEPT)}
    if len(kind) > 1 or not all(tensor.is_floating_point() for tensor in found.values()):
        raise CheckpointError(f"{directory}: {STEM}.safetensors holds {kind}: expected floating point of one dtype")
    _fill(target, found, device, dtype, directory)
    return heads


def _fill(
    target: nn.Module,
    found: dict[str, Tensor],
    device: torch.device | str,
    dtype: torch.dtype | None,
    directory: Path,
) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in found.items()}
    expected = {name: list(tensor.shape) for name, tensor in target.state_dict().items()}
    if shapes != expected:
        held = ", ".join(f"{name}: {shape}" for name, shape in shapes.items() if expected.get(name) != shape)
        lacks = ", ".join(f"{name}: {shape}" for name, shape in expected.items() if shapes.get(name) != shape)
        raise CheckpointError(f"{directory}: {STEM}.safetensors holds {held}; by its description it should be {lacks}")
    loaded = {name: tensor.to(device, None if name.endswith(KEPT) else dtype) for name, tensor in found.items()}
    target.load_state_dict(loaded, assign=True)


def _described(value: dict[str, Any], path: Path) -> AnyHeads:
    """Return the heads that a description calls for, without their weights."""
    if value.get("kind", "residual") == "sequential":
        if type(depth := value.get("depth")) is not int:
            raise CheckpointError(f"{path}: depth {depth!r}: expected a whole number")
        return SequentialHeads(ModelSpec.from_dict(value.get("spec", {})), depth)
    sizes = [size for size in map(value.get, SIZES) if type(size) is int]
    if len(sizes) < len(SIZES):
        raise CheckpointError(f"{path}: {value}: expected whole numbers for {', '.join(SIZES)}")
    dim, count, vocab = sizes
    return FutureHeads(dim, count, vocab)
