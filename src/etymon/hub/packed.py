"""Weights published in few bits, unpacked as they are read: MXFP4 (gpt-oss) and FP8 with block factors (DeepSeek-V3).

They come out as bfloat16, in which every MXFP4 number is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from etymon.errors import CheckpointError, ConfigError
from etymon.families import ConfigReader

KEY = "quantization_config"
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # and the same with a minus (OCP microscaling formats, E2M1)
SIGNED_FP4 = torch.tensor([*FP4, *(-x for x in FP4)], dtype=torch.bfloat16)


class Tensors(Protocol):
    """Named tensors that are read one at a time."""

    def names(self) -> set[str]:
        """Return the names of all tensors."""

    def read(self, name: str) -> Tensor:
        """Read one tensor onto the CPU."""


@dataclass(frozen=True)
class MXFP4:
    """Two numbers in a byte, the first in the lower half; 32 share a power of two (`_scales`, with a bias of 127)."""

    suffixes = ("_blocks", "_scales")

    def unpack(self, blocks: Tensor, scales: Tensor) -> Tensor:
        """Return [experts, in, out] from `blocks` [experts, out, groups, 16] and `scales` [experts, out, groups]."""
        halves = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2).long()
        return torch.ldexp(SIGNED_FP4[halves], scales[..., None].int() - 127).flatten(-2).mT.to(torch.bfloat16)


@dataclass(frozen=True)
class BlockFP8:
    """8-bit numbers, `rows` x `columns` of which share a factor (`_scale_inv`)."""

    rows: int
    columns: int
    suffixes = ("", "_scale_inv")

    def unpack(self, weight: Tensor, factors: Tensor) -> Tensor:
        """Return [out, in] from `weight` [out, in] and a factor for every block of it."""
        wide = factors.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)
        return (weight.float() * wide[: weight.shape[0], : weight.shape[1]]).to(torch.bfloat16)


Packing = MXFP4 | BlockFP8


def take_packing(values: dict[str, Any], where: str) -> Packing | None:
    """Take what a `config.json` says of packed weights out of `values`. Raises ConfigError for an unknown packing."""
    section = values.pop(KEY, None)
    if section is None:
        return None
    reader = ConfigReader(section, f"{where}: {KEY}")
    method = reader.take("quant_method", str)
    reader.take("modules_to_not_convert", list, [])  # the files say it again: these have no packed tensors
    packing: Packing
    if method == "mxfp4":
        packing = MXFP4()
    elif method == "fp8":
        reader.expect("fmt", "e4m3")
        reader.expect("activation_scheme", "dynamic")  # how activations are rounded where products are in eight bits
        rows, columns = reader.take("weight_block_size", list)
        packing = BlockFP8(rows=rows, columns=columns)
    else:
        raise ConfigError(f"{where}: {KEY}: quant_method {method!r} is not supported (mxfp4, fp8)")
    reader.finish()
    return packing


class Unpacked:
    """The tensors of a checkpoint under the names that they have in full precision."""

    def __init__(self, files: Tensors, packing: Packing) -> None:
        self._files, self._packing = files, packing
        numbers, factors = packing.suffixes
        names = files.names()
        self._packed = {n.removesuffix(factors) for n in names if n.endswith(factors)}
        missing = sorted(name + numbers for name in self._packed if name + numbers not in names)
        if missing:
            raise CheckpointError(f"{missing[0]!r} is missing, of which there are factors ({missing[0]}{factors})")
        hidden = {name + suffix for name in self._packed for suffix in packing.suffixes}
        self._names = (names - hidden) | self._packed

    def names(self) -> set[str]:
        """Return the names of all tensors."""
        return self._names

    def read(self, name: str) -> Tensor:
        """Read one tensor onto the CPU, unpacked. Raises CheckpointError where its parts do not fit together."""
        if name not in self._packed:
            return self._files.read(name)
        numbers, factors = (self._files.read(name + suffix) for suffix in self._packing.suffixes)
        try:
            return self._packing.unpack(numbers, factors)
        except (RuntimeError, IndexError):
            shapes = f"{list(numbers.shape)} and {list(factors.shape)}"
            raise CheckpointError(f"{name!r}: packed numbers and factors do not fit together: {shapes}") from None
