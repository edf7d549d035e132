from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from etymon.data import DocumentsConfig, DocumentSet, FilesSource, prepare_documents
from etymon.data.prepare import SeenHashes
from etymon.errors import DataError


def write_rows(path: Path, texts: list[str]) -> FilesSource:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return FilesSource(path=str(path), name=path.stem)


def prepare(tmp_path: Path, *sources: FilesSource, name: str = "set", **settings: object) -> DocumentSet:
    return prepare_documents(DocumentsConfig.model_validate({"sources": sources, **settings}), tmp_path / name)


def test_counts_dedup_and_manifest(tmp_path: Path) -> None:
    long = "a document of some length, number "
    a = write_rows(tmp_path / "a.jsonl", [long + "1", long + "2  \r\n", "", "short", long + "1", "   \n"])
    b = write_rows(tmp_path / "b.jsonl", ["\ufeff" + long + "2", "这是一篇足够长的中文文档，标点是全角的。"])
    found = prepare(tmp_path, a, b, held_out=0.0)
    assert [d.text for d in found.train()] == [long + "1", long + "2", "这是一篇足够长的中文文档，标点是全角的。"]
    assert found.manifest["sources"] == {
        "a": {"files": 1, "read": 6, "kept": 2, "empty": 2, "too_short": 1, "duplicate": 1},
        "b": {"files": 1, "read": 2, "kept": 1, "duplicate": 1},
    }
    assert found.manifest["examples"]["too_short"] == [f"{tmp_path}/a.jsonl:4"]
    train = found.manifest["splits"]["train"]
    content = (found.directory / "train.jsonl").read_bytes()
    assert train["sha256"] == hashlib.sha256(content).hexdigest()
    assert train["documents"] == found.count("train") == 3
    assert train["bytes"] == found.n_bytes("train") == sum(len(d.text.encode()) for d in found.train())
    assert found.manifest["settings"]["min_chars"] == 16
    assert [d.source for d in DocumentSet(found.directory).train()] == ["a", "a", "b"]
    again = prepare(tmp_path, a, b, name="again", held_out=0.0)
    assert again.manifest == found.manifest


def test_split_is_stable_when_documents_are_added(tmp_path: Path) -> None:
    texts = [f"document number {i} of the corpus" for i in range(2000)]
    before = prepare(tmp_path, write_rows(tmp_path / "a.jsonl", texts[:1000]), name="before", held_out=0.1)
    after = prepare(tmp_path, write_rows(tmp_path / "b.jsonl", texts[::-1]), name="after", held_out=0.1)
    train, held_out = ({d.text for d in split} for split in (before.train(), before.held_out()))
    assert train | held_out == set(texts[:1000])
    assert not train & held_out
    assert 60 < len(held_out) < 140
    assert held_out == {d.text for d in after.held_out()} & set(texts[:1000])


def test_a_small_corpus_still_has_something_held_out(tmp_path: Path) -> None:
    texts = [f"document number {i} of the corpus" for i in range(4)]
    found = prepare(tmp_path, write_rows(tmp_path / "a.jsonl", texts), held_out=1e-6)
    assert (found.count("train"), found.count("held_out")) == (3, 1)
    assert {d.text for d in found.train()} | {d.text for d in found.held_out()} == set(texts)
    assert sorted(p.name for p in found.directory.iterdir()) == ["held_out.jsonl", "manifest.json", "train.jsonl"]
    with pytest.raises(DataError, match="single document"):
        prepare(tmp_path, write_rows(tmp_path / "b.jsonl", texts[:1]), name="one")
    assert prepare(tmp_path, write_rows(tmp_path / "b.jsonl", texts[:1]), name="one", held_out=0).count("train") == 1


def test_empty_corpus_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "empty.txt").write_text(" \n ")
    with pytest.raises(DataError, match=r"empty: 1 documents were read.*1 undecodable, 1 empty.*bad\.txt"):
        prepare(tmp_path, FilesSource(path=str(tmp_path)), name="out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_failing_leaves_the_old_set_whole(tmp_path: Path) -> None:
    good = write_rows(tmp_path / "a.jsonl", [f"document number {i} of the corpus" for i in range(50)])
    old = prepare(tmp_path, good)
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"b\.jsonl:1 is not JSON"):
        prepare(tmp_path, good, FilesSource(path=str(tmp_path / "b.jsonl")))
    assert DocumentSet(tmp_path / "set").manifest == old.manifest


def test_opening_what_is_not_a_document_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        DocumentSet(tmp_path)
    for content in ("{", "[]", '{"format": "other"}'):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(DataError, match="not a manifest of documents"):
            DocumentSet(tmp_path)


def test_seen_hashes_against_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SeenHashes, "RUN", 64)  # so that runs rest on disk
    rng = np.random.default_rng(0)
    seen, reference = SeenHashes(tmp_path), set()
    for _ in range(60):
        batch = [int(i).to_bytes(16, "little") for i in rng.integers(0, 1500, rng.integers(1, 60))]  # many end in NUL
        expected = []
        for value in batch:
            expected.append(value not in reference)
            reference.add(value)
        assert seen.add(batch) == expected
    assert sum(map(len, seen._runs)) == len(reference)
    assert sum(len(run) >= 64 for run in seen._runs) > 3
    assert not list(tmp_path.iterdir())
