"""A decoder's forward pass over a few tokens as one call into compiled code.

The modules stay what they are and say what is computed; here they become a list of instructions that name their
parameters' memory, so that an update in place is seen at once. What cannot be said in instructions runs as modules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from etymon import kernels, spec
from etymon.kernels.program import (
    ATTEND,
    CENTRED,
    EMBED,
    LAYER,
    MOST_TABLES,
    MULTIPLY,
    NONE,
    NORMALISE,
    RMS,
    Instruction,
)
from etymon.nn import Model, State
from etymon.nn.attention import Attention
from etymon.nn.block import Block, ParallelBlock, Sub
from etymon.nn.embed import Embed
from etymon.nn.ffn import Dense, Gated
from etymon.nn.linear import Linear
from etymon.nn.norm import CentredRMSNorm, HeadNorm, RMSNorm
from etymon.nn.position import alibi_slopes, rotary_table
from etymon.nn.state import Pages
from etymon.quant.int8 import Int8Linear

LEFT_TO_RIGHT = (spec.Causal, spec.Prefix)  # calls that bring a prefix take the modules
TOKENS = 64  # in one call; more of them keep the modules' larger products busy


class _CannotSayError(Exception):
    """Something has no instruction."""


def _need(condition: bool) -> None:
    if not condition:
        raise _CannotSayError


class Program:
    """A model's forward pass on one state, lowered. `lower` makes it.

    What becomes of a token does not depend, to the last bit, on what else is in the call, nor on how many tokens of
    its own row are. An `exact` one takes calls of any size, in pieces, so that this holds for all that is ever read.
    """

    def __init__(self, model: Model, state: State, *, exact: bool) -> None:
        self._exact = exact
        self._kept: list[Tensor] = []  # whose memory the instructions name
        self._seen: list[tuple[dict[str, Any], str, object]] = []  # modules and parameters, where they were found
        self._places: list[tuple[Tensor, int]] = []
        self._model, self._capacity = model, state.capacity
        self._lower(model, state)

    def __call__(self, ids: Tensor, state: State) -> Tensor | None:
        """Return the hidden states [rows, time, dim] of `ids` [rows, time] and append them to `state`, a view on the
        lowered one; None, and nothing is done, where that takes the modules."""
        rows, time = ids.shape
        hidden = torch.empty(rows, time, self._dim)
        tables = [slots.table for slots in state.slots]
        if rows * time <= TOKENS:
            if not self._program.run(ids, state.lengths, tables, hidden):
                return None  # which say what is wrong
            state.lengths += time
            return hidden
        if not self._exact or not self._possible(ids, state.lengths):
            return None
        step = max(1, TOKENS // rows)
        for row in range(0, rows, TOKENS):
            some = slice(row, row + TOKENS)
            for first in range(0, time, step):
                piece = hidden[some, first : first + step].contiguous()
                fed = ids[some, first : first + step]
                done = self._program.run(fed, state.lengths[some], [table[some] for table in tables], piece)
                assert done, "a piece of what is possible is possible"
                hidden[some, first : first + step] = piece
                state.lengths[some] += fed.shape[1]
        return hidden

    def _possible(self, ids: Tensor, lengths: Tensor) -> bool:
        """Whether ids and columns are within their ranges."""
        within = int(ids.min()) >= 0 and int(ids.max()) < self._model.spec.vocab
        return within and int(lengths.max()) + ids.shape[1] <= self._capacity

    @property
    def fresh(self) -> bool:
        """Whether every parameter is where it was, and the model's forward pass that of its class."""
        return (
            "forward" not in vars(self._model)
            and all(found[name] is seen for found, name, seen in self._seen)
            and all(tensor.data_ptr() == place for tensor, place in self._places)
        )

    # -- memory ----------------------------------------------------------------------------------------------------

    def _at(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
        """Return where a tensor lies."""
        _need(tensor.dtype is dtype and tensor.is_cpu and tensor.is_contiguous())
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _parameter(self, owner: nn.Module, name: str, dtype: torch.dtype = torch.float32) -> int | None:
        """Return where a parameter or buffer lies; None where there is none."""
        held: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers, vars(owner))
        found = next(named for named in held if name in named)
        tensor = found[name]
        self._seen.append((found, name, tensor))
        if tensor is None:
            return None
        self._places.append((tensor, tensor.data_ptr()))
        return self._at(tensor, dtype)

    def _linear(self, owner: nn.Module, name: str) -> Linear | Int8Linear:
        linear = owner._modules[name]
        _need(type(linear) in (Linear, Int8Linear))
        assert isinstance(linear, Linear | Int8Linear)
        self._seen.append((owner._modules, name, linear))
        return linear

    def _buffer(self, name: str, width: int) -> Tensor:
        """Return the buffer [TOKENS, width or more] of a role, which all layers share."""
        return self._buffers.setdefault((name, width), torch.zeros(TOKENS, width))

    def _from(self, instruction: Instruction, source: Tensor, to: Tensor) -> Instruction:
        instruction.source, instruction.source_stride = self._at(source), source.shape[1]
        instruction.to, instruction.to_stride = self._at(to), to.shape[1]
        return instruction

    # -- instructions ----------------------------------------------------------------------------------------------

    def _lower(self, model: Model, state: State) -> None:
        decoder, own = model.decoder, model.spec
        _need(decoder is not None and model.encoder is None and model.infill is None)
        assert decoder is not None
        _need("forward" not in vars(model) and own.width == own.dim)
        _need(type(own.trunk.visibility) in LEFT_TO_RIGHT and decoder.query is None and decoder.relative is None)
        _need(0 < len(state.slots) <= MOST_TABLES and state.source is None and state.windows is None)
        _need(model.dtype is torch.float32 and model.device.type == "cpu")
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self._floats = 0
        self._dim = own.dim
        stream = self._buffer("stream", own.dim)
        cells = iter(state.cells)
        self._tables = {id(slots): number for number, slots in enumerate(state.slots)}
        instructions = list(self._embed(model.embed, own, stream))
        for _ in range(decoder.repeats):
            for block in decoder.blocks:
                instructions += self._block(block, stream, cells)
        instructions.append(self._normalise(decoder.final_norm, stream, stream, own.dim))
        self._program = kernels.Program(instructions, self._floats, own.vocab)

    def _embed(self, embed: Embed, own: spec.ModelSpec, stream: Tensor) -> Iterator[Instruction]:
        _need(type(embed) is Embed and embed.projection is None and embed.last is None)
        _need(embed.segments is None and embed.tasks is None)
        instruction = Instruction(kind=EMBED, width=own.dim, beta=embed.scale)
        instruction.tokens = self._parameter(embed.tokens, "weight")
        if embed.position is not None:
            position = embed.position
            _need(isinstance(position, spec.Learned) and embed.positions is not None)
            assert isinstance(position, spec.Learned) and embed.positions is not None
            _need(position.padding is None and position.axes == 1 and position.length >= self._capacity)
            instruction.positions, instruction.offset = self._parameter(embed.positions, "weight"), position.offset
        yield self._from(instruction, stream, stream)
        if embed.norm is not None:
            yield self._normalise(embed.norm, stream, stream, own.dim)

    def _block(self, block: nn.Module, stream: Tensor, cells: Iterator[object]) -> list[Instruction]:
        subs = [sub for sub in block.children() if isinstance(sub, Sub)]
        if type(block) is Block:
            return [step for sub in subs for part in self._sub(sub, sub.pre, stream, cells) for step in part]
        _need(type(block) is ParallelBlock)
        assert isinstance(block, ParallelBlock)
        fronts: list[Instruction] = []
        backs: list[Instruction] = []  # the stream is written when all have read it
        for sub in subs:
            _need(block.pre is None or sub.pre is None)
            front, back = self._sub(sub, sub.pre if block.pre is None else block.pre, stream, cells, within=True)
            fronts += front
            backs += back
        return fronts + backs

    def _sub(
        self, sub: Sub, pre: nn.Module | None, stream: Tensor, cells: Iterator[object], *, within: bool = False
    ) -> tuple[list[Instruction], list[Instruction]]:
        """Return the instructions of a sublayer that read the stream, and those that write it."""
        self._seen.append((sub._modules, "op", sub.op))
        if type(sub.op) is Attention:
            front, middle, out = self._attention(sub.op, pre, stream, next(cells))
        else:
            front, middle, out = self._ffn(sub.op, pre, stream)
        alpha, beta = (1.0, sub.beta) if within else (sub.alpha, sub.beta)
        if sub.branch is None:
            back = [self._multiply(out, None, middle, stream, alpha=alpha, beta=beta)]
        else:
            apart = self._buffer("branch", stream.shape[1])
            back = [self._multiply(out, None, middle, apart)]
            back.append(self._normalise(sub.branch, apart, stream, stream.shape[1], alpha=alpha, beta=beta))
        if sub.post is not None and not within:
            back.append(self._normalise(sub.post, stream, stream, stream.shape[1]))
        return front, back

    def _ffn(
        self, op: nn.Module, pre: nn.Module | None, stream: Tensor
    ) -> tuple[list[Instruction], Tensor, Linear | Int8Linear]:
        if type(op) is Gated:
            hidden = self._buffer("hidden", op.op.hidden)
            front = self._multiply(self._linear(op, "gate_up"), pre, stream, hidden, gated=op.op)
        else:
            _need(type(op) is Dense)
            assert isinstance(op, Dense)
            hidden = self._buffer("hidden", op.op.hidden)
            front = self._multiply(self._linear(op, "up"), pre, stream, hidden, activation=op.op.activation)
        return [front], hidden, self._linear(op, "down")

    def _attention(
        self, op: Attention, pre: nn.Module | None, stream: Tensor, cell: object
    ) -> tuple[list[Instruction], Tensor, Linear | Int8Linear]:
        own = op.op
        _need(type(own) is spec.Attention and type(op.visibility) in LEFT_TO_RIGHT and op.q_bias is None)
        _need(own.scores is None or isinstance(own.scores, spec.ALiBi | spec.Sinks))
        _need(type(cell) is Pages)
        assert isinstance(cell, Pages)
        qkv = self._buffer("qkv", own.query_width + 2 * own.kv_width)
        mixed = self._buffer("mixed", own.query_width)
        front = [self._multiply(self._linear(op, "qkv"), pre, stream, qkv)]
        attend = self._from(Instruction(kind=ATTEND, table=self._tables[id(cell.slots)]), qkv, mixed)
        keys, values = cell.tensors
        attention = attend.attention
        attention.keys, attention.values, attention.pool = self._at(keys), self._at(values), keys.shape[1]
        attention.heads, attention.kv_heads, attention.width = own.heads, own.kv_heads, own.head_dim
        attention.window, attention.softcap = own.window or 0, own.softcap or 0.0
        attention.scale = own.head_dim**-0.5 if own.scale is None else own.scale
        if isinstance(own.scores, spec.ALiBi):
            attention.slopes = self._at(alibi_slopes(own.scores, own.heads))
        if op.sinks is not None:
            attention.sinks = self._parameter(op, "sinks")
        attend.clip = own.clip or 0.0
        if own.qk_norm is not None and own.qk_norm.over == "width":
            _need(own.clip is None)
            for norm, offset, width in ((op.q_norm, 0, own.query_width), (op.k_norm, own.query_width, own.kv_width)):
                normalise = self._normalise(norm, qkv, qkv, width)
                normalise.source += 4 * offset
                normalise.to += 4 * offset
                front.append(normalise)
        elif own.qk_norm is not None:
            self._norm(attend.q_norm, op.q_norm)
            self._norm(attend.k_norm, op.k_norm)
            attend.norm_stride = own.head_dim if own.qk_norm.over == "each head" else 0
        if own.rope is not None:
            by_length = spec.DynamicScaling | spec.DoublingScaling | spec.LongRopeScaling
            _need(own.rope.axes == 1 and not isinstance(own.rope.scaling, by_length))
            cos, sin = rotary_table(own.rope, torch.arange(self._capacity)[None], torch.float32)
            rotation = attend.rotation
            rotation.pairs, rotation.cos, rotation.sin = cos.shape[-1], self._at(cos), self._at(sin)
        self._floats = max(self._floats, 2 * (own.head_dim + 2 * kernels.LANES))
        return [*front, attend], mixed, self._linear(op, "out")

    def _multiply(
        self,
        linear: Linear | Int8Linear,
        norm: nn.Module | None,
        source: Tensor,
        to: Tensor,
        *,
        gated: spec.Gated | None = None,
        activation: str = "",
        alpha: float = 0.0,
        beta: float = 1.0,
    ) -> Instruction:
        instruction = self._from(Instruction(kind=MULTIPLY), source, to)
        self._norm(instruction.norm, norm)
        product = instruction.product
        size = 4 if isinstance(linear, Linear) else 1
        product.weight = self._parameter(linear, "weight", torch.float32 if size == 4 else torch.int8)
        product.scale = self._parameter(linear, "scale") if size == 1 else None
        product.bias = self._parameter(linear, "bias")
        product.inputs, product.outputs = linear.in_features, linear.out_features
        product.activation = kernels.ACTIVATIONS[gated.activation if gated else activation]
        product.alpha, product.beta = alpha, beta
        if gated is not None:
            product.outputs = gated.hidden
            product.up = product.weight + size * gated.hidden * linear.in_features
            product.up_scale = product.scale and product.scale + 4 * gated.hidden
            product.up_bias = product.bias and product.bias + 4 * gated.hidden
            product.limit, product.offset = math.inf if gated.limit is None else gated.limit, gated.offset
        self._floats = max(self._floats, TOKENS * linear.in_features)
        return instruction

    def _normalise(
        self, norm: nn.Module | None, source: Tensor, to: Tensor, width: int, *, alpha: float = 0.0, beta: float = 1.0
    ) -> Instruction:
        instruction = self._from(Instruction(kind=NORMALISE, width=width, alpha=alpha, beta=beta), source, to)
        self._norm(instruction.norm, norm)
        self._floats = max(self._floats, width)
        return instruction

    def _norm(self, into: kernels.Norm, norm: nn.Module | None) -> None:
        if norm is None:
            into.kind = NONE
            return
        kinds = {RMSNorm: RMS, nn.LayerNorm: LAYER, HeadNorm: LAYER, CentredRMSNorm: CENTRED}
        _need(type(norm) in kinds)
        into.kind, into.eps = kinds[type(norm)], norm.eps
        if isinstance(norm, RMSNorm):
            into.offset = norm.offset
        into.weight = self._parameter(norm, "weight")
        into.bias = None if isinstance(norm, RMSNorm) else self._parameter(norm, "bias")


def lower(model: nn.Module, state: State, *, exact: bool = False) -> Program | None:
    """Return the program of `model` on `state` and views of it, for all calls if `exact`; None where an operator, a
    dtype, a device or the machine's compiler does not allow for one."""
    if not isinstance(model, Model) or not state.slots or kernels.functions() is None:
        return None
    try:
        return Program(model, state, exact=exact)
    except _CannotSayError:
        return None
