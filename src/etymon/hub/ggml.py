"""How GGUF files store numbers: plain ones, and blocks of small integers with shared scales.

The layouts are those of ggml's `ggml-common.h`. A row of a matrix is a whole number of blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Places = Callable[[Tensor], tuple[Tensor, Tensor]]


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


def _bits(blocks: Tensor, places: Places, count: int, width: int) -> Tensor:
    """Return `count` small integers [n, count] of `width` bits; `places` says for numbers 0, 1, … in which byte of the
    block each lies, and how many bits from its low end."""
    byte, shift = places(torch.arange(count))
    return blocks.index_select(1, byte) >> shift.to(torch.uint8) & (1 << width) - 1


def _scaled(numbers: Tensor, factors: Tensor, minima: Tensor | None = None) -> Tensor:
    """Multiply runs of equal length of `numbers` [n, values] by `factors` [n, runs], and take `minima` away."""
    product = numbers.unflatten(1, (factors.shape[1], -1)) * factors[:, :, None]
    return (product if minima is None else product.sub_(minima[:, :, None])).flatten(1)


def _over(numbers: Tensor, scale: Tensor) -> Tensor:
    """numbers / scale as ggml computes it, by the reciprocal; 0 where the scale is."""
    return numbers * scale.reciprocal().masked_fill(scale == 0, 0)


# -- 32 numbers with one scale ----------------------------------------------------------------------------------------


def _unpack_q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8)


def _pack_q8_0(numbers: Tensor) -> Tensor:
    scale = torch.linalg.vector_norm(numbers.float(), torch.inf, dim=1, keepdim=True) / 127
    q = _over(numbers.float(), scale)
    q = torch.trunc(q + q.sign() / 2).to(torch.int8)  # halves go outwards
    return torch.cat((scale.half().view(torch.uint8), q.view(torch.uint8)), 1)


def _unpack_q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_bits(blocks, lambda i: (2 + i % 16, i // 16 * 4), 32, 4).float() - 8)


def _pack_q4_0(numbers: Tensor) -> Tensor:
    # The first of those of largest magnitude becomes -8 exactly, whatever its sign.
    magnitude, place = numbers.float().abs().sort(dim=1, descending=True, stable=True)
    scale = magnitude[:, :1] * numbers.float().take_along_dim(place[:, :1], 1).sign() / -8
    q = (_over(numbers.float(), scale) + 8.5).floor().clamp(0, 15).to(torch.uint8)
    return torch.cat((scale.half().view(torch.uint8), q[:, :16] + q[:, 16:] * 16), 1)


# -- 256 numbers with scales that are themselves small integers -------------------------------------------------------


def _six_bits(blocks: Tensor, low: Places, high: Places, count: int) -> Tensor:
    """Return integers of six bits [n, count], whose four low and two high bits lie apart."""
    return _bits(blocks, low, count, 4) + _bits(blocks, high, count, 2) * 16


def _unpack_q4_k(blocks: Tensor) -> Tensor:
    # Eight runs of 32 have a scale and a minimum each. Those of the first four fill the low six bits of bytes 4-7 and
    # 8-11; of the last four, the low bits share bytes 12-15, and the high bits are what was left of the former.
    first = torch.arange(8) < 4
    scales = _six_bits(
        blocks,
        lambda j: (torch.where(first, 4 + j, 8 + j), 0 * j),
        lambda j: (torch.where(first, 4 + j, j), torch.where(first, 4, 6)),
        8,
    )
    minima = _six_bits(
        blocks,
        lambda j: (8 + j, torch.where(first, 0, 4)),
        lambda j: (torch.where(first, 8 + j, 4 + j), torch.where(first, 4, 6)),
        8,
    )
    q = _bits(blocks, lambda i: (16 + i // 64 * 32 + i % 32, i // 32 % 2 * 4), 256, 4)
    return _scaled(q, scales * _half(blocks, 0), minima * _half(blocks, 2))


def _unpack_q6_k(blocks: Tensor) -> Tensor:
    # Two halves of four runs of 32: 64 bytes hold the low bits of two runs each, 32 bytes the high bits of all four.
    q = _six_bits(
        blocks,
        lambda i: (i // 128 * 64 + i % 64, i // 64 % 2 * 4),
        lambda i: (128 + i // 128 * 32 + i % 32, i // 32 % 4 * 2),
        256,
    )
    return _scaled(q.float() - 32, blocks[:, 192:208].contiguous().view(torch.int8) * _half(blocks, 208))


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
