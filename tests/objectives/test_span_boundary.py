"""SpanBERT's span boundary objective: which tokens are told from what, the loss and its gradients, and resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import etymon
from etymon.data import IGNORED, Batch, PretrainLoader, TokenShards, write_shards
from etymon.data.documents import Document
from etymon.errors import ConfigError
from etymon.families import family_named
from etymon.nn import Model, build
from etymon.nn.boundary import boundaries
from etymon.objectives import MaskedLM, MaskedLMConfig, choose_objective
from etymon.objectives.masking import Spans, Static
from etymon.objectives.mlm import SpanBoundaryConfig
from etymon.recipe.loading import load_recipe
from etymon.text import Tokenizer
from etymon.train import AdamWConfig, Budget, Constant, TrainConfig, fit, held_out_loss, read_metrics

TEXT = [
    "The cat sat on the mat. The dog ran to the red house. A ball lay there. It was small and round.",
    "Rain fell all night. In the morning the river was high. Nobody could cross it, so they waited.",
    "She bought bread and milk. He cooked rice with beans. They ate together and then they slept.",
]
CONFIG = MaskedLMConfig(rate=0.3, units=Spans(), boundary=SpanBoundaryConfig(places=6, width=5))


def made(tokenizer: Tokenizer, config: MaskedLMConfig = CONFIG) -> tuple[Model, MaskedLM]:
    named = family_named("bert")
    model = build(named.spec(**(named.tiny | {"vocab": tokenizer.vocab_size})), seed=1)
    objective = choose_objective(model.spec, tokenizer, config)
    assert isinstance(objective, MaskedLM)
    return model, objective


def by_hand(targets: list[list[int]], documents: list[list[int]], places: int) -> set[tuple[int, int, int, int]]:
    """Row, place, left and right of every token that is told, span by span."""
    found = set()
    for row, wanted in enumerate(targets):
        at = 0
        while at < len(wanted):
            start = at
            while at < len(wanted) and wanted[at] != IGNORED:
                at += 1
            left, right = start - 1, at
            for i in range(start, at):
                if left < 0 or right >= len(wanted) or i - start >= places:
                    continue
                if documents[row][left] == documents[row][i] == documents[row][right]:
                    found.add((row, i, left, right))
            at += 1
    return found


def test_tokens_are_told_from_what_stands_beside_their_span() -> None:
    hidden = [[0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1]]
    targets = torch.where(torch.tensor(hidden) == 1, 7, IGNORED)
    documents = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]])
    told = [tuple(each) for each in torch.stack(boundaries(targets, documents, 20), 1).tolist()]
    # the first two spans; not the third, which begins a document, nor the last, which ends the row
    assert told == [(0, 1, 0, 3), (0, 2, 0, 3), (0, 5, 4, 6)]
    generator = torch.Generator().manual_seed(0)
    for places in (1, 3, 20):
        targets = torch.where(torch.rand(6, 40, generator=generator) < 0.5, 3, IGNORED)
        documents = (torch.rand(6, 40, generator=generator) < 0.1).long().cumsum(1)
        found = {tuple(each) for each in torch.stack(boundaries(targets, documents, places), 1).tolist()}
        assert found == by_hand(targets.tolist(), documents.tolist(), places) and found


def batch_of(objective: MaskedLM, shards: TokenShards) -> Batch:
    batch = objective.collate(PretrainLoader(shards, 8, 32).batch(0), np.random.default_rng(0))
    assert isinstance(batch, Batch)
    return batch


def test_most_hidden_tokens_have_both_boundaries(shards: TokenShards, tokenizer: Tokenizer) -> None:
    batch = batch_of(made(tokenizer)[1], shards)
    told = len(boundaries(batch.targets, batch.documents, 20)[0])
    assert 0.5 < told / batch.trained < 1


def test_loss_and_gradients_are_the_paper_s_on_the_reference(
    shards: TokenShards, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import BertForMaskedLM

    model, objective = made(tokenizer)
    layers = objective.companions(model)["span_boundary"]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (*model.parameters(), *layers.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    given = batch_of(objective, shards)
    whole = torch.zeros_like(given.documents)  # the reference knows of no documents
    at = torch.arange(whole.shape[1]).expand_as(whole)
    batch = Batch(input_ids=given.input_ids, targets=given.targets, position_ids=at, documents=whole)
    found = objective.losses(model.eval(), batch)
    objective.loss(model, batch).backward()
    etymon.save(model, None, tmp_path, format="hf")
    reference = BertForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    own = {name: p.detach().clone().requires_grad_() for name, p in layers.named_parameters()}

    def layer(x: Tensor, name: str) -> Tensor:
        x = x @ own[f"{name}.weight"].T + own[f"{name}.bias"]
        x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        x = (x - x.mean()) / (x.var(unbiased=False) + 1e-12) ** 0.5
        return x * own[f"{name}_norm.weight"] + own[f"{name}_norm.bias"]

    hidden = reference.bert(batch.input_ids).last_hidden_state
    logits, decoder = reference.cls(hidden), reference.cls.predictions.decoder
    masked = boundary = torch.zeros(())
    for row, i in (batch.targets != IGNORED).nonzero().tolist():
        masked = masked - logits[row, i].log_softmax(0)[batch.targets[row, i]]
    for row, i, left, right in by_hand(batch.targets.tolist(), batch.documents.tolist(), 6):
        place = own["places.weight"][i - left - 1]
        y = layer(layer(torch.cat((hidden[row, left], hidden[row, right], place)), "first"), "second")
        boundary = boundary - (decoder.weight @ y + decoder.bias).log_softmax(0)[batch.targets[row, i]]
    assert float(found["loss"].detach()) == pytest.approx(float(masked.detach()), rel=1e-5)
    assert float(found["boundary_loss"].detach()) == pytest.approx(float(boundary.detach()), rel=1e-5)
    (masked + boundary).backward()
    pairs = [(layers.get_parameter(name).grad, p.grad) for name, p in own.items()]
    pairs += [
        (model.embed.tokens.weight.grad, reference.bert.embeddings.word_embeddings.weight.grad),
        (model.head.linear.bias.grad, decoder.bias.grad),  # type: ignore[union-attr]
    ]
    for ours, theirs in pairs:
        assert ours is not None and theirs is not None
        assert torch.allclose(ours, theirs, atol=2e-4 * float(theirs.abs().max()))


class Stop:
    every = 1

    def __call__(self, model: Model, step: int, final: bool) -> dict[str, float | str]:
        if step == 5:
            raise KeyboardInterrupt
        return {}


class OneBatch(PretrainLoader):
    def batch(self, step: int) -> Batch:
        return super().batch(0)


def run(
    path: Path, shards: TokenShards, tokenizer: Tokenizer, steps: int, config: MaskedLMConfig = CONFIG, **given: Any
) -> tuple[Model, MaskedLM]:
    model, objective = made(tokenizer, config)
    settings = TrainConfig(
        budget=Budget(steps=steps), optimizer=AdamWConfig(lr=1e-2), schedule=Constant(warmup=3), precision="fp32",
        compile="off", checkpoint_every=4, log_every=1,
    )  # fmt: skip
    loader = OneBatch(shards, 4, 32) if isinstance(config.draw, Static) else PretrainLoader(shards, 4, 32)
    fit(model, loader, objective, settings, path, tokenizer=tokenizer, **given)
    return model, objective


def test_a_resumed_run_ends_bitwise_where_the_other_does(
    shards: TokenShards, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole, objective = run(tmp_path / "whole", shards, tokenizer, 8)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", shards, tokenizer, 8, hooks=[Stop()])
    again, resumed = run(tmp_path / "killed", shards, tokenizer, 8, resume=True)
    assert objective.span_boundary is not None and resumed.span_boundary is not None
    saved = load_file(tmp_path / "whole" / "checkpoints" / "step-000008" / "span_boundary.safetensors")
    for name, parameter in objective.span_boundary.named_parameters():
        assert torch.equal(parameter, resumed.span_boundary.get_parameter(name)), name
        assert torch.equal(parameter, saved[name])
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_small_text_is_learnt_by_both(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_shards([Document(str(i), text, "test") for i, text in enumerate(TEXT)], tokenizer, tmp_path / "shards")
    shards = TokenShards(tmp_path / "shards", tokenizer=tokenizer)
    always = CONFIG.model_copy(update={"draw": Static(copies=1), "rate": 0.2})
    model, objective = run(tmp_path / "run", shards, tokenizer, 60, always)
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    for name in ("loss", "boundary_loss"):
        assert np.mean([row[name] for row in rows[-5:]]) < 0.5 * rows[0][name], name
    loaded, _ = etymon.load(tmp_path / "run" / "checkpoints" / "step-000060")
    assert loaded.spec == model.spec
    plain = made(tokenizer, always.model_copy(update={"boundary": None}))[1]
    loader = PretrainLoader(shards, 4, 32)
    held = [held_out_loss(loaded, loader, 2, objective=each) for each in (objective, plain)]
    assert held[0] == pytest.approx(held[1], rel=1e-6)  # a model is measured by masked language modelling
    assert "boundary" not in plain.settings and objective.settings["boundary"] == {"places": 6, "width": 5}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("units: words", "boundary is what spans have, and the units are words"),
        ("units: {kind: ngrams}", "the units are ngrams"),
        ("rate: 0.2", "the units are tokens"),
    ],
)
def test_other_units_are_refused_with_their_line(setting: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: bad\nmodel: {family: bert, dim: 32, layers: 1, heads: 2}\npretrain:\n  budget: {steps: 1}\n"
        f"  objective:\n    kind: mlm\n    {setting}\n    boundary: {{places: 4}}\n"
    )
    with pytest.raises(ConfigError, match=rf"bad\.yaml:\d+: pretrain\.objective.*{message}"):
        load_recipe(path)
