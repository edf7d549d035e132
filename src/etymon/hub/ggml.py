"""How GGUF files store numbers: plain ones, and blocks of small integers with shared scales.

The layouts are those of ggml's `ggml-common.h`. A row of a matrix is a whole number of blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Storage:
    """A type of stored numbers: `values` of them take `nbytes` bytes.

    `unpack` turns blocks [n, nbytes] of uint8 into numbers [n, values]; `pack` is its inverse up to rounding, where
    files of this type are written.
    """

    name: str
    code: int
    values: int
    nbytes: int
    unpack: Callable[[Tensor], Tensor]
    pack: Callable[[Tensor], Tensor] | None = None

    def read(self, raw: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the numbers of `shape` that the bytes `raw` [size] store."""
        return self.unpack(raw.reshape(-1, self.nbytes)).reshape(shape)

    def write(self, numbers: Tensor) -> Tensor:
        """Return the bytes [size] that store `numbers`, whose last axis is a multiple of `values`."""
        assert self.pack is not None, self.name
        return self.pack(numbers.contiguous().reshape(-1, self.values)).reshape(-1)


def _plain(dtype: torch.dtype) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    return lambda blocks: blocks.view(dtype), lambda numbers: numbers.to(dtype).contiguous().view(torch.uint8)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The fp16 number at byte `at` of each block, as fp32 [n, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """[n, groups, bytes] → [n, groups, 2, bytes]: the low halves of each group's bytes, then the high ones."""
    return torch.stack((packed & 15, packed >> 4), dim=2)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.zeros_like(scale), 1.0 / scale)


# -- 32 numbers with one scale ----------------------------------------------------------------------------------------


def _unpack_q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


def _pack_q8_0(numbers: Tensor) -> Tensor:
    x = numbers.float()
    scale = x.abs().amax(dim=1, keepdim=True) / 127
    scaled = x * _inverse(scale)
    whole = (torch.floor(scaled.abs() + 0.5) * scaled.sign()).to(torch.int8)  # C's roundf: halves go outwards
    return torch.cat((scale.half().view(torch.uint8), whole.view(torch.uint8)), dim=1)


def _unpack_q4_0(blocks: Tensor) -> Tensor:
    q = _nibbles(blocks[:, None, 2:]).reshape(-1, 32)
    return (q.float() - 8) * _half(blocks, 0)


def _pack_q4_0(numbers: Tensor) -> Tensor:
    x = numbers.float()
    # The number of largest magnitude becomes -8 exactly, whatever its sign.
    largest = x.gather(1, x.abs().argmax(dim=1, keepdim=True))
    scale = largest / -8
    q = torch.trunc(x * _inverse(scale) + 8.5).clamp(0, 15).to(torch.uint8)
    return torch.cat((scale.half().view(torch.uint8), q[:, :16] | (q[:, 16:] << 4)), dim=1)


# -- 256 numbers with scales that are themselves small integers -------------------------------------------------------


def _unpack_q4_k(blocks: Tensor) -> Tensor:
    # Eight groups of 32: scale and minimum have six bits each; the upper two of the last four lie apart.
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((a & 63, (c & 15) | (a >> 6) << 4), dim=1).float() * _half(blocks, 0)
    minima = torch.cat((b & 63, (c >> 4) | (b >> 6) << 4), dim=1).float() * _half(blocks, 2)
    q = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return (scales[:, :, None] * q.float() - minima[:, :, None]).reshape(-1, 256)


def _unpack_q6_k(blocks: Tensor) -> Tensor:
    # Two halves of 128: four low bits (the low halves of 64 bytes, then the high ones) and two high bits.
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high = torch.cat([high >> shift & 3 for shift in (0, 2, 4, 6)], dim=2)
    q = (low | high << 4).float() - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float() * _half(blocks, 208)
    return (q.reshape(-1, 16, 16) * scales[:, :, None]).reshape(-1, 256)


F32 = Storage("F32", 0, 1, 4, *_plain(torch.float32))
F16 = Storage("F16", 1, 1, 2, *_plain(torch.float16))
BF16 = Storage("BF16", 30, 1, 2, *_plain(torch.bfloat16))
Q8_0 = Storage("Q8_0", 8, 32, 34, _unpack_q8_0, _pack_q8_0)
Q4_0 = Storage("Q4_0", 2, 32, 18, _unpack_q4_0, _pack_q4_0)
Q4_K = Storage("Q4_K", 12, 256, 144, _unpack_q4_k)
Q6_K = Storage("Q6_K", 14, 256, 210, _unpack_q6_k)
STORAGES = {storage.code: storage for storage in (F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q6_K)}
# What else a file may hold, for the message.
OTHERS = {
    3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8",
    25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
