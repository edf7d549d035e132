"""Where each token of a call stands and whom it sees, worked out once per call and shared by all layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from etymon import spec
from etymon.errors import DataError
from etymon.nn.permutation import Order
from etymon.nn.position import alibi_slopes, rotary_table
from etymon.nn.runs import Runs
from etymon.nn.state import State


@dataclass(frozen=True)
class Source:
    """What a decoder reads besides its own tokens: `hidden` [batch, keys, dim], or None where the state holds its keys
    and values; `mask` broadcasts to [batch, 1, time, keys]."""

    hidden: Tensor | None
    keys: int
    mask: Tensor | None
    places: Tensor | None = None  # [1, keys], where attention to it knows positions


@dataclass(frozen=True)
class Passages:
    """Encoded passages [batch, 1 + chunks, keys, width] of the chunk before a call, if `reached` [batch, 1 + chunks],
    and of those in it; which are `real`; their `places` [1, keys]. The call's tokens, behind `left` others, form groups
    of a chunk's size, each of which sees the passages of one chunk."""

    hidden: Tensor
    real: Tensor
    reached: Tensor
    places: Tensor
    left: int


@dataclass(frozen=True)
class Division:
    """The windows in which a call's tokens stand: `begins` [batch or 1, time] are the columns where they begin, from
    `first` to `last`; `places` [batch or 1, keys] that of every column in the windows which the call sees."""

    begins: Tensor
    places: Tensor
    first: int
    last: int


@dataclass(frozen=True)
class Chosen:
    """The global tokens of a call: `mask` [batch, time], and per row their places `index` [batch, most], of which those
    that are not `real` [batch, most] only fill up."""

    mask: Tensor
    index: Tensor
    real: Tensor


def hiding(real: Tensor) -> Tensor | None:
    """Return the mask `real`, or None where it hides nothing, which a compiler cannot see."""
    return real if torch.compiler.is_compiling() or not bool(real.all()) else None


