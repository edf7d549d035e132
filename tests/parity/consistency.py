"""What every decoder owes itself, where no reference runs beside it: decoding, padding and packing change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from etymon.errors import DataError
from etymon.nn import Model, build
from etymon.spec import ModelSpec

TOLERANCE = 1e-5


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(3, 96, shape, generator=torch.Generator().manual_seed(seed))


def randomised(spec: ModelSpec, seed: int = 3) -> Model:
    """The model of `spec` with every parameter random, those of norms around one."""
    model = build(spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = float(parameter.dim() == 1 and name.endswith("weight"))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + around)
    return model


@torch.no_grad()
def check_decoding(model: Model, length: int = 30) -> None:
    """Logits do not depend on how a sequence is cut into calls."""
    ids = tokens(2, length)
    full = model(ids).logits
    for chunks in ([1] * length, [13, 1, 1, 9, length - 24], [length - 1, 1]):
        state = model.new_state(2, length + 2)
        parts = [model(chunk, state=state).logits for chunk in ids.split(chunks, 1)]
        assert relative(torch.cat(parts, 1), full) < TOLERANCE, chunks
    assert state.lengths.tolist() == [length, length]


@torch.no_grad()
def check_rows(model: Model) -> None:
    """Rows of different lengths decode together, go back and are copied."""
    ids = tokens(3, 20)
    full = model(ids).logits
    state = model.new_state(3, 24)
    for row, length in enumerate((3, 9, 14)):
        model(ids[row : row + 1, :length], state=state.rows(row, row + 1))
    for step in range(3):
        lengths = state.lengths.tolist()
        column = torch.stack([ids[row, length] for row, length in enumerate(lengths)])[:, None]
        logits = model(column, state=state.rows(0, 3)).logits[:, 0]
        expected = torch.stack([full[row, length] for row, length in enumerate(lengths)])
        assert relative(logits, expected) < TOLERANCE, step
    if state.truncates:
        state.truncate(1, 5)
    else:
        with pytest.raises(DataError, match="cannot go back from 12 to 5 tokens"):
            state.truncate(1, 5)
        state.truncate(1, 0)
        model(ids[1:2, :5], state=state.rows(1, 2))
    state.copy_row(1, 0)
    assert relative(model(ids[1:2, 5:9], state=state.rows(0, 1)).logits, full[1:2, 5:9]) < TOLERANCE


@torch.no_grad()
def check_padding(model: Model, **given: Any) -> None:
    """Padding on either side changes nothing, with and without a state, and the mask is used."""
    ids = tokens(1, 12)
    expected = model(ids, **given).logits
    nothing = torch.full((1, 4), 5)
    for padded, columns in ((torch.cat([nothing, ids], 1), slice(4, 16)), (torch.cat([ids, nothing], 1), slice(0, 12))):
        mask = torch.zeros(1, 16)
        mask[:, columns] = 1
        assert relative(model(padded, mask, **given).logits[:, columns], expected) < TOLERANCE
    padded = torch.cat([nothing, ids], 1)
    assert relative(model(padded, **given).logits[:, 4:], expected) > 1e-3
    if given or model.decoder is None:
        return
    mask, state = torch.cat([torch.zeros(1, 4), torch.ones(1, 12)], 1), model.new_state(1, 16)
    parts = [model(padded[:, :10], mask[:, :10], state=state).logits[:, 4:]]
    for t in range(10, 16):
        parts.append(model(padded[:, t : t + 1], mask[:, : t + 1], state=state).logits)
    assert relative(torch.cat(parts, 1), expected) < TOLERANCE


def check_packing(model: Model) -> None:
    """Packed documents are as documents alone, gradients too."""
    lengths = (7, 1, 12, 4)
    ids = tokens(1, sum(lengths))
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = model(ids, documents=documents, position_ids=positions).logits
    alone = torch.cat([model(part).logits for part in ids.split(lengths, 1)], 1)
    assert relative(packed, alone) < TOLERANCE
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(x.square().mean(), parameters, allow_unused=True) for x in (packed, alone))
    for (name, _), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or relative(a, b) < TOLERANCE, name


@torch.no_grad()
def check_half_precision(spec: ModelSpec) -> None:
    """Half precision is as far from fp32 as its rounding, and runs in its own dtype."""
    exact = randomised(spec)
    ids = tokens(2, 20)
    expected = exact(ids).logits
    for dtype in (torch.bfloat16, torch.float16):
        logits = randomised(spec).to(dtype)(ids).logits
        assert logits.dtype == dtype
        assert relative(logits.float(), expected) < 20 * torch.finfo(dtype).eps
