"""Recurrent layers: what a token leaves behind is all that the next one knows of the past."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from etymon import spec
from etymon.nn.linear import Linear
from etymon.nn.runs import Packed, Runs
from etymon.nn.state import Vectors
from etymon.nn.walk import Walker

Memory = tuple[Tensor, ...]


class Recurrence(Walker):
    """Elman's network, the LSTM or the GRU. `input` and `recur` stack the gates in torch's order, with a bias each."""

    def __init__(self, op: spec.Elman | spec.LSTM | spec.GRU, dim: int) -> None:
        super().__init__()
        self.op = op
        self.kind = op.activation if isinstance(op, spec.Elman) else type(op).__name__
        self.input = Linear(dim, (op.width,) * op.gates, bias=op.bias)
        self.recur = Linear(op.width, (op.width,) * op.gates, bias=op.bias)
        self.memories = 2 if isinstance(op, spec.LSTM) else 1

    def new_state(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Vectors:
        """Allocate the hidden vector, and the LSTM's cell vector, of `rows` sequences."""
        memory = (torch.empty((rows, self.op.width), dtype=dtype, device=device) for _ in range(self.memories))
        return Vectors(*memory)

    def walk(self, x: Tensor, runs: Runs | None, cell: Vectors | None) -> Tensor:
        """Return the hidden vectors [batch, time, width]."""
        B = x.shape[0]
        held = cell.read() if cell is not None else (x.new_zeros(B, self.op.width),) * self.memories
        if runs is None:
            y, memory = self._unbroken(x, held)
        else:
            y, memory = self._packed(x, runs.packed, held, carried=cell is not None)
        if cell is not None:
            cell.write(*memory)
        return y

    def _unbroken(self, x: Tensor, held: Memory) -> tuple[Tensor, Memory]:
        kernel = self._kernel()
        if kernel is not None:
            y, *ends = kernel(x, self._hidden(held), *self._weights(), 1, 0.0, self.training, False, True)
            return y, tuple(end[0] for end in ends)
        B, T, _ = x.shape
        y, memory = self._steps(self.input(x).transpose(0, 1).flatten(0, 1), [B] * T, held)
        return y.view(T, B, -1).transpose(0, 1), memory

    def _packed(self, x: Tensor, packed: Packed, held: Memory, carried: bool) -> tuple[Tensor, Memory]:
        B, T, _ = x.shape
        tokens = x.reshape(B * T, -1)[packed.index]
        begin = tuple(m[packed.rows] if carried else m.new_zeros(len(packed.rows), m.shape[1]) for m in held)
        kernel = self._kernel()
        if kernel is not None:
            y, *memory = kernel(
                tokens, packed.sizes, self._hidden(begin), *self._weights(), 1, 0.0, self.training, False
            )
            ends = tuple(m[0] for m in memory)
        else:
            y, ends = self._steps(self.input(tokens), packed.sizes.tolist(), begin)
        out = y.new_zeros(B * T, y.shape[1]).index_copy(0, packed.index, y).view(B, T, -1)
        if not carried:  # rows may have several runs, of which nobody asks the end
            return out, ends
        return out, tuple(m.index_copy(0, packed.rows, end) for m, end in zip(held, ends, strict=True))

    def _kernel(self) -> Callable[..., tuple[Tensor, ...]] | None:
        """torch's kernel for this recurrence; a quantised one, and the sigmoid, have none."""
        return _KERNELS.get(self.kind) if isinstance(self.recur, nn.Linear) else None

    def _hidden(self, memory: Memory) -> Tensor | list[Tensor]:
        return [m[None] for m in memory] if self.memories == 2 else memory[0][None]

    def _weights(self) -> tuple[list[Tensor], bool]:
        weights = [self.input.weight, self.recur.weight]
        if self.op.bias:
            weights += [self.input.bias, self.recur.bias]
        return weights, self.op.bias

    def _steps(self, inputs: Tensor, sizes: Sequence[int], memory: Memory) -> tuple[Tensor, Memory]:
        """Walk step by step: `inputs` [tokens, gates * width] lie as `Packed` says."""
        step = _STEPS[self.kind]
        outputs, ended = [], []
        for x in inputs.split(list(sizes)):
            if len(x) < len(memory[0]):
                ended.append(tuple(m[len(x) :] for m in memory))
                memory = tuple(m[: len(x)] for m in memory)
            memory = step(x, self.recur(memory[0]), memory)
            outputs.append(memory[0])
        return torch.cat(outputs), tuple(torch.cat(parts) for parts in zip(memory, *reversed(ended), strict=True))


def _lstm(x: Tensor, h: Tensor, memory: Memory) -> Memory:
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * memory[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, memory: Memory) -> Memory:
    r, z, n = zip(x.chunk(3, -1), h.chunk(3, -1), strict=True)
    update = (z[0] + z[1]).sigmoid()
    new = (n[0] + (r[0] + r[1]).sigmoid() * n[1]).tanh()
    return (torch.lerp(new, memory[0], update),)


_STEPS: dict[str, Callable[[Tensor, Tensor, Memory], Memory]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "tanh": lambda x, h, _: ((x + h).tanh(),),
    "relu": lambda x, h, _: ((x + h).relu(),),
    "sigmoid": lambda x, h, _: ((x + h).sigmoid(),),
}
_KERNELS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "tanh": torch.rnn_tanh,
    "relu": torch.rnn_relu,
}
