"""Gemma 3 (Gemma team 2025, arXiv:2503.19786), its text model, which is also read from checkpoints that see images.

What was new over Gemma 2: queries and keys normalised instead of bounded scores; five layers with a window to one
without, which turn their heads at frequencies of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from etymon.families import gemma2, llama
from etymon.families.descent import attention_of, with_attention, with_blocks
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.spec import Attention, LinearScaling, ModelSpec, QKNorm, Rope

LOCAL, GLOBAL = "sliding_attention", "full_attention"


@extends(gemma2.build)
def build(
    *,
    name: str = "gemma3",
    layers: int,
    window: int = 1024,
    kinds: Sequence[str] | None = None,
    pattern: int = 6,
    local_base: float = 10000.0,
    rope_base: float = 1e6,
    softcap: float | None = None,
    logit_softcap: float | None = None,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a Gemma 3 whose layers are of these `kinds` (default: every `pattern`-th is global)."""
    kinds = kinds or [LOCAL if (i + 1) % pattern else GLOBAL for i in range(layers)]
    same = {"layers": layers, "rope_base": rope_base, "softcap": softcap, "logit_softcap": logit_softcap}
    spec = gemma2.build(name=name, window=None, **same, **dimensions)
    qk_norm = QKNorm(norm=spec.trunk.blocks[0].subs[0].pre)  # type: ignore[arg-type]
    spec = with_blocks(spec, "gemma3", lambda block: with_attention(block, qk_norm=qk_norm))
    everywhere = spec.trunk.blocks[0]
    local = with_attention(everywhere, window=window, rope=Rope(dim=attention_of(spec).head_dim, base=local_base))
    blocks = tuple(local if kind == LOCAL else everywhere for kind in kinds)
    return dataclasses.replace(spec, decoder=dataclasses.replace(spec.trunk, blocks=blocks))


def read_ropes(reader: ConfigReader, dim: int, context: int) -> dict[str, Rope]:
    """Read the rotary positions of both kinds of layers, in the current form or the one of the published files."""
    nested = reader.section("rope_parameters")
    if nested is None:
        local = Rope(dim=dim, base=reader.take("rope_local_base_freq", float, 10000.0))
        return {LOCAL: local, GLOBAL: read_rope(reader, dim=dim, context=context, base=1e6)}
    ropes = {}
    for kind, base in ((LOCAL, 10000.0), (GLOBAL, 1e6)):
        one = ConfigReader({"rope_parameters": nested.take(kind, dict, {})}, f"{nested.where}: {kind}")
        ropes[kind] = read_rope(one, dim=dim, context=context, base=base)
    nested.finish()
    return ropes


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "gemma3_text", or the text model's part of one of model type "gemma3"."""
    text = reader.take("text_config", dict, None)
    if text is None:
        return read_text(reader)
    reader.skip("vision_config", "mm_tokens_per_image")  # what is there for images
    reader.skip("boi_token_index", "eoi_token_index", "image_token_index")
    reader.skip("boi_token_id", "eoi_token_id", "image_token_id")
    reader.expect("tie_word_embeddings", True)
    inner = ConfigReader(UNSAID | text, f"{reader.where}: text_config")
    spec = read_text(inner)
    inner.finish()
    return spec


UNSAID = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4}  # in published text configs


def read_text(reader: ConfigReader) -> ModelSpec:
    """Read the config of a text model."""
    dimensions = gemma2.read_dimensions(reader, context=131072)
    ropes = read_ropes(reader, dimensions["head_dim"], dimensions["context"])
    if ropes[LOCAL].scaling is not None:
        reader.expect("the scaling of layers with a window", None)
    pattern = reader.take("_sliding_window_pattern", int, 6)
    return build(
        **dimensions,
        window=reader.take("sliding_window", int, 4096),
        kinds=reader.take("layer_types", list, None),
        pattern=reader.take("sliding_window_pattern", int, pattern),
        local_base=ropes[LOCAL].base,
        rope_base=ropes[GLOBAL].base,
        rope_scaling=ropes[GLOBAL].scaling,
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    ops = [sub.op for block in spec.trunk.blocks for sub in block.subs if isinstance(sub.op, Attention)]
    ropes = {GLOBAL if op.window is None else LOCAL: write_rope(op.rope) for op in ops if op.rope}
    return gemma2.write(spec) | {"rope_parameters": ropes}


_SIZE = {"vocab": 262208, "context": 131072, "rope_scaling": LinearScaling(factor=8)}
_SMALL = {"vocab": 262144, "context": 32768, "heads": 4, "kv_heads": 1, "window": 512}
FAMILY = Family(
    name="gemma3",
    title="Gemma 3",
    paper="https://arxiv.org/abs/2503.19786",
    origin=Origin(
        published="2025-03",
        parents=("gemma2",),
        brought="long inputs in little memory: five layers of six see a window only",
        reference=Running(),
        counts={
            "gemma3-270m": 268_098_176,
            "gemma3-1b": 999_885_952,
            "gemma3-4b": 3_880_263_168,
            "gemma3-12b": 11_766_034_176,
            "gemma3-27b": 27_009_346_304,
        },
    ),
    build=build,
    sizes={
        "gemma3-270m": _SMALL | {"dim": 640, "layers": 18, "hidden": 2048},
        "gemma3-1b": _SMALL | {"dim": 1152, "layers": 26, "hidden": 6912},
        "gemma3-4b": _SIZE | {"dim": 2560, "layers": 34, "heads": 8, "kv_heads": 4, "hidden": 10240},
        "gemma3-12b": _SIZE | {"dim": 3840, "layers": 48, "heads": 16, "kv_heads": 8, "hidden": 15360},
        "gemma3-27b": _SIZE
        | {"dim": 5376, "layers": 62, "heads": 32, "kv_heads": 16, "hidden": 21504, "head_dim": 128}
        | {"scale": 168**-0.5},
    },
    tiny=llama.FAMILY.tiny | {"head_dim": 16, "window": 16, "pattern": 2, "scale": 0.2},
    format=Format(
        model_type="gemma3_text",
        older_types=("gemma3",),
        architecture="Gemma3ForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=gemma2.weights,
        skipped=(r"^vision_tower\.", r"^multi_modal_projector\."),
        renamed={r"^language_model\.": ""},
    ),
)
