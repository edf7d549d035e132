"""Loading a model from wherever it lies and writing it where it is wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from etymon.errors import CheckpointError, ConfigError
from etymon.families import family_named
from etymon.hub import gguf_models, huggingface, native
from etymon.hub.gguf import open_gguf
from etymon.nn import Model
from etymon.quant import prepare_quantized, quantization_of, write_quantization

Format = Literal["hf", "etymon", "gguf"]
GGUF_SUFFIX = ".gguf"


def locate(source: str | Path) -> Path:
    """Return where a checkpoint lies: a local directory or GGUF file, or the snapshot of a hub id such as `org/name`.

    Raises CheckpointError when there is neither.
    """
    path = Path(source)
    if path.is_dir() or (path.is_file() and path.suffix == GGUF_SUFFIX):
        return path
    if path.exists():
        raise CheckpointError(f"{source}: is a file; give the checkpoint's directory, or a GGUF file")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise CheckpointError(f"{source}: no such directory, and not a hub id of the form organisation/name")
    from huggingface_hub import snapshot_download  # slow to import, and seldom needed

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "*.txt"]
    try:
        directory = Path(snapshot_download(str(source), allow_patterns=patterns))
        if not any(directory.glob("*.safetensors")):
            snapshot_download(str(source), allow_patterns=["pytorch_model*.bin"])
        return directory
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{source}: no such directory, and the hub could not deliver it ({reason})") from None


def load_model(directory: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Model:
    """Load the model of a checkpoint directory of either format, or of a GGUF file; `dtype` defaults to the stored one.

    Raises CheckpointError or ConfigError naming what is missing, surplus, damaged or not understood.
    """
    if directory.suffix == GGUF_SUFFIX and directory.is_file():
        with open_gguf(directory) as file:
            spec, family = gguf_models.read_spec(file)
            model = _empty(spec)
            weights = huggingface.consume(gguf_models.GGUFTensors(file, spec), spec, family, directory)
            _fill(model, weights, device, dtype or gguf_models.stored_dtype(file), directory)
        return model.eval()
    if (directory / native.SPEC).exists():
        spec = native.read_spec(directory)
        model = _empty(spec)
        kind = quantization_of(directory)
        if kind is not None:
            prepare_quantized(model, kind)
        weights = native.read_weights(directory, model)
    elif (directory / "config.json").exists():
        spec, family = huggingface.read_spec(directory)
        model = _empty(spec)
        dtype = dtype or huggingface.stored_dtype(directory)
        weights = huggingface.read_weights(directory, spec, family)
    else:
        raise CheckpointError(f"{directory}: neither {native.SPEC} nor config.json is there; not a checkpoint")
    _fill(model, weights, device, dtype, directory)
    return model.eval()


def _empty(spec: Any) -> Model:
    with torch.device("meta"):
        return Model(spec)


def _fill(
    model: Model,
    weights: Iterable[tuple[str, Tensor]],
    device: torch.device | str,
    dtype: torch.dtype | None,
    directory: Path,
) -> None:
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    loaded = {}
    for name, tensor in weights:
        if tensor.shape != shapes[name]:
            raise CheckpointError(
                f"{directory}: {name} has shape {list(tensor.shape)}, the config says {list(shapes[name])}"
            )
        target = dtype if tensor.is_floating_point() and not name.endswith((".scale", ".correction")) else None
        loaded[name] = _aligned(tensor.to(device=device, dtype=target))
    model.load_state_dict(loaded, strict=False, assign=True)
    model.tie()
    for name, tensor in model.state_dict().items():
        assert not tensor.is_meta, f"{name} was never filled"
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


def _aligned(tensor: Tensor) -> Tensor:
    """Tensors that are read straight from a file lie where the file has them; vector instructions want 64 bytes."""
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


def save_gguf(model: Model, path: Path, tokenizer: dict[str, Any], quantization: str) -> None:
    """Write a GGUF file, whole or not at all, with the tokenizer's metadata.

    Raises ConfigError when the format cannot hold the model.
    """
    if quantization_of(model) is not None:
        raise ConfigError("an int8 model is saved in the etymon format only; save the model it was made from")
    gguf_models.write(model, path, tokenizer, quantization)


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF file. Raises CheckpointError when it is damaged."""
    with open_gguf(path) as file:
        return file.metadata


def save_model(
    model: Model, directory: Path, format: Format, token_ids: dict[str, Any], max_shard_bytes: int = 5 << 30
) -> None:
    """Write a model's files into an existing `directory` (the caller makes the directory whole or absent).

    Raises ConfigError when the format cannot hold the model.
    """
    quantization = quantization_of(model)
    if format == "etymon":
        native.write(model, directory, max_shard_bytes)
        if quantization is not None:
            write_quantization(directory, quantization)
    elif format == "hf":
        if quantization is not None:
            raise ConfigError("a quantised model is saved in the etymon format only; save the model it was made from")
        family_named(model.spec.family)
        huggingface.write(model, directory, token_ids, max_shard_bytes)
    else:
        raise ConfigError(f"unknown checkpoint format {format!r}; known: hf, etymon, gguf")
