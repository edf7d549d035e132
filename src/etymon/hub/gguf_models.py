"""What a GGUF file calls things, for the one architecture of it that is read and written here.

A file's metadata becomes a published `config.json` and its tensors get their published names, so that the family's own
reader and weight table do the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etymon.errors import CheckpointError, ConfigError
from etymon.families import ConfigReader, Family, family_named, family_of_model_type
from etymon.hub import ggml
from etymon.hub.gguf import GGUF, write_gguf
from etymon.hub.huggingface import listing, lost
from etymon.nn import Model
from etymon.spec import LinearScaling, Llama3Scaling, ModelSpec, Rope, RopeScaling, YarnScaling

ARCHITECTURE = "llama"
QUANTIZATIONS = {"f32": (ggml.F32, 0), "f16": (ggml.F16, 1), "q8_0": (ggml.Q8_0, 7), "q4_0": (ggml.Q4_0, 2)}
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FREQUENCIES = "rope_freqs.weight"
_FILE_RULES = ("general.", "tokenizer.", "quantize.", "split.", "GGUF.")


def _published(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    part = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    return f"model.layers.{part[1]}.{_INNER[part[2]]}.{part[3]}" if part and part[2] in _INNER else name


def _theirs(published: str) -> str:
    inverse = {ours: name for name, ours in _OUTER.items()}
    part = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", published)
    if part is None:
        return inverse[published]
    return f"blk.{part[1]}.{ {ours: name for name, ours in _INNER.items()}[part[2]] }.{part[3]}"


def _rows_apart(tensor: Tensor, heads: int) -> Tensor:
    """Rotated pairs from neighbours (2i, 2i + 1) to (i, i + dim/2), in each of `heads` heads."""
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _rows_together(tensor: Tensor, heads: int) -> Tensor:
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _heads(published: str, spec: ModelSpec) -> int | None:
    """The number of heads whose rows a file holds in its own order, None for all other tensors."""
    attention: Any = spec.trunk.blocks[0].subs[0].op
    return {"q_proj": attention.heads, "k_proj": attention.kv_heads}.get((published.split(".") + [""] * 5)[4])


class GGUFTensors:
    """The tensors of a file under their published names, with rows in the published order."""

    def __init__(self, file: GGUF, spec: ModelSpec) -> None:
        self._file, self._spec = file, spec
        self._names = {_published(name): name for name in file.names() if name != _FREQUENCIES}

    def names(self) -> set[str]:
        """Return the names of all tensors."""
        return set(self._names)

    def read(self, name: str) -> Tensor:
        """Read one tensor onto the CPU."""
        tensor, heads = self._file.read(self._names[name]), _heads(name, self._spec)
        if heads is None:
            return tensor
        if tensor.shape[0] % (2 * heads):
            raise CheckpointError(f"{self._file.path}: {name} of shape {list(tensor.shape)} is not of {heads} heads")
        return _rows_apart(tensor, heads)


# -- reading what the model is ----------------------------------------------------------------------------------------


def read_spec(file: GGUF) -> tuple[ModelSpec, Family]:
    """Read the metadata. Raises CheckpointError or ConfigError for an architecture or key that is not understood."""
    where, metadata = str(file.path), file.metadata
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise CheckpointError(f"{where}: general.architecture is {architecture!r}; read here is {ARCHITECTURE!r} only")
    if metadata.get("split.count", 1) not in (0, 1):
        raise CheckpointError(f"{where}: is one of {metadata['split.count']} parts; merge them into one file first")
    own = {key: value for key, value in metadata.items() if not key.startswith(_FILE_RULES)}
    reader = ConfigReader(own, where)
    spec, family = _read(reader, file, f"{architecture}.")
    reader.finish()
    return spec, family


def _read(reader: ConfigReader, file: GGUF, prefix: str) -> tuple[ModelSpec, Family]:
    embedding = file.entries.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path}: 1 tensors are missing: token_embd.weight")
    dim = reader.take(f"{prefix}embedding_length", int)
    heads = reader.take(f"{prefix}attention.head_count", int)
    if heads < 1 or dim < 1:
        raise ConfigError(f"{file.path}: {dim} numbers in {heads} heads are no model")
    head_dim = reader.take(f"{prefix}attention.key_length", int, dim // heads)
    reader.expect(f"{prefix}attention.value_length", head_dim)
    reader.expect(f"{prefix}rope.dimension_count", head_dim)
    reader.expect(f"{prefix}expert_count", 0)
    reader.expect(f"{prefix}expert_used_count", 0)
    reader.expect(f"{prefix}vocab_size", embedding.shape[0])
    reader.expect(f"{prefix}tensor_data_layout", "Meta AI original pth")
    context = reader.take(f"{prefix}context_length", int)
    base = reader.take(f"{prefix}rope.freq_base", float, 10000.0)
    config = {
        "model_type": ARCHITECTURE,
        "vocab_size": embedding.shape[0],
        "hidden_size": dim,
        "num_hidden_layers": reader.take(f"{prefix}block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": reader.take(f"{prefix}attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "intermediate_size": reader.take(f"{prefix}feed_forward_length", int),
        "max_position_embeddings": context,
        "rms_norm_eps": reader.take(f"{prefix}attention.layer_norm_rms_epsilon", float),
        "attention_bias": "blk.0.attn_output.bias" in file.entries,
        "mlp_bias": "blk.0.ffn_down.bias" in file.entries,
        "tie_word_embeddings": "output.weight" not in file.entries,
        "rope_parameters": {"rope_theta": base} | _read_scaling(reader, file, prefix, base, head_dim, context),
    }
    family = family_of_model_type(ARCHITECTURE, str(file.path))
    published = ConfigReader(config, str(file.path))
    assert family.format.read is not None
    spec = family.format.read(published)
    published.finish()
    return spec, family


def _read_scaling(
    reader: ConfigReader, file: GGUF, prefix: str, base: float, head_dim: int, context: int
) -> dict[str, Any]:
    kind = reader.take(f"{prefix}rope.scaling.type", str, "none")
    factor = reader.take(f"{prefix}rope.scaling.factor", float, 1.0)
    original = reader.take(f"{prefix}rope.scaling.original_context_length", int, context)
    reader.take(f"{prefix}rope.scaling.finetuned", bool, None)
    if _FREQUENCIES in file.entries:
        return _read_frequencies(file, base, head_dim)
    if kind == "none" or factor == 1.0:
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise CheckpointError(f"{file.path}: {prefix}rope.scaling.type = {kind!r} is not supported (linear, yarn)")


def _divisors(scaling: Llama3Scaling, base: float, dim: int) -> Tensor:
    """What the frequencies are divided by, [dim / 2]."""
    frequency = base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    turns = scaling.original_context * frequency / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return (1 / ((1 - kept) / scaling.factor + kept)).float()


def _read_frequencies(file: GGUF, base: float, head_dim: int) -> dict[str, Any]:
    # A file says what the frequencies are divided by, not the formula: it must be the published one.
    divisors = file.read(_FREQUENCIES).float()
    factor = round(float(divisors.max()), 4)
    for original in (8192, 4096, 2048, 16384, 32768, *(2**n for n in range(4, 11))):
        scaling = Llama3Scaling(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_context=original)
        expected = _divisors(scaling, base, head_dim)
        if expected.shape == divisors.shape and torch.allclose(expected, divisors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }
    raise CheckpointError(f"{file.path}: {_FREQUENCIES} scales frequencies by no formula that is known here")


def stored_dtype(file: GGUF) -> torch.dtype:
    """Return the dtype of the matrices; fp32 where they are quantised."""
    storage = file.entries["token_embd.weight"].storage
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(storage.name, torch.float32)


# -- writing ----------------------------------------------------------------------------------------------------------


def write(model: Model, path: Path, tokenizer: dict[str, Any], quantization: str) -> None:
    """Write a model with the tokenizer's metadata; `quantization` is one of QUANTIZATIONS and applies to matrices.

    Norms and biases stay fp32; rows that are no whole number of blocks become fp16; in a 4-bit file the head (the
    embedding, where they are one) has 8 bits. Raises ConfigError when the format cannot hold the model.
    """
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"unknown quantization {quantization!r}; known: {', '.join(QUANTIZATIONS)}")
    spec = model.spec
    if spec.family != ARCHITECTURE:
        raise ConfigError(f"GGUF files are written for models of the family {ARCHITECTURE!r}, not {spec.family!r}")
    family, state = family_named(spec.family), model.state_dict()
    assert family.format.write is not None
    config = family.format.write(spec)
    if config["hidden_act"] != "silu":
        raise ConfigError(f"GGUF files have no place for the activation {config['hidden_act']!r}")
    if missing := lost(spec, config):
        raise ConfigError(f"GGUF files do not say all that this model is ({listing(missing)}): use the etymon format")
    storage, file_type = QUANTIZATIONS[quantization]

    class Tensors:
        def __iter__(self) -> Iterator[tuple[str, Tensor, ggml.Storage]]:
            rope: Any = spec.trunk.blocks[0].subs[0].op
            if isinstance(rope.rope.scaling, Llama3Scaling):
                yield _FREQUENCIES, _divisors(rope.rope.scaling, rope.rope.base, rope.rope.dim), ggml.F32
            assert family.tensors.weights is not None
            for rule in family.tensors.weights(spec):
                for published, tensor in rule.write(state[rule.ours]).items():
                    heads = _heads(published, spec)
                    ordered = tensor if heads is None else _rows_together(tensor, heads)
                    yield _theirs(published), ordered, _storage(published, tensor, storage, spec)

    write_gguf(path, _metadata(spec, config, file_type) | tokenizer, Tensors())


def _storage(published: str, tensor: Tensor, wanted: ggml.Storage, spec: ModelSpec) -> ggml.Storage:
    if tensor.dim() == 1:
        return ggml.F32
    if tensor.shape[-1] % wanted.values:
        return ggml.F16
    head = "lm_head.weight" if not spec.tied else "model.embed_tokens.weight"
    return ggml.Q8_0 if wanted is ggml.Q4_0 and published == head else wanted


def _metadata(spec: ModelSpec, config: dict[str, Any], file_type: int) -> dict[str, Any]:
    values = {
        "vocab_size": spec.vocab,
        "context_length": spec.context,
        "embedding_length": spec.dim,
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": config["head_dim"],
    }
    attention: Any = spec.trunk.blocks[0].subs[0].op
    rope: Rope = attention.rope
    values |= {"rope.freq_base": float(rope.base)} | _write_scaling(rope.scaling)
    general = {"architecture": ARCHITECTURE, "name": spec.name, "file_type": file_type, "quantization_version": 2}
    return {f"general.{key}": value for key, value in general.items()} | {
        f"{ARCHITECTURE}.{key}": value for key, value in values.items()
    }


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    match scaling:
        case None:
            return {}
        case Llama3Scaling(low_freq_factor=1.0, high_freq_factor=4.0):
            return {}
        case LinearScaling(factor=factor):
            return {"rope.scaling.type": "linear", "rope.scaling.factor": float(factor)}
        case YarnScaling(
            factor=factor, original_context=original, beta_fast=32.0, beta_slow=1.0, attention_factor=None
        ):
            yarn = {"type": "yarn", "factor": float(factor), "original_context_length": original}
            return {f"rope.scaling.{key}": value for key, value in yarn.items()}
    raise ConfigError(f"GGUF files have no place for {scaling}")
