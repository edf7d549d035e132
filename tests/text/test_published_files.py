"""Tokenizers from every kind of published file, against the programs that those files are of."""

from __future__ import annotations

import base64
import io
import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from tokenizer_setups import TEXTS, corpus
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    GPT2Tokenizer,
    OpenAIGPTTokenizer,
    Qwen2Tokenizer,
    RobertaTokenizer,
)

from etymon.errors import TokenizerError
from etymon.text import Tokenizer, bytelevel, sentencepiece

spm = pytest.importorskip("sentencepiece")


@lru_cache
def texts() -> list[str]:
    chosen = random.Random(0)
    found = [
        *TEXTS,
        "",
        " ",
        "  two  spaces \n",
        "</s> <unk> <0x0A> [MASK] <|endoftext|>",
        "ﬁne ½ ①　全角 Ｔｅｘｔ",
        "é e\u0301 각",
    ]
    found += [corpus()[0][i : i + 300] for i in range(0, 9000, 300)]
    found += [bytes(chosen.randrange(256) for _ in range(60)).decode("utf-8", "replace") for _ in range(60)]
    ranges = [range(32, 0x300), range(0x2000, 0x3100), range(0x4E00, 0x9FFF), range(0x1F300, 0x1F6FF)]
    return found + ["".join(chr(chosen.choice(chosen.choice(ranges))) for _ in range(30)) for _ in range(60)]


# -- SentencePiece ----------------------------------------------------------------------------------------------------

USER = ["<eop>", "世界", "▁▁▁▁"]
MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
    },
    "gemma": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": [*USER, "\n\n"],
    },
    "t5": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "user": {"model_type": "unigram", "user_defined_symbols": USER[:2]},
    "bpe": {"model_type": "bpe"},
    "bytes": {
        "model_type": "unigram",
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "normalization_rule_name": "nfkc_cf",
    },
    "char": {"model_type": "char"},
}


@lru_cache
def sp_model(name: str) -> bytes:
    lines = [line[:200] for text in corpus()[:2] for line in text.split("\n") if line.strip()] + [*TEXTS] * 4
    lines += ["你好，世界！今天天气很好，我们去公园散步吧。"] * 4
    out = io.BytesIO()
    sizes = {"vocab_size": 900, "character_coverage": 0.999, "hard_vocab_limit": False, "num_threads": 1}
    sizes |= {"hard_vocab_limit": True} if MODELS[name]["model_type"] == "bpe" else {}
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, minloglevel=2, **(sizes | MODELS[name])
    )
    return out.getvalue()


def sp_tokenizer(name: str, directory: Path, file: str = "tokenizer.model") -> tuple[Tokenizer, Any]:
    directory.mkdir(exist_ok=True)
    (directory / file).write_bytes(sp_model(name))
    return Tokenizer.load(directory), spm.SentencePieceProcessor(model_proto=sp_model(name))


@pytest.mark.parametrize("name", MODELS)
def test_sentencepiece_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    tokenizer, reference = sp_tokenizer(name, tmp_path)
    assert tokenizer.vocab_size == reference.vocab_size()
    scores = [piece.score for piece in sentencepiece.parse(sp_model(name)).pieces]
    for text in texts():
        if name == "user" and text in USER:  # the whole text: the prefix before it is not said
            continue
        ours, theirs = tokenizer.encode(text), reference.encode(text)
        if ours != theirs:  # two ways of equal probability, told apart by the rounding of single precision
            assert MODELS[name]["model_type"] == "unigram", text
            assert len(ours) == len(theirs), text
            assert sum(scores[i] for i in ours) == pytest.approx(sum(scores[i] for i in theirs), abs=1e-4), text
        if 0 not in theirs and reference.unk_id() not in theirs and "\ufffd" not in text:
            assert tokenizer.decode(ours) == reference.decode(ours), text
    assert {text: id for text, id in tokenizer.special.items() if text in ("<s>", "</s>", "<pad>")} == {
        reference.id_to_piece(id): id for id in (reference.bos_id(), reference.eos_id(), reference.pad_id()) if id >= 0
    }


def test_sentencepiece_saves_as_a_tokenizer_json(tmp_path: Path) -> None:
    tokenizer, _ = sp_tokenizer("llama", tmp_path / "sp")
    tokenizer.save(tmp_path / "saved")
    reference = AutoTokenizer.from_pretrained(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.bos_id, again.eos_id) == (1, 2)
    for text in texts():
        if any(name in text for name in tokenizer.special):
            continue
        assert reference.encode(text, add_special_tokens=False) == tokenizer.encode(text) == again.encode(text)


