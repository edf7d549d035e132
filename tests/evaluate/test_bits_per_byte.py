from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TEXTS, random_model

from etymon.data import Document
from etymon.errors import ConfigError, DataError
from etymon.evaluate import PerplexityConfig, bits_per_byte, difference
from etymon.evaluate.perplexity import _windows
from etymon.nn import Model, with_visibility
from etymon.spec import Prefix
from etymon.text import Tokenizer


def documents(repeats: int = 1) -> list[Document]:
    sources = ("prose", "code", "中文", "prose")
    return [
        Document(f"d{i}", text * repeats, source) for i, (text, source) in enumerate(zip(TEXTS, sources, strict=True))
    ]


def nats_of_tokens(model: Model, ids: list[int]) -> torch.Tensor:
    """-log p of every token but the first, in one pass, float64."""
    logits = model(torch.tensor([ids])).logits[0].double().detach()
    return -logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 60), st.integers(2, 12), st.data())
def test_windows_score_every_token_once_with_enough_before_it(count: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context - 1))
    ids = list(range(count))
    windows = list(_windows(ids, context, stride, 0))
    scored = Counter(token for window in windows for token in window.ids[window.start :])
    assert scored == Counter(range(1, count))
    for window in windows:
        assert len(window.ids) <= context
        assert window.ids == list(range(window.ids[0], window.ids[0] + len(window.ids)))
        assert window.ids[0] == 0 or window.start >= context - stride


def test_short_documents_cost_what_one_pass_over_each_says(model: Model, tokenizer: Tokenizer) -> None:
    result = bits_per_byte(model, documents(), tokenizer)
    assert tokenizer.eos_id is not None
    for document, scored in zip(documents(), result.documents, strict=True):
        ids = [*tokenizer.encode(document.text), tokenizer.eos_id]
        expected = math.log(tokenizer.vocab_size) + float(nats_of_tokens(model, ids).sum())
        assert scored.nats == pytest.approx(expected, rel=1e-6)
        assert scored.tokens == len(ids)
        assert scored.bytes == len(document.text.encode("utf-8"))
    total = sum(d.nats for d in result.documents) / math.log(2) / sum(d.bytes for d in result.documents)
    assert result.total.bits_per_byte == pytest.approx(total, rel=1e-12)
    assert result.total.perplexity == pytest.approx(math.exp(result.total.nats / result.total.tokens))


def test_a_long_document_is_scored_by_the_windows_that_the_setting_gives(model: Model, tokenizer: Tokenizer) -> None:
    document = documents(repeats=4)[0]
    config = PerplexityConfig(context=20, stride=7)
    result = bits_per_byte(model, [document], tokenizer, config)
    ids = [*tokenizer.encode(document.text), tokenizer.eos_id]
    expected = math.log(tokenizer.vocab_size) + float(nats_of_tokens(model, ids[:20]).sum())
    done = 20
    while done < len(ids):
        stop = min(done + 7, len(ids))
        expected += float(nats_of_tokens(model, ids[stop - 20 : stop])[-(stop - done) :].sum())
        done = stop
    assert len(ids) > 60
    assert result.total.nats == pytest.approx(expected, rel=1e-6)


def test_nothing_of_a_document_is_a_prefix_that_sees_itself(model: Model, tokenizer: Tokenizer) -> None:
    """What stands before a window's scored tokens was scored itself: a prefix would see it again from both sides."""
    config = PerplexityConfig(context=20, stride=7)
    seeing = with_visibility(model, Prefix())
    found, plain = (bits_per_byte(m, documents(4), tokenizer, config).total.nats for m in (seeing, model))
    assert found == pytest.approx(plain, rel=1e-6)


