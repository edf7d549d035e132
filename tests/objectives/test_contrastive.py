"""Text embeddings: the losses are their papers' formulas, the batch is one, and what was trained is what is served."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import etymon
from etymon.data import Encoded, Record, RecordLoader, make_records
from etymon.engine import Engine, EngineConfig, Text
from etymon.errors import ConfigError, DataError
from etymon.families import family_named
from etymon.nn import Dropout, Model, build, set_dropout, with_head
from etymon.objectives import (
    Contrastive,
    ContrastiveConfig,
    CoSENT,
    CosineRegression,
    Ranking,
    SimCSE,
    choose_objective,
)
from etymon.spec import Embedding, Hidden, Last, Mean, WeightedMean
from etymon.text import Tokenizer
from etymon.train import AdamWConfig, Budget, Constant, TrainConfig, fit
from etymon.train.step import compute_gradient

ROWS = [
    ("who bakes bread", "the baker does at dawn", "the smith does at noon"),
    ("what falls in winter", "snow lies on hills", "rain on the roof"),
    ("where do boats sleep", "in the old harbour", "in a new garage"),
    ("when do birds leave", "before the first frost", "after the last storm"),
    ("which fruit is yellow", "a ripe banana", "a red apple"),
    ("how is tea made", "with hot water and leaves", "with cold milk and salt"),
]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.train((text for row in ROWS for text in row), 330)


def made(family: str, words: Tokenizer, **config: Any) -> tuple[Model, Contrastive]:
    named, settings = family_named(family), ContrastiveConfig(**config)
    base = build(named.spec(**(named.tiny | {"vocab": words.vocab_size})), seed=1)
    model = with_head(base, Contrastive.trains(base.spec, settings).head)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.05)
    objective = choose_objective(model.spec, words, settings)
    assert isinstance(objective, Contrastive)
    return model, objective


def encoded(objective: Contrastive, words: Tokenizer, texts: int = 2, labels: Any = None) -> list[Encoded]:
    rows = [Record(f"r:{i}", row[:texts], labels[i] if labels else None, "train") for i, row in enumerate(ROWS)]
    return [objective.encode(words, row, 40) for row in rows]


def batch_of(objective: Contrastive, words: Tokenizer, texts: int = 2, labels: Any = None) -> Any:
    return objective.collate(make_records(encoded(objective, words, texts, labels)), np.random.default_rng(0))


def cosine(a: Any, b: Any) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.dist(a, [0] * len(a)) / math.dist(b, [0] * len(b))


def expected_loss(loss: Any, vectors: list[list[list[float]]], labels: list[float]) -> float:
    first, second = [row[0] for row in vectors], [row[1] for row in vectors]
    if isinstance(loss, Ranking | SimCSE):
        others = [*second, *(row[2] for row in vectors if len(row) > 2)]
        total = 0.0
        for i, query in enumerate(first):
            scores = [math.exp(cosine(query, other) / loss.temperature) for other in others]
            total -= math.log(scores[i] / sum(scores))
        return total
    cosines = [cosine(a, b) for a, b in zip(first, second, strict=True)]
    if isinstance(loss, CosineRegression):
        return sum((a - b) ** 2 for a, b in zip(cosines, labels, strict=True))
    pairs = [(i, j) for i in range(len(labels)) for j in range(len(labels)) if labels[i] < labels[j]]
    return len(labels) * math.log(1 + sum(math.exp(loss.scale * (cosines[i] - cosines[j])) for i, j in pairs))


@pytest.mark.parametrize("texts", [2, 3])
@pytest.mark.parametrize(
    "loss", [Ranking(), Ranking(temperature=0.5), CoSENT(), CosineRegression()], ids=["0.05", "0.5", "cosent", "cosine"]
)
def test_the_losses_are_their_formulas_on_the_vectors_of_the_reference(
    loss: Any, texts: int, words: Tokenizer, tmp_path: Path
) -> None:
    from transformers import BertModel

    if texts == 3 and not isinstance(loss, Ranking):
        texts = 2
    labels = [0.1, 0.9, 0.4, 0.4, 1.0, 0.0]
    model, objective = made("bert", words, loss=loss)
    batch = batch_of(objective, words, texts, labels)
    etymon.save(with_head(model, Hidden()), None, tmp_path, format="hf")
    reference = BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    vectors = []
    for ids, real in zip(batch.input_ids, batch.real, strict=True):
        row = [
            reference(t[r.bool()][None]).last_hidden_state[0].mean(0).tolist() for t, r in zip(ids, real, strict=True)
        ]
        vectors.append(row)
    found = float(objective.loss(model.eval(), batch).detach())
    assert found == pytest.approx(expected_loss(loss, vectors, labels), rel=1e-4)


def gradient(model: Model, objective: Contrastive, batch: Any, rows: int | None) -> list[torch.Tensor]:
    torch.manual_seed(7)
    model.zero_grad()
    compute_gradient(model, objective, batch, micro_batch=rows, clip=None, precision="fp32")
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("loss", [Ranking(), CoSENT()], ids=["ranking", "cosent"])
def test_a_micro_batch_changes_nothing_of_the_gradient(loss: Any, words: Tokenizer) -> None:
    model, objective = made("bert", words, loss=loss)
    batch = batch_of(objective, words, 2, [0.1, 0.9, 0.4, 0.4, 1.0, 0.0])
    whole = gradient(model, objective, batch, None)
    for rows in (1, 2, 4):
        for a, b in zip(gradient(model, objective, batch, rows), whole, strict=True):
            assert torch.allclose(a, b, atol=2e-6 + 1e-4 * float(b.abs().max()))
    objective.loss(model, batch.rows(0, 3)).backward()
    apart = [p.grad for p in model.parameters() if p.grad is not None]
    assert any((a - b).abs().max() > 1e-2 * b.abs().max() for a, b in zip(apart, whole, strict=True))


def test_what_dropout_drops_is_dropped_again(words: Tokenizer) -> None:
    """The second pass of a micro-batch draws what the first one drew."""
    model, objective = made("bert", words)
    set_dropout(model, Dropout(embedding=0.3, residual=0.3))
    batch = batch_of(objective, words)
    split, _ = objective.split(2)
    assert isinstance(split, Contrastive)
    torch.manual_seed(7)
    kept = [objective.vectors(model, batch.rows(start, start + 2)) for start in (0, 2, 4)]
    vectors = torch.cat(kept)
    probe = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1))
    (vectors * probe).sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.manual_seed(7)
    again = split.vectors(model, batch)
    assert torch.equal(again, vectors)
    (again * probe).sum().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_every_question_finds_its_answer_in_what_is_served(family: str, words: Tokenizer, tmp_path: Path) -> None:
    model, objective = made(family, words, query=("[", "]") if family == "llama" else ("", ""))
    config = TrainConfig(
        budget=Budget(steps=25), optimizer=AdamWConfig(lr=5e-3), schedule=Constant(warmup=3), precision="fp32",
        micro_batch=3, checkpoint_every=25,
    )  # fmt: skip
    loader = RecordLoader(encoded(objective, words, 3), 6, 40)
    before = float(objective.loss(model, loader.batch(0)).detach())
    result = fit(model, loader, objective, config, tmp_path, tokenizer=words)
    assert float(objective.loss(model, loader.batch(0)).detach()) < 0.1 * before
    trained, tokenizer = etymon.load(result.checkpoint)
    assert trained.spec.head == Embedding(pooling=Mean() if family == "bert" else WeightedMean())
    engine = Engine(trained, tokenizer, EngineConfig(slots=2))
    before_text, behind_text = objective.config.query
    asked = torch.stack(engine.embed([before_text + row[0] + behind_text for row in ROWS]))
    there = torch.stack(engine.embed([text for row in ROWS for text in row[1:]]))
    assert torch.allclose(asked.norm(dim=1), torch.ones(len(ROWS)), atol=1e-5)
    assert (asked @ there.T).argmax(1).tolist() == [2 * i for i in range(len(ROWS))]
    batch = make_records(encoded(objective, words))
    with torch.no_grad():
        own = objective.vectors(trained.eval(), batch)[:, 0]
        assert torch.allclose(torch.nn.functional.normalize(own, dim=1), asked, atol=1e-5)


def test_a_request_may_ask_for_another_pooling(words: Tokenizer) -> None:
    model, _ = made("gpt2", words, pooling="last")
    assert model.spec.head == Embedding(pooling=Last())
    engine = Engine(model.eval(), words, EngineConfig(slots=2))
    text = ROWS[0][0]
    asked = [text, Text(text, pooling="last"), Text(text, pooling="mean", normalised=False)]
    own, last, mean = engine.embed(asked)
    assert torch.equal(own, last)
    states = engine.embed([Text(text, pooling="tokens", normalised=False)])[0]
    assert torch.allclose(mean, states.mean(0), atol=1e-6)


def test_a_text_finds_itself_through_dropout(words: Tokenizer, tmp_path: Path) -> None:
    model, objective = made("bert", words, loss=SimCSE())
    records = encoded(objective, words, 1)
    batch = batch_of(objective, words, 1)
    assert batch.input_ids.shape[1] == 2 and torch.equal(batch.input_ids[:, 0], batch.input_ids[:, 1])
    with pytest.raises(ConfigError, match=r"Set dropout: 0\.1"):
        objective.loss(model.train(), batch)
    set_dropout(model, Dropout(embedding=0.1, residual=0.1, attention=0.1))
    torch.manual_seed(0)
    one, other = objective.vectors(model, batch).unbind(1)
    assert (one - other).abs().max() > 1e-3
    loader = RecordLoader(records, 6, 40)
    config = TrainConfig(
        budget=Budget(steps=20), optimizer=AdamWConfig(lr=2e-3), schedule=Constant(warmup=3), precision="fp32",
        dropout=Dropout(embedding=0.1, residual=0.1, attention=0.1), checkpoint_every=20,
    )  # fmt: skip
    before = float(objective.loss(model.eval(), batch).detach())
    fit(model, loader, objective, config, tmp_path, tokenizer=words)
    assert float(objective.loss(model.eval(), batch).detach()) < 0.3 * before


BAD: list[tuple[Any, tuple[str, ...], Any, str]] = [
    (Ranking(), ("a",), None, "r:3 has 1 texts; the loss ranking reads two texts"),
    (SimCSE(), ("a", "b"), None, "r:3 has 2 texts; the loss simcse reads one text"),
    (CoSENT(), ("a", "b"), "good", "r:3 has no number as its label, which the loss cosent needs"),
    (CosineRegression(), ("a", "b", "c"), 0.5, "r:3 has 3 texts"),
]


@pytest.mark.parametrize(("loss", "texts", "label", "message"), BAD, ids=[bad[0].kind for bad in BAD])
def test_rows_that_do_not_fit_the_loss_are_refused(
    loss: Any, texts: tuple[str, ...], label: Any, message: str, words: Tokenizer
) -> None:
    _, objective = made("bert", words, loss=loss)
    with pytest.raises(DataError, match=message):
        objective.encode(words, Record("r:3", texts, label, "train"), 40)


def test_what_does_not_fit_is_refused(words: Tokenizer, tmp_path: Path) -> None:
    spec = family_named("bert").spec(**family_named("bert").tiny)
    with pytest.raises(ConfigError, match=r"does not end in Embedding\(.*with_head"):
        choose_objective(spec, words, "contrastive")
    for wrong in ({"temperature": 0}, {"temperature": 11}, {"temperatur": 1}):
        with pytest.raises(ValueError, match="temperatur"):
            ContrastiveConfig(loss={"kind": "ranking", **wrong})
    model, objective = made("bert", words)
    with pytest.raises(ConfigError, match="save the model in the etymon format"):
        etymon.save(model, words, tmp_path / "hf", format="hf")
    with pytest.raises(DataError, match="use a RecordLoader"):
        objective.collate(object(), np.random.default_rng(0))  # type: ignore[arg-type]
    json.dumps(objective.settings)