def test_numbers_of_fairseq_and_t5(tmp_path: Path) -> None:
    fairseq, reference = sp_tokenizer("user", tmp_path / "xlmr", "sentencepiece.bpe.model")
    text = "Hello 世界, this is it."
    assert fairseq.encode(text) == [id + 1 if id > 2 else 3 for id in reference.encode(text)]
    assert [fairseq.special[name] for name in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert fairseq.special["<mask>"] == fairseq.vocab_size - 1 == reference.vocab_size() + 1
    directory = tmp_path / "t5"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "t5"}))
    t5, reference = sp_tokenizer("t5", directory, "spiece.model")
    assert t5.encode(text) == reference.encode(text)
    size = reference.vocab_size()
    assert (t5.special["<extra_id_0>"], t5.special["<extra_id_99>"], t5.vocab_size) == (size + 99, size, size + 100)
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MBartTokenizer"}))
    mbart = Tokenizer.load(directory)
    assert (mbart.special["ar_AR"], mbart.special["<mask>"]) == (size + 1, size + 26)


def test_added_tokens_get_their_declared_ids(tmp_path: Path) -> None:
    _, reference = sp_tokenizer("llama", tmp_path)
    size = reference.vocab_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": size}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.pad_id == size
    assert size not in tokenizer.encode("[PAD]")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": size + 7}))
    with pytest.raises(TokenizerError, match=rf"'\[PAD\]' should have id {size + 7}, but the vocabulary gives {size}"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "no pieces"),
        (b"PK\x03\x04 something else", "no SentencePiece model"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "bytes, but only"),
        (b"\x0a\x02\x0a\xff", "damaged"),
        (b"\x0a\x08\x0a\x01\xff\x15\x00\x00\x00\x00", "damaged"),
        (b"\x0a\x03\x0a\x01a", "no unknown piece"),
        (b"\x0a\x03\x0a\x01a\x0a\x03\x0a\x01a", "two pieces are the same"),
        (b"\x0a\x03\x0a\x01a\x12\x02\x18\x03", "model type is 'word'"),
        (b"\x0a\x03\x0a\x01a\x0a\x05\x0a\x01b\x18\x09", "a piece is malformed"),
    ],
)
def test_bad_sentencepiece_files_are_named(raw: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizer.model" in str(caught.value)


def test_damaged_sentencepiece_files_never_crash(tmp_path: Path) -> None:
    chosen, raw = random.Random(1), sp_model("t5")
    for _ in range(60):
        damaged = bytearray(raw[: chosen.choice([len(raw), chosen.randrange(len(raw))])])
        for _ in range(chosen.randrange(4)):
            damaged[chosen.randrange(len(damaged))] = chosen.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        try:
            Tokenizer.load(tmp_path).encode("hello 你好")
        except TokenizerError as error:
            if "tokenizer.model" not in str(error):
                raise


# -- WordPiece --------------------------------------------------------------------------------------------------------


def wordpiece(directory: Path, *, lower: bool) -> Path:
    trainer = BertWordPieceTokenizer(lowercase=lower)
    trainer.train_from_iterator([*corpus()], vocab_size=1500, show_progress=False)
    trainer.save_model(str(directory))
    return directory


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_wordpiece(lower: bool, told: bool, tmp_path: Path) -> None:
    wordpiece(tmp_path, lower=lower)
    if told:
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps({"do_lower_case": lower, "tokenizer_class": "BertTokenizer"})
        )
    tokenizer = Tokenizer.load(tmp_path)
    vocabulary = {token: id for id, token in enumerate((tmp_path / "vocab.txt").read_text().split("\n")[:-1])}
    reference = BertTokenizer(vocab=vocabulary, do_lower_case=lower)
    tokenizer.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in texts():
        expected = reference.encode(text, split_special_tokens=True, add_special_tokens=False)
        if not any(name in text for name in tokenizer.special):
            assert tokenizer.encode(text) == expected
            assert saved.encode(text) == reference.encode(text)
    assert tokenizer.special == {name: vocabulary[name] for name in ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")}
    assert tokenizer.encode("[MASK]") != [tokenizer.special["[MASK]"]]


def test_bad_wordpiece_files(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(TokenizerError, match=r"vocab.txt: it is no WordPiece vocabulary: among its 2 lines"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[UNK]\n\xff\n")
    with pytest.raises(TokenizerError, match=r"vocab.txt: it is not UTF-8"):
        Tokenizer.load(tmp_path)


# -- vocab.json and merges.txt ----------------------------------------------------------------------------------------


def pair(directory: Path, special: tuple[str, ...] = ("<|endoftext|>",)) -> Path:
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator([*corpus()], vocab_size=1500, special_tokens=list(special), show_progress=False)
    trainer.save_model(str(directory))
    return directory


ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@pytest.mark.parametrize(
    ("cls", "special"),
    [(GPT2Tokenizer, ("<|endoftext|>",)), (RobertaTokenizer, ROBERTA), (Qwen2Tokenizer, ("<|endoftext|>",))],
)
def test_byte_level_pairs(cls: Any, special: tuple[str, ...], tmp_path: Path) -> None:
    pair(tmp_path, special)
    if cls is Qwen2Tokenizer:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    tokenizer = Tokenizer.load(tmp_path)
    reference = cls.from_pretrained(tmp_path)
    for text in texts():
        if not any(name in text for name in tokenizer.special):
            assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False)
            if cls is not Qwen2Tokenizer:
                assert tokenizer.decode(tokenizer.encode(text)) == text
    assert set(tokenizer.special) == set(special)
    assert tokenizer.eos_id == reference.eos_token_id
    assert set(tokenizer.encode("".join(special))).isdisjoint(tokenizer.special.values())


def test_gpt1_pairs(tmp_path: Path) -> None:
    backend = Backend(BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = BertPreTokenizer()
    trainer = BpeTrainer(vocab_size=1200, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False)
    backend.train_from_iterator([text.lower() for text in corpus()], trainer)
    backend.model.save(str(tmp_path))
    tokenizer, reference = Tokenizer.load(tmp_path), OpenAIGPTTokenizer.from_pretrained(tmp_path)
    for text in texts():
        if "<unk>" not in text:
            assert tokenizer.encode(text) == reference.encode(text)
    assert tokenizer.decode(tokenizer.encode("Hello, World")).strip() == "hello , world"


def test_bad_pairs(tmp_path: Path) -> None:
    pair(tmp_path)
    lines = (tmp_path / "merges.txt").read_text().split("\n")

    def refused(message: str) -> None:
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.load(tmp_path)

    (tmp_path / "merges.txt").write_text("\n".join([*lines[:5], "a b c", *lines[5:]]))
    refused(r"merges.txt, line 6: expected two tokens")
    (tmp_path / "merges.txt").write_text("\n".join([*lines[:5], "q 你", *lines[5:]]))
    refused(r"merges.txt, line 6: '你' is not in vocab.json")
    (tmp_path / "merges.txt").write_bytes(b"\xff")
    refused("merges.txt is not UTF-8")
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    refused("does not hold the 256 bytes")
    for text in ('{"a": "0"}', '{"a": 0, "b": 0}', "{}", "[]", '{"a": -1}'):
        (tmp_path / "vocab.json").write_text(text)
        refused("must map tokens to ids")
    (tmp_path / "vocab.json").write_text("{")
    refused("vocab.json is not valid JSON")
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"merges\.txt, which belongs to it, is missing"):
        Tokenizer.load(tmp_path / "vocab.json")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMTokenizer"}')
    with pytest.raises(TokenizerError, match="Moses"):
        Tokenizer.load(tmp_path / "vocab.json")


# -- tiktoken ---------------------------------------------------------------------------------------------------------


@lru_cache
def ranks() -> dict[bytes, int]:
    merges = json.loads(json.dumps(_bpe()))
    letters = bytelevel.byte_alphabet()
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes(letters[c] for c in left + right) for left, right in merges]
    return {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}


def _bpe() -> list[list[str]]:
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator([*corpus()], vocab_size=1800, show_progress=False)
    return json.loads(trainer.to_str())["model"]["merges"]


@pytest.mark.parametrize("pattern", bytelevel.PATTERNS)
@pytest.mark.parametrize("file", ["qwen.tiktoken", "tokenizer.model"])
def test_tiktoken(pattern: str, file: str, tmp_path: Path) -> None:
    lines = (b"%s %d" % (base64.b64encode(token), rank) for token, rank in ranks().items())
    (tmp_path / file).write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(TokenizerError, match=rf"{file}: it holds {len(ranks())} ranks, which is no published file"):
        Tokenizer.load(tmp_path)
    size = len(ranks())
    added = {str(size): {"content": "<|im_end|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tiktoken_pattern": pattern, "added_tokens_decoder": added, "eos_token": "<|im_end|>"})
    )
    tokenizer = Tokenizer.load(tmp_path)
    reference = tiktoken.Encoding(
        "test", pat_str=bytelevel.PATTERNS[pattern], mergeable_ranks=ranks(), special_tokens={"<|im_end|>": size}
    )
    for text in [*texts(), "aaaaaaaaa     \n\n\t\t 1234567 ABCdefGHI's", *corpus()[1:3]]:
        if pattern != "qwen":  # which composes first
            assert tokenizer.encode(text) == reference.encode_ordinary(text)
            assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("x<|im_end|>") == reference.encode_ordinary("x<|im_end|>")
    assert tokenizer.eos_id == size


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"YQ== 0\n!! 1\n", "line 2: expected a token in base64 and its rank"),
        (b"YQ== 0\nYg==\n", "line 2: expected"),
        (b"YQ== 0\n", "the byte 0x00 has no rank"),
        (b"\n".join(b"%s %d" % (base64.b64encode(bytes([b])), 2 * b) for b in range(256)), "without gaps"),
    ],
)
def test_bad_ranks(raw: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.tiktoken").write_bytes(raw)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path)
