"""SBERT's softmax objective: its loss and gradients are the paper's formula on the reference, and its layer is a
companion that the model goes on without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import etymon
from etymon.data import Encoded, Record, RecordLoader, make_records
from etymon.engine import Engine, EngineConfig
from etymon.errors import CheckpointError, DataError
from etymon.families import family_named
from etymon.nn import Model, build, with_head
from etymon.objectives import Contrastive, ContrastiveConfig, Softmax, choose_objective
from etymon.spec import Embedding, Hidden, Mean
from etymon.text import Tokenizer
from etymon.train import AdamWConfig, Budget, Constant, MuonConfig, TrainConfig, fit
from etymon.train.checkpoint import load_companions
from etymon.train.step import compute_gradient

LABELS = ("entailment", "neutral", "contradiction")
ROWS = [
    ("a man bakes bread", "somebody is baking", "entailment"),
    ("a man bakes bread", "he is from Rome", "neutral"),
    ("a man bakes bread", "nobody bakes", "contradiction"),
    ("snow lies on the hills", "the hills are white", "entailment"),
    ("snow lies on the hills", "it is a holiday", "neutral"),
    ("snow lies on the hills", "the hills are bare and it is hot", "contradiction"),
]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.train((text for row in ROWS for text in row[:2]), 330)


def made(words: Tokenizer, family: str = "bert") -> tuple[Model, Contrastive]:
    named, settings = family_named(family), ContrastiveConfig(loss=Softmax(labels=LABELS))
    base = build(named.spec(**(named.tiny | {"vocab": words.vocab_size})), seed=1)
    model = with_head(base, Contrastive.trains(base.spec, settings).head)
    objective = choose_objective(model.spec, words, settings)
    assert isinstance(objective, Contrastive)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (*model.parameters(), *objective.companions(model)["softmax"].parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model, objective


def encoded(objective: Contrastive, words: Tokenizer) -> list[Encoded]:
    records = [Record(f"nli:{i}", row[:2], row[2], "train") for i, row in enumerate(ROWS)]
    return [objective.encode(words, record, 40) for record in records]


def test_loss_and_gradients_are_the_paper_s_on_the_reference(words: Tokenizer, tmp_path: Path) -> None:
    from transformers import BertModel

    model, objective = made(words)
    batch = make_records(encoded(objective, words))
    assert batch.targets.tolist() == [LABELS.index(row[2]) for row in ROWS]
    etymon.save(with_head(model, Hidden()), None, tmp_path, format="hf")
    reference = BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    layer = objective.softmax
    assert layer is not None
    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.linear.weight, layer.linear.bias))

    def mean(row: int, place: int) -> Tensor:
        ids = batch.input_ids[row, place][batch.real[row, place].bool()]
        states: Tensor = reference(ids[None]).last_hidden_state[0]
        return states.sum(0) / len(states)

    expected = torch.zeros(())
    for row, target in enumerate(batch.targets.tolist()):
        u, v = mean(row, 0), mean(row, 1)
        logits = torch.cat([u, v, torch.abs(u - v)]) @ weight.T + bias
        expected = expected - torch.log(logits.exp()[target] / logits.exp().sum())
    expected.backward()
    loss = objective.loss(model.eval(), batch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    theirs = reference.embeddings
    pairs = [
        (layer.linear.weight.grad, weight.grad),
        (layer.linear.bias.grad, bias.grad),
        (model.embed.tokens.weight.grad, theirs.word_embeddings.weight.grad),
        (model.embed.positions.weight.grad, theirs.position_embeddings.weight.grad),  # type: ignore[union-attr]
    ]
    for own, other in pairs:
        assert own is not None and other is not None
        rows = min(len(own), len(other))
        assert torch.allclose(own[:rows], other[:rows], atol=1e-5 * float(other.abs().max())), own.shape


def test_a_micro_batch_changes_nothing_of_the_gradient(words: Tokenizer) -> None:
    model, objective = made(words)
    batch = make_records(encoded(objective, words))
    layer = objective.softmax
    assert layer is not None
    found: dict[int | None, list[Tensor]] = {}
    for rows in (None, 2, 4):
        model.zero_grad()
        layer.zero_grad()
        compute_gradient(model, objective, batch, micro_batch=rows, clip=None, precision="fp32")
        found[rows] = [p.grad.clone() for p in (*model.parameters(), *layer.parameters()) if p.grad is not None]
    for rows in (2, 4):
        for a, b in zip(found[rows], found[None], strict=True):
            assert torch.allclose(a, b, atol=2e-6 + 1e-4 * float(b.abs().max()))


def run(path: Path, words: Tokenizer, optimizer: Any, steps: int, **given: Any) -> tuple[Model, Contrastive, Path]:
    model, objective = made(words)
    loader = RecordLoader(encoded(objective, words), 6, 40)
    config = TrainConfig(
        budget=Budget(steps=steps), optimizer=optimizer, schedule=Constant(warmup=3), precision="fp32", compile="off",
        micro_batch=3, checkpoint_every=4,
    )  # fmt: skip
    result = fit(model, loader, objective, config, path, tokenizer=words, **given)
    return model, objective, result.checkpoint


def test_it_learns_the_classes_and_leaves_an_embedder(words: Tokenizer, tmp_path: Path) -> None:
    model, objective, checkpoint = run(tmp_path, words, AdamWConfig(lr=5e-3), 40)
    batch = make_records(encoded(objective, words))
    assert float(objective.loss(model.eval(), batch).detach()) / len(ROWS) < 0.1
    loaded, tokenizer = etymon.load(checkpoint)
    assert loaded.spec.head == Embedding(pooling=Mean()) and not any("softmax" in n for n in loaded.state_dict())
    vectors = torch.stack(Engine(loaded, tokenizer, EngineConfig(slots=2)).embed([row[0] for row in ROWS]))
    with torch.no_grad():
        own = objective.vectors(loaded.eval(), batch)[:, 0]
    assert (own.norm(dim=1) - 1).abs().min() > 0.1  # the layer reads what is not brought to length 1
    assert torch.allclose(torch.nn.functional.normalize(own, dim=1), vectors, atol=1e-5)


class Stop:
    every = 1

    def __call__(self, model: Model, step: int, final: bool) -> dict[str, float | str]:
        if step == 6:
            raise KeyboardInterrupt
        return {}


@pytest.mark.parametrize("optimizer", [AdamWConfig(lr=1e-2), MuonConfig()], ids=["adamw", "muon"])
def test_a_resumed_run_ends_bitwise_where_the_other_does(optimizer: Any, words: Tokenizer, tmp_path: Path) -> None:
    whole, objective, checkpoint = run(tmp_path / "whole", words, optimizer, 8)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", words, optimizer, 8, hooks=[Stop()])
    again, resumed, _ = run(tmp_path / "killed", words, optimizer, 8, resume=True)
    assert objective.softmax is not None and resumed.softmax is not None
    fresh = made(words)[1].softmax
    assert fresh is not None
    saved = load_file(checkpoint / "softmax.safetensors")
    for name, parameter in objective.softmax.named_parameters():
        assert torch.equal(parameter, resumed.softmax.get_parameter(name)), name
        assert torch.equal(parameter, saved[name])
        assert not torch.equal(parameter, fresh.get_parameter(name))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))
    save_file({"linear.weight": saved["linear.weight"]}, checkpoint / "softmax.safetensors")
    with pytest.raises(CheckpointError, match=r"holds linear\.weight; expected linear\.weight, linear\.bias"):
        load_companions(checkpoint, {"softmax": fresh})
    (checkpoint / "softmax.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"softmax\.safetensors cannot be read"):
        load_companions(checkpoint, {"softmax": fresh})


BAD: list[tuple[tuple[str, ...], Any, str]] = [
    (("a", "b"), "-", "nli.jsonl:3 has the label '-'; the objective's are entailment, neutral, contradiction"),
    (("a", "b"), None, "nli.jsonl:3 has no label"),
    (("a",), "neutral", "nli.jsonl:3 has 1 texts; the loss softmax reads two texts"),
    (("a", "b", "c"), "neutral", "nli.jsonl:3 has 3 texts"),
]


@pytest.mark.parametrize(("texts", "label", "message"), BAD)
def test_rows_that_do_not_fit_are_refused(texts: tuple[str, ...], label: Any, message: str, words: Tokenizer) -> None:
    with pytest.raises(DataError, match=message):
        made(words)[1].encode(words, Record("nli.jsonl:3", texts, label, "train"), 40)


def test_labels_must_differ() -> None:
    for labels in ((), ("a",), ("a", "a")):
        with pytest.raises(ValueError, match="labels"):
            ContrastiveConfig.model_validate({"loss": {"kind": "softmax", "labels": labels}})
