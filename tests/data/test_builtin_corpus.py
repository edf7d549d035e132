from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from etymon.data import Document, builtin, functions
from etymon.data.builtin import module_split


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return list(builtin.documents())


def test_corpus_is_large_varied_and_the_same_again(corpus: list[Document]) -> None:
    by_part = {part: [d for d in corpus if d.id.startswith(f"builtin:{part}/")] for part in builtin.PARTS}
    assert len(by_part["source"]) > 500
    assert len(by_part["pages"]) > 1000
    assert len(by_part["topics"]) > 50
    assert len(by_part["tasks"]) > 300
    assert sum(len(d.text) for d in corpus) > 5_000_000
    assert len({d.id for d in corpus}) == len(corpus)
    assert list(builtin.documents(("tasks", "topics"))) == [*by_part["topics"], *by_part["tasks"]]
    assert not any(word in d.id for d in corpus for word in ("site-packages", "lib2to3", "/test.", ".tests."))


def test_source_chunks_are_the_source(corpus: list[Document]) -> None:
    import textwrap

    chunks = [d for d in corpus if d.id.startswith("builtin:source/textwrap#")]
    assert len(chunks) > 1
    assert "".join(d.text for d in chunks) == Path(textwrap.__file__).read_text(encoding="utf-8")
    assert all(d.text[0] not in " \t" for d in chunks)  # cut between top-level definitions


def test_pages_are_signature_and_docstring(corpus: list[Document]) -> None:
    pages = {d.id: d.text for d in corpus}
    assert pages["builtin:pages/textwrap.dedent"].startswith("textwrap.dedent(text)\n\nRemove any common leading")
    assert pages["builtin:pages/len"].startswith("len(obj)\n\nReturn the number of items")
    assert "TextWrapper.wrap(text" in pages["builtin:pages/textwrap.TextWrapper"].replace("self, ", "")


def test_held_out_modules_are_in_no_training_document(corpus: list[Document]) -> None:
    held_out = {f.path for f in functions() if f.split == "held_out"}
    assert len(held_out) > 10
    assert {f.path for f in functions() if f.split == "train"} > {"textwrap.dedent", "os.path.join", "len"}
    for document in corpus:
        part, _, name = document.id.removeprefix("builtin:").partition("/")
        if part == "source":
            assert document.split == module_split(name.partition("#")[0])
        if part == "pages" and name in held_out:
            assert document.split == "held_out"
    share = sum(len(d.text) for d in corpus if d.split == "held_out") / sum(len(d.text) for d in corpus)
    assert 0.01 < share < 0.15
    assert module_split("posixpath") == module_split("genericpath") == module_split("ntpath") == module_split("os.path")


def test_what_a_function_takes() -> None:
    found = {f.path: f for f in functions()}
    glob = found["glob.glob"]
    assert glob.positional == ["pathname"]
    assert glob.required == ["pathname"]
    assert glob.signature.startswith("glob.glob(pathname, *, root_dir=None")
    assert found["math.atan2"].required == ["y", "x"]
    assert builtin.Function("m", "f", "a, b=1, *, c, d=2, **k", "").required == ["a", "c=c"]


def test_nothing_of_the_library_is_imported() -> None:
    code = (
        "import sys, itertools; from etymon.data import builtin; before = set(sys.modules); "
        "names = [d.id for d in itertools.islice(builtin.documents(), 700)]; new = set(sys.modules) - before; "
        "assert any('antigravity' in name for name in names); "
        "assert not {'antigravity', 'asyncio', 'pydoc_data.topics'} & new, new; "
        "assert len(new) < 5, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
