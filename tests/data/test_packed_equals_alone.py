"""Packing is invisible: loss and gradients of packed rows are those of each document by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from etymon.data import ConversationLoader, PretrainLoader
from etymon.families import families
from etymon.nn import Model, build


@dataclass
class Rendered:
    ids: list[int]
    trained: list[bool]


# the families that learn to predict what follows, which is what these loaders are for; encoders have tests of their own
DECODERS = [family for family in families().values() if family.spec(**family.tiny).encoder is None]


@pytest.fixture(params=DECODERS, ids=lambda family: family.name)
def model(request: pytest.FixtureRequest) -> Model:
    model = build(request.param.spec(**request.param.tiny | {"vocab": 258}), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def loss(model: Model, ids: torch.Tensor, targets: torch.Tensor, **packed: torch.Tensor) -> torch.Tensor:
    logits = model(ids, **packed).logits
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


def gradients(model: Model, value: torch.Tensor) -> list[torch.Tensor]:
    return [g.clone() for g in torch.autograd.grad(value, list(model.parameters()), allow_unused=True) if g is not None]


def check(model: Model, together: torch.Tensor, apart: torch.Tensor) -> None:
    assert apart.item() == pytest.approx(together.item(), rel=1e-5)
    for a, b in zip(gradients(model, together), gradients(model, apart), strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-6


def test_conversations(model: Model) -> None:
    rng = np.random.default_rng(0)
    samples = []
    for length in rng.integers(3, 30, 20).tolist():
        ids = rng.integers(2, 258, length).tolist()
        samples.append(Rendered(ids, [i >= length // 2 for i in range(length)]))
    loader = ConversationLoader(samples, 1, 48)
    apart = torch.zeros(())
    for sample in samples:
        targets = [i if t else -100 for i, t in zip(sample.ids[1:], sample.trained[1:], strict=True)]
        apart = apart + loss(model, torch.tensor([sample.ids[:-1]]), torch.tensor([targets]))
    together = torch.zeros(())
    for step in range(loader.report.rows):
        batch = loader.batch(step)
        packed = {"position_ids": batch.position_ids, "documents": batch.documents}
        together = together + loss(model, batch.input_ids, batch.targets, **packed)
    check(model, together, apart)


def test_documents(model: Model, make_shards) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, n))) for n in rng.integers(0, 25, 30)]
    batch = PretrainLoader(make_shards(texts), 4, 40, seed=2).batch(1)
    packed = {"position_ids": batch.position_ids, "documents": batch.documents}
    together = loss(model, batch.input_ids, batch.targets, **packed)
    apart = torch.zeros(())
    for row in range(4):
        for document in batch.documents[row].unique():
            here = batch.documents[row] == document
            apart = apart + loss(model, batch.input_ids[row, here][None], batch.targets[row, here][None])
    check(model, together, apart)
