"""The engine's memory: which sequence holds which blocks of the state, and what earlier sequences left there."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from etymon.engine.blocks import RESERVED, Blocks, key_of
from etymon.engine.config import EngineConfig
from etymon.engine.door import Door
from etymon.engine.sequence import Sequence
from etymon.errors import ConfigError
from etymon.nn import Model, State
from etymon.nn.state import BLOCK, Columns, Pages, Vectors
from etymon.spec import Attention, DoublingScaling, DynamicScaling, LongRopeScaling

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Group:
    """Operators of one reach, whose columns lie in blocks of equal numbers."""

    reach: int | None
    blocks: Blocks
    table: Tensor  # [rows, capacity]
    pages: list[Pages]


class Paging:
    """The state of an engine in blocks of BLOCK columns, for up to `slots` sequences at a time.

    Every operator that sees all columns shares one numbering of blocks; those of a window have one of their own, and
    give back what lies before it. Recurrences keep a row per sequence, and `snapshots` of rows for the prefix cache.
    """

    def __init__(self, model: Model, config: EngineConfig, door: Door, chunk: int) -> None:
        self.config, self.chunk = config, chunk
        self.context = door.context
        self.deterministic = config.deterministic
        self.version = b""  # what the keys of blocks begin with: other weights, other keys
        self.state, self._groups = _allocate(model, config, door, chunk)
        self._vectors = [cell for cell in self.state.cells if isinstance(cell, Vectors)]
        self._snapshots: OrderedDict[bytes, list[Tensor]] = OrderedDict()
        self._marks: dict[Sequence, tuple[int, list[Tensor]]] = {}
        self.caches = config.prefix_cache and self._can_cache(model)
        self.asked = self.found = 0  # prompt tokens that were looked for, and that were there

    def _can_cache(self, model: Model) -> bool:
        """Whether what a prefix leaves depends on its ids alone, and can be handed on."""
        state = self.state
        if not state.cells or state.windows is not None or state.source is not None or getattr(model, "infill", None):
            return False
        by_length = DynamicScaling | DoublingScaling | LongRopeScaling
        ops = (sub.op for sub in model.spec.trunk.subs()) if isinstance(model, Model) else ()
        turned = (op.rope for op in ops if isinstance(op, Attention) and op.rope is not None)
        return not any(isinstance(rope.scaling, by_length) for rope in turned)

    # -- rows ------------------------------------------------------------------------------------------------------

    def enter(self, sequence: Sequence, row: int) -> None:
        """Give a sequence a row, which holds what the prefix cache knows of its ids."""
        sequence.row = row
        sequence.blocks = [[] for _ in self._groups]
        self.state.truncate(row, 0)
        cached = self.cached(sequence)
        for group, blocks in zip(self._groups, sequence.blocks, strict=True):
            first = _first(group.reach, cached)
            group.table[row] = 0
            for number, key in enumerate(sequence.keys[: cached // BLOCK]):
                block = group.blocks.find(key) if number >= first else None
                blocks.append(-1 if block is None else block)
                if block is not None:
                    group.blocks.share(block)
                    _note(group.table, row, number, block)
        if cached and self._vectors:
            key = sequence.keys[cached // BLOCK - 1]
            self._snapshots.move_to_end(key)
            self._write_vectors(row, self._snapshots[key])
        sequence.held = sequence.published = cached
        self.state.lengths[row] = cached

    def move(self, source: int, target: int) -> None:
        """Let row `target` be what row `source` is."""
        self.state.copy_row(source, target)

    def leave(self, sequence: Sequence, *, spoilt: bool = False) -> None:
        """Give back all that a sequence holds; what is `spoilt` is wiped, so that it cannot reach others."""
        for group, blocks in zip(self._groups, sequence.blocks, strict=True):
            for block in reversed(blocks):  # the end of a text is asked for less often than its beginning
                if block >= 0:
                    if spoilt and group.blocks.retract(block):
                        _clear(group, block)
                    group.blocks.drop(block)
            if spoilt:
                _clear(group, RESERVED - 1)
        sequence.blocks = []
        sequence.held = sequence.published = 0
        self._marks.pop(sequence, None)

    def clear(self, row: int) -> None:
        """Let a row be empty."""
        self.state.truncate(row, 0)

    def fork(self, origin: Sequence, copy: Sequence, row: int) -> bool:
        """Give `copy` a row with all that `origin` holds, whose full blocks both use; False if there is no block left
        for the columns in which they will differ."""
        begun = bool(origin.held % BLOCK)
        if any(begun and not group.blocks.available for group in self._groups):
            return False
        self.state.copy_row(origin.row, row)
        copy.row, copy.held, copy.published = row, origin.held, origin.published
        copy.keys = list(origin.keys)
        copy.blocks = []
        for group, blocks in zip(self._groups, origin.blocks, strict=True):
            own = list(blocks)
            for block in own if not begun else own[:-1]:
                if block >= 0:
                    group.blocks.share(block)
            if begun:
                old, own[-1] = own[-1], group.blocks.take()
                for pages in group.pages:
                    pages.copy_slots(_slots(old), _slots(own[-1]))
                _note(group.table, row, len(own) - 1, own[-1])
            copy.blocks.append(own)
        return True

    def holds(self, tokens: int, rows: int) -> bool:
        """Whether so many sequences of so many tokens each can be held at the same time."""
        return all(
            rows * -(-(tokens if group.reach is None else min(tokens, group.reach + self.chunk + BLOCK)) // BLOCK)
            <= group.blocks.count
            for group in self._groups
        )

    # -- blocks ----------------------------------------------------------------------------------------------------

    def reserve(self, sequence: Sequence, tokens: int, spare: int = 0) -> bool:
        """Make room for so many more tokens of a sequence that has a row; False, and nothing changes, where there would
        not be `spare` blocks left."""
        if 0 < sequence.held % BLOCK <= BLOCK - tokens:
            return True  # the block that was begun holds them
        wanted = -(-(sequence.held + tokens) // BLOCK)
        if all(len(blocks) >= wanted for blocks in sequence.blocks):
            return True
        for group, blocks in zip(self._groups, sequence.blocks, strict=True):
            self._slide(group, blocks, sequence)
            if wanted - len(blocks) + spare > group.blocks.available:
                return False
        for group, blocks in zip(self._groups, sequence.blocks, strict=True):
            while len(blocks) < wanted:
                block = group.blocks.take()
                _note(group.table, sequence.row, len(blocks), block)
                blocks.append(block)
        return True

    def _slide(self, group: _Group, blocks: list[int], sequence: Sequence) -> None:
        """Give back what no token will see any more."""
        for number in range(min(_first(group.reach, sequence.held), len(blocks)) - 1, -1, -1):
            if blocks[number] < 0:
                break
            group.blocks.drop(blocks[number])
            blocks[number] = -1
            group.table[sequence.row, number * BLOCK : (number + 1) * BLOCK] = 0

    # -- the prefix cache ------------------------------------------------------------------------------------------

    def cached(self, sequence: Sequence) -> int:
        """Return how many of the first ids of a sequence need not be read, as others left what they make."""
        if not self.caches:
            return 0
        keys = self._keys(sequence, min(sequence.unread_from, len(sequence.ids) - 1) // BLOCK)
        found = len(keys)
        for group in self._groups:
            if group.reach is None:
                found = next((n for n in range(found) if group.blocks.find(keys[n]) is None), found)
        step = math.lcm(self.chunk, BLOCK) // BLOCK if self.deterministic else 1
        return next((n for n in range(found - found % step, 0, -step) if self._holds(keys, n)), 0) * BLOCK

    def _holds(self, keys: list[bytes], count: int) -> bool:
        """Whether all that is seen from behind so many blocks is there."""
        if self._vectors and keys[count - 1] not in self._snapshots:
            return False
        return all(
            group.blocks.find(keys[number]) is not None
            for group in self._groups
            if group.reach is not None
            for number in range(_first(group.reach, count * BLOCK), count)
        )

    def _keys(self, sequence: Sequence, count: int) -> list[bytes]:
        """Return the keys of the first `count` blocks of a sequence."""
        keys, ids = sequence.keys, sequence.ids
        while len(keys) < count:
            start = len(keys) * BLOCK
            # what a prefix that sees itself leaves depends on all of it
            parent = keys[-1] if keys else key_of(self.version + sequence.salt, ids[: sequence.prefix])
            keys.append(key_of(parent, ids[start : start + BLOCK]))
        return keys[:count]

    def promised(self, sequence: Sequence, cached: int) -> list[bytes]:
        """Return the keys of the blocks that a sequence will fill when it reads its ids from `cached` on."""
        return self._keys(sequence, len(sequence.ids) // BLOCK)[cached // BLOCK :] if self.caches else []

    def publish(self, sequence: Sequence) -> None:
        """Let others find what a sequence holds, but for a block that is not full yet."""
        if not self.caches or sequence.held // BLOCK <= sequence.published // BLOCK:
            return
        last = sequence.held // BLOCK
        if self.deterministic:  # what is read in pieces of other sizes is not the same to the last bit
            last = min(last, sequence.prompt_tokens // self.chunk * self.chunk // BLOCK)
        keys = self._keys(sequence, last)
        for number in range(sequence.published // BLOCK, last):
            for group, blocks in zip(self._groups, sequence.blocks, strict=True):
                if blocks[number] >= 0:
                    group.blocks.publish(blocks[number], keys[number])
        sequence.published = max(sequence.published, last * BLOCK)
        if self._vectors and sequence.held == last * BLOCK and sequence.reading:
            self._keep(keys[-1], sequence.row)

    def _keep(self, key: bytes, row: int) -> None:
        self._snapshots[key] = self._read_vectors(row)
        while len(self._snapshots) > 2 * self.config.slots:
            self._snapshots.popitem(last=False)

    def _read_vectors(self, row: int) -> list[Tensor]:
        return [tensor[row].clone() for cell in self._vectors for tensor in cell.tensors]

    def _write_vectors(self, row: int, kept: list[Tensor]) -> None:
        held = (tensor for cell in self._vectors for tensor in cell.tensors)
        for tensor, values in zip(held, kept, strict=True):
            tensor[row] = values

    # -- drafts ----------------------------------------------------------------------------------------------------

    def mark(self, sequence: Sequence) -> None:
        """Note where a sequence stands, before it reads what it may have to go back from."""
        if not self.state.truncates:
            self._marks[sequence] = (sequence.held, self._read_vectors(sequence.row))

    def retreat(self, sequence: Sequence, length: int) -> None:
        """Let a sequence hold its first `length` ids; a recurrence that has read beyond goes back to its mark, and the
        rest is to be fed again."""
        held, vectors = self._marks.pop(sequence, (length, []))
        if self.state.truncates or length == int(self.state.lengths[sequence.row]):
            held = length
            self.state.truncate(sequence.row, length)
        else:
            self._write_vectors(sequence.row, vectors)
            self.state.lengths[sequence.row] = held
        sequence.held = held

    # -- versions --------------------------------------------------------------------------------------------------

    def forget(self, version: bytes, waiting: Iterable[Sequence]) -> None:
        """Let nothing be found that was made before, by those who wait neither; `version` tells what is made from now
        on from it. Nothing runs meanwhile: its blocks would be filled partly before and partly after."""
        self.version = version
        for sequence in waiting:
            sequence.keys = []
        self._snapshots.clear()
        for group in self._groups:
            group.blocks.forget()

    # -- figures ---------------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> tuple[int, int, int]:
        """How many blocks there are, how many are in use, and how many can be found by their keys."""
        pools = [group.blocks for group in self._groups]
        return sum(b.count for b in pools), sum(b.used for b in pools), sum(b.kept for b in pools)


def _first(reach: int | None, held: int) -> int:
    """Return the first block that tokens behind `held` others see."""
    return 0 if reach is None else max(held + 1 - reach, 0) // BLOCK


def _slots(block: int) -> slice:
    return slice(block * BLOCK, (block + 1) * BLOCK)


def _clear(group: _Group, block: int) -> None:
    for pages in group.pages:
        pages.clear_slots(_slots(block))


def _note(table: Tensor, row: int, number: int, block: int) -> None:
    """Write into the table that a row's columns of a block's length lie in `block`."""
    start = number * BLOCK
    stop = min(start + BLOCK, table.shape[1])
    table[row, start:stop] = torch.arange(block * BLOCK, block * BLOCK + stop - start)


def _allocate(model: Model, config: EngineConfig, door: Door, chunk: int) -> tuple[State, list[_Group]]:
    """Allocate the state and the groups of its pages. Raises ConfigError where it does not fit into memory."""
    rows, context = config.slots, door.context
    if not door.generates:
        return State([], torch.zeros(rows, dtype=torch.int64), 0), []
    if not isinstance(model, Model):
        return model.new_state(rows, context), []
    source = door.source_context if door.translates else None
    widths: dict[int | None, int] = {}  # bytes of a column, by reach
    fixed = 0
    for mixer in model.trunk.mixers():
        cell = mixer.new_state(1, 1, model.dtype, model.device)
        if type(cell) is Columns:
            widths[mixer.reach] = widths.get(mixer.reach, 0) + cell.nbytes
        elif isinstance(cell, Columns):
            fixed += rows * cell.nbytes * (source or 1)
        else:
            fixed += rows * cell.nbytes
    fixed += len(widths) * rows * context * 8  # the tables
    available = 0.9 * _available_bytes(model.device)
    tokens = config.tokens or rows * -(-context // BLOCK) * BLOCK  # a row takes whole blocks
    if tokens < context:
        raise ConfigError(
            f"engine.tokens={tokens} does not hold one context of {context}: raise it, or lower engine.context."
        )
    counts = _counts(widths, tokens, rows, chunk)
    needed = fixed + _nbytes(widths, counts)
    if needed > available and config.tokens is None:
        while needed > available and tokens > context:
            tokens = max(context, tokens * 9 // 10)
            counts = _counts(widths, tokens, rows, chunk)
            needed = fixed + _nbytes(widths, counts)
        log.warning(
            "memory is short: the state holds %d tokens instead of slots x context = %d", tokens, rows * context
        )
    if needed > available:
        raise ConfigError(
            f"engine: a state of {tokens} tokens for {rows} slots needs {needed / 1e9:.1f} GB, but "
            f"{available / 1e9:.1f} GB are free: lower engine.tokens, engine.slots or engine.context."
        )
    pools = {reach: (RESERVED + count) * BLOCK for reach, count in counts.items()}
    state = model.new_state(rows, context, source_capacity=source, pools=pools)
    groups = []
    for slots, (reach, count) in zip(state.slots, counts.items(), strict=True):
        pages = [cell for cell in state.cells if isinstance(cell, Pages) and cell.slots is slots]
        groups.append(_Group(reach, Blocks(count), slots.table, pages))
    return state, groups


def _counts(widths: dict[int | None, int], tokens: int, rows: int, chunk: int) -> dict[int | None, int]:
    """Return how many blocks operators of each reach get, so that one sequence of the whole context always fits."""
    whole = -(-tokens // BLOCK)
    return {
        reach: whole if reach is None else min(whole, 2 * rows * (-(-(reach + chunk) // BLOCK) + 2)) for reach in widths
    }


def _nbytes(widths: dict[int | None, int], counts: dict[int | None, int]) -> int:
    return sum(widths[reach] * (RESERVED + counts[reach]) * BLOCK for reach in widths)


def _available_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
