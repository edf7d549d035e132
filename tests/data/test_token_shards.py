from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from etymon.data import Document, TokenShards, write_shards
from etymon.errors import DataError

TEXTS = ["first", "", "第三个文档，中文", "x" * 300, "fifth", "👩‍👩‍👧"] * 5


def ids_of(text: str) -> list[int]:
    return [2 + byte for byte in text.encode()] + [1]


@pytest.mark.parametrize("shard_tokens", [1, 50, 400, 1 << 20])
def test_round_trip_across_shards(make_shards, shard_tokens: int) -> None:
    shards = make_shards(TEXTS, shard_tokens)
    stream = [i for text in TEXTS for i in ids_of(text)]
    assert shards.n_documents == len(shards) == len(TEXTS)
    assert shards.n_tokens == len(stream)
    assert shards.n_bytes == sum(len(text.encode()) for text in TEXTS)
    for i, text in enumerate(TEXTS):
        assert shards.document(i).tolist() == ids_of(text)
        assert shards.document(i).dtype == np.uint16
        assert shards.document_bytes(i) == len(text.encode())
    starts = np.cumsum([0, *(len(ids_of(text)) for text in TEXTS)])[:-1]
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = sorted(rng.integers(0, len(stream) + 1, 2).tolist())
        out = np.empty(high - low, dtype=np.int64)
        shards.read(low, out)
        assert out.tolist() == stream[low:high]
        assert shards.starts(low, high).tolist() == [s for s in starts if low <= s < high]
    with pytest.raises(IndexError):
        shards.document(len(TEXTS))


def test_files_are_what_the_format_says(make_shards) -> None:
    shards = make_shards(["ab", "c"])
    assert np.fromfile(shards.directory / "shard-00000.bin", dtype="<u2").tolist() == ids_of("ab") + ids_of("c")
    assert np.fromfile(shards.directory / "shard-00000.idx", dtype="<u8").tolist() == [0, 3, 5, 0, 2, 3]
    manifest = json.loads((shards.directory / "manifest.json").read_text())
    assert (manifest["dtype"], manifest["tokens"], manifest["documents"], manifest["bytes"]) == ("uint16", 5, 2, 3)
    assert sorted(p.name for p in shards.directory.iterdir()) == ["manifest.json", "shard-00000.bin", "shard-00000.idx"]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_dtype_follows_the_vocabulary(tmp_path: Path, encoder, vocab_size: int, dtype: type) -> None:
    encoder.vocab_size = vocab_size
    encoder.encode_batch = lambda texts: [[vocab_size - 1] for _ in texts]
    shards = write_shards([Document("a", "a", "s")], encoder, tmp_path / "s")
    assert shards.document(0).dtype == dtype
    assert shards.document(0).tolist() == [vocab_size - 1, 1]


def test_views_cannot_be_written(make_shards) -> None:
    with pytest.raises(ValueError, match="read-only"):
        make_shards(TEXTS).document(0)[0] = 5


def test_fingerprint_is_of_the_content(make_shards) -> None:
    assert make_shards(TEXTS, name="a").fingerprint == make_shards(TEXTS, name="b").fingerprint
    assert make_shards(TEXTS, name="a").fingerprint != make_shards(TEXTS[::-1], name="c").fingerprint


def test_another_tokenizer_is_refused(make_shards, encoder) -> None:
    shards = make_shards(TEXTS)
    TokenShards(shards.directory, tokenizer=encoder)
    encoder.fingerprint = "other"
    with pytest.raises(DataError, match="written with another tokenizer"):
        TokenShards(shards.directory, tokenizer=encoder)


def test_no_documents_and_no_eos(tmp_path: Path, encoder) -> None:
    with pytest.raises(DataError, match="the corpus is empty"):
        write_shards([], encoder, tmp_path / "s")
    encoder.eos_id = None
    with pytest.raises(DataError, match="no end-of-text token"):
        write_shards([Document("a", "a", "s")], encoder, tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(tmp_path: Path, encoder) -> None:
    def documents():
        yield Document("a", "x" * (1 << 21), "s")
        raise DataError("the source broke")

    with pytest.raises(DataError, match="the source broke"):
        write_shards(documents(), encoder, tmp_path / "s", shard_tokens=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["shard-00001.bin", "shard-00001.idx"])
def test_truncated_missing_and_corrupted_files_are_named(make_shards, name: str) -> None:
    shards = make_shards(TEXTS, 300)
    path = shards.directory / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(DataError, match=f"{name} has .* bytes but its manifest says"):
        TokenShards(shards.directory)
    path.write_bytes(whole + b"\0" * 8)
    with pytest.raises(DataError, match=f"{name} has .* bytes"):
        TokenShards(shards.directory)
    middle = len(whole) // 2 - len(whole) // 2 % 8 - 16
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    TokenShards(shards.directory)  # sizes agree
    with pytest.raises(DataError, match=f"{name} is corrupted"):
        TokenShards(shards.directory, verify=True)
    path.unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        TokenShards(shards.directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("shards"), "lacks or garbles a field"),
        (lambda m: m.update(dtype="int8"), "dtype is 'int8'"),
        (lambda m: m.update(format="other"), "format is 'other'"),
        (lambda m: m["shards"][0].update(tokens="many"), "lacks or garbles a field"),
        (lambda m: m["shards"][0].update(bytes=7), "does not agree with the manifest"),
    ],
)
def test_garbled_manifest(make_shards, change, message: str) -> None:
    shards = make_shards(TEXTS)
    path = shards.directory / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message):
        TokenShards(shards.directory)
    path.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        TokenShards(shards.directory)
    path.unlink()
    with pytest.raises(DataError, match="holds no token shards"):
        TokenShards(shards.directory)


def test_with_the_real_tokenizer(tmp_path: Path) -> None:
    from etymon.text import Tokenizer

    texts = ["hello world, hello etymon", "你好，世界！", "literal <|endoftext|> in a text"]
    tokenizer = Tokenizer.train(texts * 4, vocab_size=300)
    shards = write_shards([Document(str(i), t, "s") for i, t in enumerate(texts)], tokenizer, tmp_path / "s")
    for i, text in enumerate(texts):
        ids = shards.document(i).tolist()
        assert ids[-1] == tokenizer.eos_id
        assert tokenizer.eos_id not in ids[:-1]
        assert tokenizer.decode(ids[:-1], skip_special=False) == text
    TokenShards(tmp_path / "s", tokenizer=tokenizer, verify=True)
