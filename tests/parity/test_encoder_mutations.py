"""No field of an encoder's spec is decoration: change any one and the outputs that parity compares change too."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from etymon.errors import EtymonError
from etymon.families import families
from etymon.nn import Model, build
from etymon.spec import ACTIVATIONS, Bidirectional, Causal, ModelSpec

LABELS = {"name", "family", "start", "context"}  # what forward passes do not read
TINY = [family for family in families().values() if family.spec(**family.tiny).encoder is not None]


def mutations(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, changed value) with one field changed at a time; equal blocks change together."""
    if isinstance(value, Bidirectional):
        yield path, Causal()
    elif isinstance(value, Causal):
        yield path, Bidirectional()
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.name not in LABELS:
                for where, changed in mutations(getattr(value, field.name), f"{path}.{field.name}"):
                    try:
                        yield where, dataclasses.replace(value, **{field.name: changed})
                    except EtymonError:
                        continue  # not a spec at all
    elif isinstance(value, tuple):
        for i, item in enumerate(value if len(set(value)) > 1 else value[:1]):
            for where, changed in mutations(item, f"{path}[{i}]"):
                same = len(set(value)) == 1
                yield where, tuple(changed if same or j == i else other for j, other in enumerate(value))
    elif isinstance(value, bool):
        yield path, not value
    elif isinstance(value, float):
        yield path, 1.5 * value + 0.1
    elif isinstance(value, int):
        yield path, value // 2 if path.endswith("max_distance") else value + 1
    elif value in ACTIVATIONS:
        yield path, "relu" if value != "relu" else "silu"
    elif value in ("qkvo", ""):
        yield path, "qkvo" if value == "" else ""


def randomised(spec: ModelSpec) -> Model:
    model = build(spec)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.dim() == 1))
    return model


def count(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def outputs(model: Model) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    ids, target = (torch.randint(0, 97, (2, 40), generator=generator) for _ in range(2))
    ids[0, 30:] = 1
    mask = torch.arange(40).ge(torch.tensor([[0], [5]])).long()
    given = {"decoder_input_ids": target[:, :30], "decoder_attention_mask": mask[:, :30]}
    given = given if model.spec.decoder is not None else {}
    if model.spec.embed.languages:
        given |= {"langs": ids % 2} | ({"decoder_langs": target[:, :30] % 2} if given else {})
    with torch.no_grad():
        output = model(ids, mask, **given)
    assert output.logits is not None
    return output.logits


@pytest.mark.parametrize("family", TINY, ids=lambda f: f.name)
def test_every_field_counts(family: Any) -> None:
    spec = family.spec(**family.tiny)
    model = randomised(spec)
    state, expected = model.state_dict(), outputs(model)
    tried = set()
    for path, changed in mutations(spec, "spec"):
        tried.add(path)
        try:
            other = Model(changed)
            other.load_state_dict(state)
            got = outputs(other)
        except (RuntimeError, EtymonError, AssertionError):  # other tensors, or none that fit
            continue
        if count(other) != count(model):
            continue
        difference = float((got - expected).abs().max())
        assert got.shape != expected.shape or difference > 2e-5 * float(expected.abs().max()), path
    assert len(tried) > 15
