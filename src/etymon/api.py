"""A model and its tokenizer as one thing: loading, saving and building."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from etymon.errors import CheckpointError, ConfigError
from etymon.files import atomic_directory
from etymon.hub import average_models, load_model, locate, read_gguf_metadata, save_gguf, save_model
from etymon.nn import Model, build

if TYPE_CHECKING:
    from etymon.text.tokenizer import Tokenizer

__all__ = ["average", "build", "load", "load_tokenizer", "save"]


def load(
    source: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[Model, Tokenizer | None]:
    """Load a checkpoint directory (Hugging Face, etymon, or quantised), a GGUF file or a hub id.

    `dtype` defaults to the stored one; what a GGUF file quantises is fp32 then.

    The tokenizer is None where the checkpoint carries none. Raises CheckpointError, ConfigError or TokenizerError that
    names what is missing, damaged or not understood; a tokenizer with more ids than the model has is an error too.
    """
    directory = locate(source)
    model = load_model(directory, device, dtype)
    tokenizer = load_tokenizer(directory)
    if tokenizer is not None and tokenizer.vocab_size > model.spec.vocab:
        raise CheckpointError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} ids but the model only {model.spec.vocab}; "
            "they do not belong together"
        )
    return model, tokenizer


def average(sources: Sequence[str | Path]) -> tuple[Model, Tokenizer | None]:
    """Return the mean of several checkpoints of one model, and the tokenizer of the last of them.

    Raises what `load` raises, and CheckpointError where the checkpoints are not of one model.
    """
    model = average_models(sources)
    return model, load_tokenizer(locate(sources[-1]))


def load_tokenizer(directory: Path) -> Tokenizer | None:
    """Load the tokenizer of a checkpoint directory or GGUF file, or return None where it carries none."""
    if directory.is_file():
        from etymon.text.gguf import read_tokenizer

        return read_tokenizer(read_gguf_metadata(directory))
    from etymon.text.foreign import find_tokenizer_file

    if find_tokenizer_file(directory) is None:
        return None
    from etymon.text.tokenizer import Tokenizer

    return Tokenizer.load(directory)


def save(
    model: Model,
    tokenizer: Tokenizer | None,
    path: str | Path,
    format: Literal["hf", "etymon", "gguf"] = "etymon",
    max_shard_bytes: int = 5 << 30,
    quantization: str = "f16",
) -> None:
    """Write a checkpoint directory: whole or not at all. "hf" is what transformers and its ecosystem load.

    "gguf" is one file, for llama.cpp and its ecosystem, with `quantization` f32, f16, q8_0 or q4_0 of the matrices.
    Raises ConfigError when the format cannot hold the model (a quantised one as "hf"), and for a directory that holds
    other files than a model's, which would be lost.
    """
    if format == "gguf":
        from etymon.text.gguf import write_tokenizer

        carried = {} if tokenizer is None else write_tokenizer(tokenizer, model.spec.vocab)
        save_gguf(model, Path(path), carried, quantization)
        return
    token_ids: dict[str, Any] = {}
    if tokenizer is not None:
        stops = sorted(tokenizer.stop_ids)
        eos: Any = stops if len(stops) > 1 else tokenizer.eos_id
        token_ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos, "pad_token_id": tokenizer.pad_id}
    _refuse_other_files(Path(path))
    with atomic_directory(path) as directory:
        save_model(model, directory, format, token_ids, max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save(directory)


def _refuse_other_files(path: Path) -> None:
    found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    ours = ("spec.json", "config.json", "tokenizer.json", ".safetensors")
    if found and not any(name.endswith(ours) for name in found):
        raise ConfigError(
            f"{path} holds other files ({', '.join(found[:3])}) and no model, and they would be lost. Choose another "
            "directory."
        )