def test_more_context_is_used_when_given(tokenizer: Tokenizer) -> None:
    model = random_model(tokenizer.vocab_size, seed=3)
    short, long = (
        bits_per_byte(model, documents(4), tokenizer, PerplexityConfig(context=n, stride=n // 2)).total.nats
        for n in (8, 64)
    )
    assert abs(short - long) > 1e-3


def test_the_result_does_not_depend_on_the_batch(model: Model, tokenizer: Tokenizer) -> None:
    results = [
        bits_per_byte(model, documents(5), tokenizer, PerplexityConfig(context=32, batch_size=n)) for n in (1, 3, 100)
    ]
    for other in results[1:]:
        assert other.total.bits_per_byte == pytest.approx(results[0].total.bits_per_byte, abs=1e-6)
        for a, b in zip(results[0].documents, other.documents, strict=True):
            assert a.nats == pytest.approx(b.nats, rel=1e-6)


def test_a_model_that_knows_nothing_costs_the_uniform_guess_under_any_tokenizer(tokenizer: Tokenizer) -> None:
    """Bits per byte is the cost of the text: log2(vocabulary) for each token of it, whatever a token is."""
    for trained in (tokenizer, Tokenizer.train(TEXTS * 5, 300)):
        model = random_model(trained.vocab_size)
        torch.nn.init.zeros_(model.head.linear.weight)
        result = bits_per_byte(model, documents(3), trained, PerplexityConfig(context=16))
        tokens = sum(len(trained.encode(d.text)) + 1 for d in documents(3))
        size = sum(len(d.text.encode()) for d in documents(3))
        assert result.total.bits_per_byte == pytest.approx(tokens * math.log2(trained.vocab_size) / size, rel=1e-6)
        assert result.total.perplexity == pytest.approx(trained.vocab_size, rel=1e-5)


def test_sources_add_up_to_the_total(model: Model, tokenizer: Tokenizer) -> None:
    result = bits_per_byte(model, documents(), tokenizer)
    assert set(result.sources) == {"prose", "code", "中文"}
    assert result.sources["prose"].documents == 2
    assert sum(score.nats for score in result.sources.values()) == pytest.approx(result.total.nats)
    assert sum(score.bytes for score in result.sources.values()) == result.total.bytes
    assert result.total.standard_error is not None
    assert result.sources["code"].standard_error is None


class WithBos:
    """The same tokenizer, with a token that begins every document."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.bos_id = tokenizer.eos_id

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)


def test_after_bos_the_first_token_is_predicted(model: Model, tokenizer: Tokenizer) -> None:
    result = bits_per_byte(model, documents()[:1], WithBos(tokenizer))  # type: ignore[arg-type]
    ids = [tokenizer.eos_id, *tokenizer.encode(TEXTS[0]), tokenizer.eos_id]
    assert result.total.nats == pytest.approx(float(nats_of_tokens(model, ids).sum()), rel=1e-6)
    assert result.total.tokens == len(ids) - 1
    assert (result.first_token, bits_per_byte(model, documents(), tokenizer).first_token) == ("after BOS", "uniform")


def test_documents_without_text_are_left_out_and_a_limit_is_kept(model: Model, tokenizer: Tokenizer) -> None:
    given = [Document("empty", "", "prose"), *documents()]
    assert [d.id for d in bits_per_byte(model, iter(given), tokenizer).documents] == ["d0", "d1", "d2", "d3"]
    limited = bits_per_byte(model, iter(given), tokenizer, PerplexityConfig(max_documents=2))
    assert [d.id for d in limited.documents] == ["d0", "d1"]


def test_scoring_leaves_the_model_in_its_mode(tokenizer: Tokenizer) -> None:
    model = random_model(tokenizer.vocab_size).train()
    bits_per_byte(model, documents(), tokenizer)
    assert model.training


def test_nothing_to_score_is_an_error(model: Model, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="no held-out document"):
        bits_per_byte(model, [Document("a", "", "s")], tokenizer)


def test_impossible_lengths_are_errors(model: Model, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"context=65 is beyond .* 64"):
        bits_per_byte(model, documents(), tokenizer, PerplexityConfig(context=65))
    with pytest.raises(ConfigError, match="stride=16 must be below"):
        bits_per_byte(model, documents(), tokenizer, PerplexityConfig(context=16, stride=16))


def test_difference_pairs_documents(model: Model, tokenizer: Tokenizer) -> None:
    other = random_model(tokenizer.vocab_size, seed=5)
    before = bits_per_byte(model, documents(3), tokenizer, name="before")
    after = bits_per_byte(other, documents(3), tokenizer, name="after")
    found = difference(before, after)
    assert found.change == pytest.approx(after.total.bits_per_byte - before.total.bits_per_byte)
    assert found.to_dict()["interval"][0] < found.change < found.to_dict()["interval"][1]
    same = difference(before, before)
    assert (same.change, same.standard_error) == (0.0, 0.0)
    with pytest.raises(DataError, match="different documents"):
        difference(before, bits_per_byte(other, documents(3)[1:], tokenizer))


def test_save_keeps_the_other_models(model: Model, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("pretrained", "fine-tuned", "pretrained"):
        bits_per_byte(model, documents(), tokenizer, name=name).save(tmp_path)
    written = json.loads((tmp_path / "evaluate/bits_per_byte.json").read_text(encoding="utf-8"))
    assert sorted(entry["model"] for entry in written["models"]) == ["fine-tuned", "pretrained"]
    assert written["models"][0]["end_of_document_counted"] is True
    lines = (tmp_path / "evaluate/documents-pretrained.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["source"] for line in lines] == ["prose", "code", "中文", "prose"]
    with pytest.raises(ConfigError, match="cannot name"):
        bits_per_byte(model, documents(), tokenizer, name="../escape").save(tmp_path)
