"""The rotary section of a published config, in its current form (`rope_parameters`) and its legacy one."""

from __future__ import annotations

import math
from typing import Any

from etymon.errors import ConfigError
from etymon.families.reader import ConfigReader
from etymon.spec import (
    DoublingScaling,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)


def read_rope(reader: ConfigReader, *, dim: int, context: int, base: float = 10000.0, part: float = 1.0) -> Rope:
    """Read base frequency, scaling and the part of the head that turns, whose defaults are `base` and `part`.

    Raises ConfigError for kinds of scaling that are not supported.
    """
    base = reader.take("rope_theta", float, base)
    part = reader.take("partial_rotary_factor", float, part)
    parameters = reader.section("rope_parameters")
    if parameters is None:
        parameters = reader.section("rope_scaling")
    else:
        base = parameters.take("rope_theta", float, base)
        part = parameters.take("partial_rotary_factor", float, part)
        reader.expect("rope_scaling", None)
    dim = int(dim * part)
    if parameters is None:
        return Rope(dim=dim, base=base)
    kind = parameters.take("rope_type", str, None) or parameters.take("type", str, "default")
    parameters.take("type", str, None)
    scaling: RopeScaling | None
    match kind:
        case "default":
            scaling = None
        case "linear":
            scaling = LinearScaling(factor=parameters.take("factor", float))
        case "llama3":
            scaling = Llama3Scaling(
                factor=parameters.take("factor", float),
                low_freq_factor=parameters.take("low_freq_factor", float),
                high_freq_factor=parameters.take("high_freq_factor", float),
                original_context=parameters.take("original_max_position_embeddings", int),
            )
        case "yarn":
            scaling = YarnScaling(
                factor=parameters.take("factor", float),
                original_context=parameters.take("original_max_position_embeddings", int, context),
                beta_fast=parameters.take("beta_fast", float, 32.0),
                beta_slow=parameters.take("beta_slow", float, 1.0),
                attention_factor=parameters.take("attention_factor", float, None),
                **_read_mscale(parameters),
                truncate=parameters.take("truncate", bool, True),
            )
        case "dynamic":
            parameters.take("original_max_position_embeddings", int, None)  # the reference counts from the context
            scaling = DynamicScaling(factor=parameters.take("factor", float), original_context=context)
        case "longrope" | "su":
            scaling = _read_longrope(reader, parameters, context)
        case _:
            raise ConfigError(
                f"{parameters.where}: rope_type {kind!r} is not supported "
                "(default, linear, dynamic, llama3, yarn, longrope)"
            )
    parameters.finish()
    return Rope(dim=dim, base=base, scaling=scaling)


def _read_mscale(parameters: ConfigReader) -> dict[str, float]:
    """Read the two factors of YaRN's temperature, which count together only."""
    mscale, over_all = parameters.take("mscale", float, 0.0), parameters.take("mscale_all_dim", float, 0.0)
    if bool(mscale) != bool(over_all):
        raise ConfigError(f"{parameters.where}: mscale and mscale_all_dim belong together, or must both be 0")
    return {"mscale": mscale, "mscale_all": over_all} if mscale else {}


def _read_longrope(reader: ConfigReader, parameters: ConfigReader, context: int) -> LongRopeScaling:
    original = reader.take("original_max_position_embeddings", int, context)
    original = parameters.take("original_max_position_embeddings", int, original)
    ratio = parameters.take("factor", float, context / original)
    default = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
    return LongRopeScaling(
        short=tuple(map(float, parameters.take("short_factor", list))),
        long=tuple(map(float, parameters.take("long_factor", list))),
        original_context=original,
        attention_factor=parameters.take("attention_factor", float, default),
    )


def write_rope(rope: Rope, head_dim: int | None = None) -> dict[str, Any]:
    """Write what `read_rope` reads; with `head_dim`, also the part of the head that turns."""
    common: dict[str, Any] = {"rope_theta": rope.base}
    if head_dim is not None:
        common["partial_rotary_factor"] = rope.dim / head_dim
    match rope.scaling:
        case None:
            return common | {"rope_type": "default"}
        case LinearScaling(factor=factor):
            return common | {"rope_type": "linear", "factor": factor}
        case Llama3Scaling() as s:
            return common | {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_context,
            }
        case DynamicScaling(factor=factor):
            return common | {"rope_type": "dynamic", "factor": factor}
        case DoublingScaling():
            raise ConfigError("rotary positions that stretch in doublings belong to Qwen's own config only")
        case LongRopeScaling() as s:
            return common | {
                "rope_type": "longrope",
                "short_factor": list(s.short),
                "long_factor": list(s.long),
                "original_max_position_embeddings": s.original_context,
                "attention_factor": s.attention_factor,
            }
        case YarnScaling() as s:
            yarn: dict[str, Any] = {
                "rope_type": "yarn",
                "factor": s.factor,
                "original_max_position_embeddings": s.original_context,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
            }
            yarn |= {} if s.attention_factor is None else {"attention_factor": s.attention_factor}
            yarn |= {"mscale": s.mscale, "mscale_all_dim": s.mscale_all} if s.mscale_all else {}
            return common | yarn | ({} if s.truncate else {"truncate": False})
