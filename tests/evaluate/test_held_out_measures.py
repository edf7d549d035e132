"""What embedders and classifiers are measured by: Spearman's correlation, places among candidates, shares."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import etymon
from etymon.cli.main import app
from etymon.data import Record
from etymon.engine import Engine, EngineConfig
from etymon.errors import DataError
from etymon.evaluate import HeldOut, Measure, retrieval, similarity, similarity_of_pairs
from etymon.evaluate.measures import share
from etymon.evaluate.statistics import bootstrap_interval, ranks, spearman
from etymon.families import family_named
from etymon.nn import Model, build, with_head
from etymon.spec import Embedding, First, Mean
from etymon.text import Tokenizer

PAIRS = [
    ("a red hat", "a hat of red", 4.8),
    ("a red hat", "snow falls", 0.2),
    ("rain", "rain", 5.0),
    ("tea", "ice", 1.0),
]


def by_hand(values: list[float]) -> list[float]:
    return [sum(a < b for a in values) + (sum(a == b for a in values) + 1) / 2 for b in values]


def test_spearman_is_pearson_s_correlation_of_mean_ranks() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first = np.round(rng.normal(size=40), 1)  # with ties
        second = np.round(0.5 * first + rng.normal(size=40))
        assert len(set(second)) < 20
        assert ranks(second).tolist() == by_hand(second.tolist())
        expected = np.corrcoef(by_hand(first.tolist()), by_hand(second.tolist()))[0, 1]
        assert spearman(first, second) == pytest.approx(expected, abs=1e-12)
    # hours of television and IQ, the example of Wikipedia's page on the coefficient: -29/165
    iq = np.array([106, 100, 86, 101, 99, 103, 97, 113, 112, 110], dtype=float)
    hours = np.array([7, 27, 2, 50, 28, 29, 20, 12, 6, 17], dtype=float)
    assert spearman(iq, hours) == pytest.approx(-29 / 165, abs=1e-12)
    assert spearman(iq, np.ones(10)) is None


def test_the_interval_is_as_wide_as_theory_says() -> None:
    """Bonett and Wright 2000: the standard error of Fisher's z of Spearman's rho is sqrt((1 + rho² / 2) / (n - 3))."""
    rng = np.random.default_rng(1)
    scores = rng.normal(size=400)
    (found,) = similarity(scores + rng.normal(size=400), scores)
    rho, error = found.value / 100, math.sqrt((1 + (found.value / 100) ** 2 / 2) / 397)
    low, high = (100 * math.tanh(math.atanh(rho) + 1.96 * sign * error) for sign in (-1, 1))
    assert found.interval is not None and found.count == 400
    assert found.interval == pytest.approx((low, high), abs=0.25 * (high - low) / 2)
    assert similarity([0.1, 0.5, 0.9], [1, 2, 3])[0].value == pytest.approx(100)
    assert similarity([0.1, 0.5, 0.9], [3, 2, 1])[0].value == pytest.approx(-100)
    assert similarity([0.5, 0.5], [1, 2]) == [] and bootstrap_interval(lambda rows: 1.0, 1) is None


def test_places_among_candidates() -> None:
    at = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    queries, own = torch.tensor(at), torch.tensor([[2.0, 0.1], [1.0, 0.2], [3.0, 2.0]])
    wrong = torch.tensor([[0.9, 1.0]])  # nearer to the third query than its own, and third for the first
    first, mrr = retrieval(queries, torch.cat((own, wrong)), ["a", "b", "c", "d"])
    # the second query: c, d and b are at (2, 3), (1, 0.9) and (0.2, 1) of it; its own is third
    assert first.name == "first among 4" and first.value == pytest.approx(100 / 3) and first.count == 3
    assert mrr.value == pytest.approx(100 * (1 + 1 / 3 + 1 / 2) / 3)
    again, _ = retrieval(queries[:1], torch.cat((own[:1], own[:1])), ["a", "a"])
    assert again.value == 100 and again.name == "first among 1"  # the same text is no other candidate
    assert retrieval(queries, torch.ones(3, 2), ["a", "b", "c"])[0].value == 0  # one vector for all finds nothing


def test_shares_have_the_interval_of_their_rows() -> None:
    one = share("accuracy", np.array([1, 0, 1, 1]), np.ones(4, dtype=np.int64))
    assert one.value == 75 and one.interval == pytest.approx((30.06, 95.44), abs=0.01)  # Wilson's
    whole = share("tokens", np.array([10, 0] * 50), np.array([10, 10] * 50))  # a row's tokens are right together
    assert whole.value == 50 and whole.interval is not None
    half = (whole.interval[1] - whole.interval[0]) / 2
    assert half == pytest.approx(196 * 0.5 / math.sqrt(100), rel=0.15)
    assert str(one) == "accuracy 75.0 % (30.1 to 95.4)"
    assert str(Measure("loss", 1.5, "nats", None, 3)) == "loss 1.5000 nats"
    said = "nothing to measure: no record was held out"
    assert str(HeldOut("int8", "mlm", (), said)) == said


@pytest.fixture(scope="module")
def embedder() -> tuple[Model, Tokenizer]:
    tokenizer = Tokenizer.train((text for a, b, _ in PAIRS for text in (a, b)), 300)
    named = family_named("bert")
    base = build(named.spec(**(named.tiny | {"vocab": tokenizer.vocab_size})), seed=1)
    return with_head(base, Embedding(pooling=Mean())).eval(), tokenizer


def test_scored_pairs_are_ordered_by_the_vectors(embedder: tuple[Model, Tokenizer], tmp_path: Path) -> None:
    model, tokenizer = embedder
    engine = Engine(model, tokenizer, EngineConfig(slots=1))
    records = [Record(f"r:{i}", (a, b), score, "train") for i, (a, b, score) in enumerate(PAIRS)]
    (found,) = similarity_of_pairs(engine, records)
    cosines = []
    for a, b, _ in PAIRS:
        u, v = (model(torch.tensor([tokenizer.frame(tokenizer.encode(t)).ids])) for t in (a, b))
        means = [each.last_hidden_state[0].mean(0).tolist() for each in (u, v)]
        dot = sum(x * y for x, y in zip(*means, strict=True))
        cosines.append(dot / math.hypot(*means[0]) / math.hypot(*means[1]))
    expected = np.corrcoef(by_hand(cosines), by_hand([score for *_, score in PAIRS]))[0, 1]
    assert found.value == pytest.approx(100 * expected) and found.count == 4
    etymon.save(model, tokenizer, tmp_path / "model")
    (tmp_path / "sts.tsv").write_text(
        "sentence1\tsentence2\tscore\n" + "".join(f"{a}\t{b}\t{score}\n" for a, b, score in PAIRS)
    )
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "model"), "--pairs", str(tmp_path / "sts.tsv")])
    assert f"sts.tsv: Spearman ×100 {100 * expected:.2f} (" in result.output and "4 pairs" in result.output
    for options, message in ((("--documents", "."), "is an embedder: give --pairs only"), ((), "on what")):
        result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "model"), *options])
        assert result.exit_code != 0 and message in str(result.exception)


@pytest.mark.parametrize(
    ("texts", "label", "message"),
    [
        (("a",), 1.0, "r:3 has 1 texts; a scored pair has two"),
        (("a", "b"), None, "r:3 has no number as its label"),
        (("a", "b"), "nan", "r:3 has no number as its label"),
        (("a", "b"), 1.0, "have one score among them"),
    ],
)
def test_what_is_no_scored_pair_is_refused(
    texts: tuple[str, ...], label: object, message: str, embedder: tuple[Model, Tokenizer]
) -> None:
    engine = Engine(*embedder, EngineConfig(slots=1))
    with pytest.raises(DataError, match=message):
        similarity_of_pairs(engine, [Record("r:3", texts, label, "train")])  # type: ignore[arg-type]


def test_the_command_embeds_as_the_model_was_trained(embedder: tuple[Model, Tokenizer], tmp_path: Path) -> None:
    model, tokenizer = embedder
    etymon.save(with_head(model, Embedding(pooling=First())), tokenizer, tmp_path)
    printed = CliRunner().invoke(app, ["embed", str(tmp_path), "rain"]).output
    (vector,) = Engine(etymon.load(tmp_path)[0], tokenizer, EngineConfig(slots=1)).embed(["rain"])
    assert json.loads(printed) == pytest.approx(vector.tolist(), abs=1e-5) and vector.norm() == pytest.approx(1)
