from __future__ import annotations

import random

import pytest
import torch
from engine_models import random_model

from etymon.engine import Engine
from etymon.engine.score import score
from etymon.errors import RequestError
from etymon.nn import IGNORE, Model

draw = random.Random(0)
SEQUENCES = [[draw.randrange(97) for _ in range(draw.randint(2, 60))] for _ in range(15)]
STARTS = [draw.randint(1, len(ids) - 1) for ids in SEQUENCES]


@pytest.fixture(scope="module")
def scorer() -> Model:
    return random_model()


def test_scores_are_the_training_forwards_log_probabilities(scorer: Model) -> None:
    results = Engine(scorer, None).score(SEQUENCES, STARTS)
    for ids, start, result in zip(SEQUENCES, STARTS, results, strict=True):
        with torch.no_grad():
            out = scorer(torch.tensor([ids]))
            table = out.logits[0].log_softmax(-1)
            targets = torch.tensor([[IGNORE] * (start - 1) + ids[start:] + [IGNORE]])
            loss = float(scorer.head.loss(out.last_hidden_state, targets))
        wanted = [float(table[i - 1, ids[i]]) for i in range(start, len(ids))]
        assert result.logprobs == pytest.approx(wanted, abs=1e-5)
        assert result.logprob == pytest.approx(-loss, abs=1e-4)
        assert result.tokens == len(ids) - start


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_scores_do_not_depend_on_what_is_batched(scorer: Model, batch_tokens: int) -> None:
    alone = [score(scorer, [ids], [start])[0] for ids, start in zip(SEQUENCES, STARTS, strict=True)]
    batched = score(scorer, SEQUENCES, STARTS, batch_tokens=batch_tokens)
    assert [r.logprob for r in batched] == pytest.approx([r.logprob for r in alone], abs=1e-5)


def test_greedy_says_whether_the_model_would_write_it(scorer: Model) -> None:
    ids = [5]
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(scorer(torch.tensor([ids])).logits[0, -1].argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % 97]
    assert [r.greedy for r in score(scorer, [ids, other], [1, 1])] == [True, False]


@pytest.mark.parametrize(
    ("ids", "start"), [([1, 2], 0), ([1, 2], 2), ([1], 1), ([1] * 65, 1), ([1, 97], 1), ([1, -1], 1)]
)
def test_what_cannot_be_scored_is_refused_by_number(scorer: Model, ids: list[int], start: int) -> None:
    with pytest.raises(RequestError, match="sequence 1"):
        score(scorer, [[1, 2], ids], [1, start])
