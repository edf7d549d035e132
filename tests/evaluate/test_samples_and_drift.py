from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from tiny_models import random_model

from etymon.engine import Engine
from etymon.errors import DataError
from etymon.evaluate import describe, drift, write_samples
from etymon.nn import Model
from etymon.text import Renderer, Tokenizer

PROMPTS = ["def add(", [{"role": "user", "content": "三加四等于多少？"}]]


def test_samples_are_greedy_once_and_drawn_once(
    model: Model, tokenizer: Tokenizer, renderer: Renderer, tmp_path: Path
) -> None:
    first, again, other = (
        write_samples(Engine(model, tokenizer), renderer, PROMPTS, name="pretrained", max_tokens=12, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert [s.greedy for s in first.samples] == [s.greedy for s in other.samples]
    assert [s.sampled for s in first.samples] != [s.sampled for s in other.samples]
    assert first.samples[1].prompt == PROMPTS[1]
    assert all(written.tokens <= 12 for s in first.samples for written in (s.greedy, s.sampled))
    first.save(tmp_path)
    written = json.loads((tmp_path / "evaluate/samples-pretrained.json").read_text(encoding="utf-8"))
    assert written["samples"][0]["prompt"] == "def add("
    assert written["samples"][0]["greedy"]["text"] == first.samples[0].greedy.text


def test_a_model_does_not_drift_from_itself(model: Model) -> None:
    found = drift(model, copy.deepcopy(model), [[1, 2, 3], [], list(range(60))])
    assert found.to_dict() == {"positions": 63, "max_logit": 0, "mean_logit": 0, "kl_bits": 0, "agreement": 1}


def test_drift_is_measured_at_every_position(model: Model) -> None:
    torch.manual_seed(0)
    changed = random_model(model.spec.vocab, seed=0, scale=0.081)
    sequences = [torch.randint(0, model.spec.vocab, (n,)).tolist() for n in (40, 7, 64)]
    found = drift(model, changed, sequences, rows=16)
    logits = [
        torch.cat([m(torch.tensor([s])).logits[0].double().detach() for s in sequences]) for m in (model, changed)
    ]
    p, q = (x.log_softmax(-1) for x in logits)
    assert found.positions == 111
    assert found.max_logit == pytest.approx(float((logits[0] - logits[1]).abs().max()), rel=1e-4)
    assert found.mean_logit == pytest.approx(float((logits[0] - logits[1]).abs().mean()), rel=1e-4)
    assert found.kl_bits == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()) / 0.6931471805599453, rel=1e-3)
    assert found.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert 0 < found.agreement < 1


def test_nothing_to_compare_is_an_error(model: Model) -> None:
    with pytest.raises(DataError, match="no token"):
        drift(model, model, [[]])


def test_a_model_is_described_by_its_sizes(model: Model) -> None:
    found = describe(model)
    assert found["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert found["bytes"] == 4 * found["parameters"]["total"]
    assert found["layers"] == 2
    json.dumps(found)