class Layout:
    """The tokens of one call.

    Without a state the keys are the call's own tokens. With one, the tokens are appended to its rows, and the keys
    are all columns up to the longest row. `attention_mask` is [batch, keys] with 1 for real tokens, or [batch, time,
    keys] with 1 where a token sees a key, whatever the stack's visibility; `documents` is [batch, time] and confines
    attention to equal ids.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        device: torch.device,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        documents: Tensor | None = None,
        state: State | None = None,
    ) -> None:
        self.batch, self.time = shape
        self.device = device
        self.documents = documents
        self.columns: int | Tensor = 0
        self.source: Source | None = None
        self.chosen: Chosen | None = None
        self.languages: Tensor | None = None  # [batch, time], where operators differ by language
        self.retrieved: tuple[Tensor, Tensor] | None = None  # ids [batch, chunks, passages, length], their vectors
        self.passages: Passages | None = None
        self.order: Order | None = None
        self.division: Division | None = None
        self.segments: Tensor | None = None  # [batch, time], where scores compare them
        self.relative: tuple[Tensor, Tensor] | None = None  # vectors of distances, and each pair's place among them
        self.blocks: Tensor | None = None  # places within a blank [batch, time], where positions have two axes
        self.context: Tensor | None = None  # [batch, time]: which tokens all others of the call (and document) see
        if position_ids is not None and position_ids.dim() == 3:
            position_ids, self.blocks = position_ids.unbind(1)
        self.bias: Tensor | None = None  # added to the scores of every self-attention, [batch or 1, heads, time, keys]
        self._masks: dict[tuple[spec.Visibility, int | None], tuple[Tensor | None, bool]] = {}
        self._spans: dict[tuple[spec.Visibility, int | None], tuple[Tensor, Tensor] | None] = {}
        self._biases: dict[tuple[spec.Visibility, int | None, spec.ALiBi, int, torch.dtype], Tensor] = {}
        self._rotary: dict[tuple[spec.Rope, torch.dtype], tuple[Tensor, Tensor]] = {}
        offsets = torch.arange(self.time, device=device)
        self.keys = self.time
        self.ragged = False
        first: int | Tensor = 0
        self.lengths = None if state is None else state.lengths
        if state is not None:
            if documents is not None:
                raise DataError("documents (packing) cannot be combined with a state: pack in training, not decoding")
            for slots in state.slots:
                slots.renew()
            lengths = state.lengths
            if lengths.shape[0] != self.batch:
                raise DataError(f"input has {self.batch} rows but the state has {lengths.shape[0]}")
            held = lengths.tolist()
            longest = max(held)
            self.keys = longest + self.time
            if self.keys > state.capacity:
                raise DataError(f"{self.keys} tokens do not fit a state of capacity {state.capacity}")
            self.ragged = min(held) != longest
            first = lengths.to(device)[:, None] if self.ragged else longest
            self.columns = first + offsets if self.ragged else longest
        self.first = first
        self.offsets = offsets
        self.positions_given = position_ids is not None
        self.positions = (first + offsets).expand(shape) if position_ids is None else position_ids.expand(shape)
        self.attention_mask: Tensor | None = None
        self.seen: Tensor | None = None  # [batch, 1, time, keys], where it was given
        if attention_mask is not None and attention_mask.dim() == 3:
            expected = (self.batch, self.time, self.keys)
            if attention_mask.shape != expected:
                raise DataError(f"attention_mask has shape {tuple(attention_mask.shape)}, expected {expected}")
            self.seen = attention_mask.bool()[:, None]
        elif attention_mask is not None:
            if attention_mask.shape != (self.batch, self.keys):
                raise DataError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}, expected {(self.batch, self.keys)}"
                )
            self.attention_mask = hiding(attention_mask.bool())

    @cached_property
    def runs(self) -> Runs | None:
        """How the call's tokens follow one another for a recurrence; None where every row is one unbroken run."""
        if self.seen is not None:
            raise DataError("a recurrence reads token after token: attention_mask must be [batch, keys]")
        if self.attention_mask is None:
            return None if self.documents is None else Runs(self.documents, None)
        real = self.attention_mask[:, self.keys - self.time :]
        if isinstance(self.columns, Tensor):
            real = self.attention_mask.gather(1, self.columns)
        return Runs(self.documents, real)

    @property
    def plain(self) -> bool:
        """Whether who sees whom follows from columns alone."""
        told = (self.documents, self.attention_mask, self.seen, self.context, self.order, self.division, self.bias)
        return all(given is None for given in told)

    def show(self, prefix: Tensor, possible: bool) -> None:
        """Let the tokens of `prefix` [batch, time] see one another. Raises DataError where that is not `possible`, for
        another shape, and where it is said already who sees whom."""
        if not possible:
            raise DataError("this model reads from left to right, and no prefix sees itself: leave out prefix")
        if prefix.shape != (self.batch, self.time):
            raise DataError(f"prefix has shape {tuple(prefix.shape)}, expected {(self.batch, self.time)}")
        if self.seen is not None:
            raise DataError("attention_mask [batch, time, time] says who sees whom: leave out prefix")
        self.context = prefix.bool()

    def choose(self, mask: Tensor, possible: bool) -> None:
        """Make the tokens of `mask` [batch, time] global, but for padding. Raises DataError where it is not `possible`,
        or for another shape."""
        if not possible:
            raise DataError("this model has no global tokens: leave out global_attention_mask")
        if mask.shape != (self.batch, self.time):
            raise DataError(f"global_attention_mask has shape {tuple(mask.shape)}, expected {(self.batch, self.time)}")
        mask = mask.bool() if self.attention_mask is None else mask.bool() & self.attention_mask
        if most := int(mask.sum(1).max()):
            real, index = mask.byte().sort(dim=1, descending=True, stable=True)
            self.chosen = Chosen(mask, index[:, :most], real[:, :most].bool())

    def positions_from_padding(self) -> Tensor:
        """Return positions [batch or 1, time] that count the real tokens, -1 for padding, unless they were given."""
        if self.positions_given or self.attention_mask is None:
            return self.positions
        return (self.attention_mask.cumsum(1) * self.attention_mask - 1)[:, -self.time :]

    def rotary(self, rope: spec.Rope, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cos and sin [batch or 1, time, 1, rope.dim / 2] for these positions."""
        if (rope, dtype) not in self._rotary:
            positions = self.positions
            if positions.stride(0) == 0 or self.batch == 1:  # the same in every row: compute one
                positions = positions[:1]
            if rope.axes == 2 and self.blocks is not None:
                half = replace(rope, dim=rope.dim // 2, axes=1)
                a, b = (rotary_table(half, axis, dtype) for axis in (self.positions, self.blocks))
                self._rotary[rope, dtype] = torch.cat((a[0], b[0]), -1), torch.cat((a[1], b[1]), -1)
            else:
                self._rotary[rope, dtype] = rotary_table(rope, positions, dtype)
        return self._rotary[rope, dtype]

    def log_scale(self, scale: spec.LogScale, dtype: torch.dtype) -> Tensor:
        """Return by what `scale` multiplies queries, [batch, time, 1, 1]."""
        places = (self.positions[:, :, None, None] + 1).clamp(min=scale.context)
        return (places.log() / math.log(scale.context)).to(dtype)

    def visible(self, visibility: spec.Visibility, window: int | None) -> tuple[Tensor | None, bool]:
        """Return (mask, is_causal) for attention: a bool mask broadcastable to [batch, 1, time, keys], or None.

        With `is_causal` the kernel masks by itself, which is faster than any mask tensor.
        """
        if (visibility, window) not in self._masks:
            self._masks[visibility, window] = self._visible(visibility, window)
        return self._masks[visibility, window]

    def _visible(self, visibility: spec.Visibility, window: int | None) -> tuple[Tensor | None, bool]:
        mask, is_causal = self._plainest(visibility, window)
        if self.bias is None:
            return mask, is_causal
        if is_causal:
            mask = self.mask(visibility, window)
        return (self.bias if mask is None else self.bias.masked_fill(~mask, -torch.inf)), False

    def _plainest(self, visibility: spec.Visibility, window: int | None) -> tuple[Tensor | None, bool]:
        if self.order is not None or self.division is not None:
            return self.mask(visibility, window), False
        causal = isinstance(visibility, spec.Causal)
        if window is not None and window >= self.keys:
            window = None
        told = (self.documents, self.attention_mask, self.seen, self.context)
        plain = window is None and all(mask is None for mask in told)
        if plain and not causal and not self.ragged:
            return None, False
        if plain and causal and not self.ragged:
            if self.time == 1:
                return None, False
            if self.keys == self.time:
                return None, True
        if self.attention_mask is not None and not causal and window is None and self.documents is None:
            # one row serves all queries; a sequence of nothing but padding sees all of it
            return (self.attention_mask | ~self.attention_mask.any(1, keepdim=True))[:, None, None, :], False
        return self.mask(visibility, window), False

    def spans(self, visibility: spec.Visibility, window: int | None) -> tuple[Tensor, Tensor] | None:
        """Return the first and the last column that each token sees, int32 [batch or 1, time], or None where what some
        token sees is not one unbroken span, or is weighed by more than its scores."""
        if (visibility, window) not in self._spans:
            self._spans[visibility, window] = None if self.bias is not None else self._spans_of(visibility, window)
        return self._spans[visibility, window]

    def _spans_of(self, visibility: spec.Visibility, window: int | None) -> tuple[Tensor, Tensor] | None:
        mask, is_causal = self._plainest(visibility, window)
        if mask is None:
            places = torch.arange(self.keys, dtype=torch.int32, device=self.device)[None]
            last = places if is_causal else torch.full_like(places, self.keys - 1)
            return torch.zeros_like(places), last[:, : self.time].contiguous()
        seen = mask[:, 0].expand(-1, self.time, self.keys).to(torch.uint8)
        first, count = seen.argmax(2), seen.sum(2)
        last = first + count - 1
        if bool((seen.flip(2).argmax(2) != self.keys - 1 - last).any()):
            return None
        return first.int().contiguous(), last.int().contiguous()

    def mask(self, visibility: spec.Visibility, window: int | None) -> Tensor:
        """Return a bool mask broadcastable to [batch, 1, time, keys], whatever the kernels could do by themselves."""
        causal = isinstance(visibility, spec.Causal)
        distance = self._from(self.places())
        if self.seen is not None:  # where a token sees nothing, it sees itself
            mask = self.seen | ((distance == 0) & ~self.seen.any(-1, keepdim=True))
        elif self.ragged and not causal:
            mask = distance <= (self.time - 1 - self.offsets)[:, None]
        else:
            mask = distance <= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
            if self.context is not None:
                shown = torch.zeros((self.batch, self.keys), dtype=torch.bool, device=self.device)
                shown = shown.scatter(1, self.places().expand(self.batch, -1), self.context)
                mask = mask | shown[:, None, None, :]
        if window is not None:
            mask = mask & (distance > -window)
            if not causal:
                mask = mask & (distance < window)
        if self.division is not None:
            mask = mask & ~self._earlier()
        if self.documents is not None:
            mask = mask & (self.documents[:, None, :, None] == self.documents[:, None, None, :])
        if self.order is not None:
            real = True if self.attention_mask is None else self.attention_mask[:, None, None, :]
            return self.order.mask(mask & real, self.places())
        if self.attention_mask is not None:
            # a padded position still sees itself, so that no softmax is over nothing
            mask = (mask & self.attention_mask[:, None, None, :]) | (distance == 0)
        return mask

    def before_window(self) -> Tensor:
        """Return which keys lie before the window of a query, [batch or 1, 1, time, keys], but for padding and other
        documents."""
        mask = self._earlier()
        if self.documents is not None:
            mask = mask & (self.documents[:, None, :, None] == self.documents[:, None, None, :])
        return mask if self.attention_mask is None else mask & self.attention_mask[:, None, None, :]

    def _earlier(self) -> Tensor:
        assert self.division is not None
        return torch.arange(self.keys, device=self.device) < self.division.begins[:, None, :, None]

    def distance(self) -> Tensor:
        """Return column of the key minus column of the query, [batch or 1, 1, time, keys]; behind the call's tokens
        stand its queries, if it has any."""
        return self._from(self.places() if self.order is None else self.order.asked(self.places()))

    def places(self) -> Tensor:
        """Return the columns of the call's tokens, [batch or 1, time]."""
        return (self.first + self.offsets).expand(self.batch if self.ragged else 1, self.time)

    def _from(self, places: Tensor) -> Tensor:
        return torch.arange(self.keys, device=self.device) - places[:, None, :, None]

    def same_segment(self, segments: Tensor) -> Tensor:
        """Return whether a key is in its query's segment, [batch, 1, time (+ queries), keys], for tokens of `segments`
        [batch, time]. What a state remembers is in segment 0."""
        keys = torch.zeros((self.batch, self.keys), dtype=segments.dtype, device=self.device)
        keys = keys.scatter(1, self.places().expand_as(segments), segments)
        query = segments if self.order is None else self.order.asked(segments)
        return query[:, None, :, None] == keys[:, None, None, :]

    def alibi(
        self, visibility: spec.Visibility, window: int | None, alibi: spec.ALiBi, heads: int, dtype: torch.dtype
    ) -> Tensor:
        """Return what `alibi` adds to the scores of `heads` heads, -inf where hidden: [batch or 1, heads,
        time, keys]."""
        key = (visibility, window, alibi, heads, dtype)
        if key not in self._biases:
            slopes = alibi_slopes(alibi, heads).to(self.device)[:, None, None]
            bias = (self.distance().abs() * -slopes).to(dtype)
            self._biases[key] = bias.masked_fill(~self.mask(visibility, window), -torch.inf)
        return self._biases[key]
