"""Tokenizer files of BERT's heirs, against the programs that those files are of: ids, names, and what stands around."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from test_published_files import pair, texts
from tokenizer_setups import TEXTS, corpus
from transformers import AutoTokenizer, DebertaTokenizer, DebertaV2Tokenizer, RobertaTokenizer

from etymon.errors import TokenizerError
from etymon.text import Tokenizer

spm = pytest.importorskip("sentencepiece")
DEBERTA = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")


def settings(directory: Path, model_type: str, **values: Any) -> None:
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    (directory / "tokenizer_config.json").write_text(json.dumps(values))


def deberta_v2(directory: Path) -> Any:
    """Write a `spm.model` with control pieces named and numbered as in the published ones; return its processor."""
    lines = [line[:200] for text in corpus()[:2] for line in text.split("\n") if line.strip()] + [*TEXTS] * 4
    out = io.BytesIO()
    names = {f"{role}_piece": name for role, name in zip(("pad", "bos", "eos", "unk"), DEBERTA, strict=False)}
    ids = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    sizes = {"vocab_size": 900, "character_coverage": 0.999, "hard_vocab_limit": False, "num_threads": 1}
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, model_type="unigram", minloglevel=2, **sizes, **ids, **names
    )
    (directory / "spm.model").write_bytes(out.getvalue())
    return spm.SentencePieceProcessor(model_proto=out.getvalue())


def test_deberta_v2_files(tmp_path: Path) -> None:
    reference = deberta_v2(tmp_path)
    settings(tmp_path, "deberta-v2", do_lower_case=False, vocab_type="spm")
    tokenizer = Tokenizer.load(tmp_path)
    for text in texts():
        ours, theirs = tokenizer.encode(text), reference.encode(text)
        if ours != theirs:  # two ways of equal probability, told apart by the rounding of single precision
            scores = [sum(reference.get_score(id) for id in ids) for ids in (ours, theirs)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-4), text
    size = reference.vocab_size()
    assert tokenizer.special == {name: id for id, name in enumerate(DEBERTA[:4])} | {"[MASK]": size}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id) == (1, 2, 0, size)
    transformed, text = DebertaV2Tokenizer.from_pretrained(tmp_path), "Plain words, and a [MASK]."
    assert transformed.mask_token_id == size
    assert tokenizer.frame(tokenizer.encode("Plain words")).ids == transformed.encode("Plain words")
    two, theirs = (tokenizer.frame(*map(tokenizer.encode, ("one", "two"))), transformed("one", "two"))
    assert (two.ids, two.segments) == (theirs["input_ids"], theirs["token_type_ids"])
    assert tokenizer.encode_control(text).count(size) == transformed.encode(text).count(transformed.mask_token_id) == 1
    tokenizer.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.encode("Plain words") == transformed.encode("Plain words")
    assert saved.mask_token_id == size
    settings(tmp_path, "deberta-v2", split_by_punct=True)
    with pytest.raises(TokenizerError, match=r"spm\.model: its settings cut text at punctuation"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("cls", "special", "model_type"),
    [
        (DebertaTokenizer, ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"), "deberta"),
        (RobertaTokenizer, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "roberta"),
        (RobertaTokenizer, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "longformer"),
        (RobertaTokenizer, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "bart"),
    ],
)
def test_byte_level_files_of_encoders(cls: Any, special: tuple[str, ...], model_type: str, tmp_path: Path) -> None:
    pair(tmp_path, special)
    settings(tmp_path, model_type)
    tokenizer, reference = Tokenizer.load(tmp_path), cls.from_pretrained(tmp_path)
    for text in texts():
        if not any(name in text for name in special):
            assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False)
            assert tokenizer.frame(tokenizer.encode(text)).ids == reference.encode(text)
    assert tokenizer.special == {name: id for id, name in enumerate(special)}
    assert tokenizer.mask_id == reference.mask_token_id
    framed = tokenizer.frame(tokenizer.encode("one"), tokenizer.encode("two"))
    if model_type == "deberta":  # as the published code writes it; the reference has a second [SEP] between them
        cls_, sep = tokenizer.special["[CLS]"], tokenizer.special["[SEP]"]
        one, two = tokenizer.encode("one"), tokenizer.encode("two")
        assert framed.ids == [cls_, *one, sep, *two, sep]
        assert framed.segments == [0] * (2 + len(one)) + [1] * (1 + len(two))
    else:
        assert framed.ids == reference.encode("one", "two")
