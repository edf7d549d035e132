"""n-grams: every probability and backoff weight equal to those of kenlm's `lmplz -o 3` on the same text."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
import torch

from etymon.engine import Engine, EngineConfig, Request, Sampling
from etymon.errors import DataError
from etymon.families.ngram import END, FALLBACK, START, UNKNOWN, NGramModel, NGrams, estimate, read_arpa, write_arpa

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def corpus() -> list[list[str]]:
    return [line.split() for line in (GOLDENS / "kn_corpus.txt").read_text().splitlines()]


@pytest.fixture(scope="module")
def golden() -> NGrams:
    return read_arpa(GOLDENS / "kn3.arpa.gz")


@pytest.fixture(scope="module")
def ours(corpus: list[list[str]]) -> NGrams:
    return estimate(corpus, 3)


def test_estimates_are_kenlm_s(ours: NGrams, golden: NGrams) -> None:
    assert [len(t) for t in golden.tables] == [1801, 5879, 6737]
    for mine, theirs in zip(ours.tables, golden.tables, strict=True):
        assert mine.keys() == theirs.keys()
        for gram, value in theirs.items():
            assert abs(mine[gram] - value) < 1e-5, gram
    for gram in ours.backoffs.keys() | golden.backoffs.keys():
        assert abs(ours.backoffs.get(gram, 0.0) - golden.backoffs.get(gram, 0.0)) < 1e-5, gram


def test_arpa_in_both_directions(ours: NGrams, tmp_path: Path) -> None:
    write_arpa(ours, tmp_path / "model.arpa")
    again = read_arpa(tmp_path / "model.arpa")
    for a, b in zip(again.tables, ours.tables, strict=True):
        assert list(a) == list(b)
        assert all(abs(a[gram] - b[gram]) < 1e-6 for gram in b)
    text = (tmp_path / "model.arpa").read_text()
    for wrong, message in (
        (text[: len(text) // 2], "line|truncated"),
        (text.replace("\t", " ", 1), "line 7"),
        (text.replace("ngram 2=", "ngram 2=1"), "as many as its head declares"),
        ("hello", "line 1: not readable as an ARPA file"),
    ):
        (tmp_path / "wrong.arpa").write_text(wrong)
        with pytest.raises(DataError, match=message):
            read_arpa(tmp_path / "wrong.arpa")


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one(corpus: list[list[str]], order: int) -> None:
    model = NGramModel(estimate(corpus, order, FALLBACK))
    ids = torch.randint(0, model.spec.vocab, (2, 12), generator=torch.Generator().manual_seed(0))
    names = [model.head.ids[w] for w in "we are accounted poor citizens".split()]
    ids[0, : len(names)] = torch.tensor(names)
    logits = model(ids).logits
    assert torch.allclose(logits.exp().sum(-1), torch.ones(2, 12), atol=1e-5)


def test_unseen_ids_share_the_unknown_word(ours: NGrams) -> None:
    names = [*ours.words, "zebra", "quagga"]
    logits = NGramModel(ours, names)(torch.tensor([[len(names) - 1, 5, 9]])).logits
    assert torch.allclose(logits.exp().sum(-1), torch.ones(1, 3), atol=1e-5)
    assert logits[0, 0, -1] == logits[0, 0, -2] == logits[0, 0, names.index(UNKNOWN)]


def test_logits_are_the_backed_off_probabilities(golden: NGrams, corpus: list[list[str]]) -> None:
    model = NGramModel(golden)
    for words in corpus[:8]:
        if len(words) < 2:
            continue
        ids = [model.head.ids[w] for w in [*words, END]]
        logits = model(torch.tensor([ids[:-1]])).logits[0]
        expected = [golden.log10(w, (START, *words[:i])) * math.log(10) for i, w in enumerate([*words, END])]
        got = logits[torch.arange(len(ids) - 1), ids[1:]]
        assert torch.allclose(got, torch.tensor(expected[1:]), atol=1e-4)
        loss = model.head.loss(model(torch.tensor([ids[:-1]])).last_hidden_state, torch.tensor([ids[1:]]))
        assert abs(loss.item() + sum(expected[1:])) < 1e-3


def test_states_and_packing(ours: NGrams) -> None:
    model = NGramModel(ours)
    ids = torch.randint(0, model.spec.vocab, (2, 12), generator=torch.Generator().manual_seed(0))
    full = model(ids).logits
    state = model.new_state(2, 16)
    parts = [model(chunk, state=state).logits for chunk in ids.split([5, 1, 1, 5], 1)]
    assert torch.equal(torch.cat(parts, 1), full)
    documents = torch.tensor([[0] * 4 + [1] * 8, [0] * 12])
    packed = model(ids, documents=documents).logits
    assert torch.equal(packed[0], torch.cat((model(ids[:1, :4]).logits[0], model(ids[:1, 4:]).logits[0])))
    assert torch.equal(packed[1], full[1])


def test_the_engine_runs_it(ours: NGrams) -> None:
    model = NGramModel(ours)
    prompt = [model.head.ids[w] for w in "we are".split()]
    engine = Engine(model, None, EngineConfig(slots=2))  # type: ignore[arg-type]
    requests = [
        Request(p, Sampling(temperature=0.0, max_tokens=5, ignore_eos=True)) for p in (prompt, prompt[:1], prompt)
    ]
    answers = engine.generate(requests)
    assert answers[0].ids == answers[2].ids
    ids = list(prompt)
    for _ in range(5):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert list(answers[0].ids) == ids[2:]
    (score,) = engine.score([ids], [1])
    logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert abs(score.logprob - sum(logprobs[i, ids[i + 1]].item() for i in range(len(ids) - 1))) < 1e-3


def test_too_little_text_says_so() -> None:
    with pytest.raises(DataError, match="1-grams are too few for discounts"):
        estimate([["a", "b"]], 2)
    with pytest.raises(DataError, match="'<s>' marks an end"):
        estimate([["a", "<s>"]], 2)
    with pytest.raises(DataError, match="no sentence"):
        estimate([], 2)
    tiny = estimate([["a", "b"]], 2, FALLBACK)
    assert abs(sum(10 ** tiny.log10(w, ("a",)) for w in tiny.words) - 1) < 1e-9


def test_the_golden_is_gzipped_text() -> None:
    with gzip.open(GOLDENS / "kn3.arpa.gz", "rt") as file:
        assert file.readline() == "\\data\\\n"
