from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from etymon.data import Counts, FilesSource, read_documents
from etymon.errors import DataError


def texts(*sources: FilesSource | str | Path, counts: Counts | None = None) -> list[str]:
    return [document.text for document in read_documents(sources, counts)]


def test_folder_is_walked_in_order_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.md", "a/b.txt", ".git/config.txt", "picture.png", "a/data.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"text": name}) if name.endswith("jsonl") else name)
    counts = Counts()
    assert texts(tmp_path, counts=counts) == ["a/b.txt", "a/c.md", "a/data.jsonl", "b.txt"]
    assert counts.by_source[str(tmp_path)] == {"files": 4, "files_not_included": 1}
    assert counts.examples["files_not_included"] == [str(tmp_path / "picture.png")]


def test_include_patterns(tmp_path: Path) -> None:
    for name in ("a.py", "b.txt", "sub/c.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    assert texts(FilesSource(path=str(tmp_path), include=("*.py",))) == ["a.py", "sub/c.py"]
    assert texts(FilesSource(path=str(tmp_path), include=("sub/*.py",))) == ["sub/c.py"]
    with pytest.raises(DataError, match=r"none of which matches \*\.rs"):
        texts(FilesSource(path=str(tmp_path), include=("*.rs",)))


def test_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x/1.txt", "x/y/2.txt", "x/3.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert texts(f"{tmp_path}/x/*.txt") == ["x/1.txt"]
    assert texts(f"{tmp_path}/**/*.txt") == ["x/1.txt", "x/y/2.txt"]
    monkeypatch.chdir(tmp_path)
    assert texts("x/*.md") == ["x/3.md"]
    with pytest.raises(DataError, match="No file matches"):
        texts("x/*.rst")


def test_missing_path_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no file or folder absent/folder \(looked from .*\)"):
        texts("absent/folder")


def test_json_lines_plain_and_gzipped(tmp_path: Path) -> None:
    rows = [{"text": "你好，世界", "n": 1}, {"text": "second\nline"}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8-sig") as f:
        f.write(lines)
    (tmp_path / "c.json").write_text(json.dumps(rows), encoding="utf-8")
    with gzip.open(tmp_path / "d.txt.gz", "wt", encoding="utf-8") as f:
        f.write("gzipped 文本")
    for name in ("a.jsonl", "b.jsonl.gz", "c.json"):
        assert texts(tmp_path / name) == ["你好，世界", "second\nline"]
    assert texts(tmp_path / "d.txt.gz") == ["gzipped 文本"]
    ids = [document.id for document in read_documents([tmp_path / "a.jsonl"])]
    assert ids == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:3"]


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"body": [f"文档 {i}" for i in range(3000)], "other": list(range(3000))})
    parquet.write_table(table, path, row_group_size=500)
    assert texts(FilesSource(path=str(path), text="body")) == [f"文档 {i}" for i in range(3000)]
    with pytest.raises(DataError, match="no column 'text'; it has 'body', 'other'"):
        texts(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        texts(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'etymon\[parquet\]'"):
        texts(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', r"a\.jsonl:2 is not JSON"),
        ("[" * 100_000, r"a\.jsonl:2 is not JSON"),
        ('{"txt": "x"}', r"a\.jsonl:2 has no field 'text'; its fields are 'txt'. Did you mean 'txt'\?"),
        ('{"text": 5}', r"a\.jsonl:2: the field 'text' is a int"),
        ('["text"]', r"a\.jsonl:2 is a JSON list"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        texts(tmp_path / "a.jsonl")


def test_truncated_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt") as f:
        f.writelines(json.dumps({"text": str(i**7)}) + "\n" for i in range(1000))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a whole gzip file"):
        texts(path)
    path.write_bytes(b"plain")
    with pytest.raises(DataError, match="not a whole gzip file"):
        texts(path)


def test_undecodable_text_is_counted_replaced_or_refused(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("début".encode("latin-1"))
    counts = Counts()
    assert texts(FilesSource(path=str(tmp_path), name="mine"), counts=counts) == ["good"]
    assert counts.by_source["mine"]["undecodable"] == 1
    assert counts.examples["undecodable"] == [str(tmp_path / "latin.txt")]
    counts = Counts()
    assert texts(FilesSource(path=str(tmp_path), errors="replace"), counts=counts) == ["good", "d\ufffdbut"]
    assert counts.total("undecodable_replaced") == 1
    with pytest.raises(DataError, match=r"latin\.txt is not utf-8-sig text \(byte 1: .*gb18030"):
        texts(FilesSource(path=str(tmp_path), errors="error"))
    assert texts(FilesSource(path=str(tmp_path / "latin.txt"), encoding="latin-1")) == ["début"]


def test_place_of_a_bad_byte_far_into_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    good = "汉字" * 300_000  # characters lie across the borders of what is read at once
    path.write_bytes(good.encode() + b"\xff" + b"tail")
    with pytest.raises(DataError, match=f"byte {len(good.encode()):,}:"):
        texts(FilesSource(path=str(path), errors="error"))


def test_chinese_encodings(tmp_path: Path) -> None:
    for encoding in ("gb18030", "gbk", "big5", "utf-16"):
        path = tmp_path / f"{encoding}.txt"
        path.write_bytes("中文，全形標點！".encode("big5").decode("big5").encode(encoding, errors="ignore"))
        expected = path.read_bytes().decode(encoding)
        assert texts(FilesSource(path=str(path), encoding=encoding)) == [expected]
    with pytest.raises(ValidationError, match="unknown text encoding"):
        FilesSource(path="a", encoding="utf-9")
    with pytest.raises(ValidationError, match="unknown text encoding"):
        FilesSource(path="a", encoding="base64")


def test_undecodable_lines_and_half_surrogates(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "d\xe9but"}\n{"text": "half \\ud800"}\n{"text": "\\ud83d\\ude00"}\n')
    counts = Counts()
    assert texts(path, counts=counts) == ["one", "😀"]
    assert counts.examples["undecodable"] == [f"{path}:2", f"{path}:3"]
    replaced = texts(FilesSource(path=str(path), errors="replace"))
    assert replaced[1] == "d\ufffdbut"
    assert replaced[2].startswith("half \ufffd")
    with pytest.raises(DataError, match=r"a\.jsonl:2 is not UTF-8"):
        texts(FilesSource(path=str(path), errors="error"))


def test_long_text_is_cut_at_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    whole = "".join(f"Paragraph {i} 段落。\nSecond line.\n\n" for i in range(60_000))
    (tmp_path / "book.txt").write_text(whole, encoding="utf-8")
    pieces = list(read_documents([FilesSource(path=str(tmp_path / "book.txt"), max_chars=10_000)]))
    assert "".join(piece.text for piece in pieces) == whole
    assert all(len(piece.text) <= 10_000 for piece in pieces)
    assert all(piece.text.endswith("\n\n") for piece in pieces)
    assert pieces[0].id == str(tmp_path / "book.txt")
    assert pieces[7].id == f"{tmp_path}/book.txt#7"
    (tmp_path / "line.txt").write_text("x" * 25_000)
    assert [len(t) for t in texts(FilesSource(path=str(tmp_path / "line.txt"), max_chars=10_000))] == [
        10_000,
        10_000,
        5_000,
    ]
