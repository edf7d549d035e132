"""What is written from the tree: the page of the documentation, its picture, and the page to look around in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from etymon.errors import ConfigError
from etymon.families import families
from etymon.families.origin import Paper, Recorded, Running
from etymon.lineage import tree
from etymon.lineage.page import page
from etymon.lineage.picture import picture
from etymon.lineage.table import filled, tables

ROOT = Path(__file__).parents[2]


def test_the_documentation_is_as_it_would_be_written_now() -> None:
    committed = ROOT / "docs" / "lineage.md"
    assert committed.read_text(encoding="utf-8") == filled(tree(), committed), "run `make docs`"
    assert (ROOT / "docs/images/lineage.svg").read_text(encoding="utf-8") == picture(tree()), "run `make docs`"


def test_tables_name_every_node_and_every_file() -> None:
    text = "\n".join(tables(tree()))
    for node in tree().nodes.values():
        assert f"[{node.title}](" in text, node.name
        if node.file is not None:
            assert (ROOT / "src/etymon/families" / f"{node.file}.py").exists()
    count, verified, golden, none = map(int, re.search(r"(\d+) families: (\d+) .*?; (\d+) .*?; (\d+) ", text).groups())
    assert count == len(families()) + 1 == verified + golden + none, "the n-gram model is no Family"


def test_tables_go_between_the_marks(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- begin: etymon lineage --markdown -->\nold\n<!-- end -->\nafter\n")
    text = filled(tree(), path)
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n") and "\nold\n" not in text
    path.write_text("no marks\n")
    with pytest.raises(ConfigError, match="the tables go between"):
        filled(tree(), path)


def test_a_status_is_what_the_tests_do() -> None:
    """A family that claims a running reference has a row among the tests that run one; likewise recorded outputs."""
    tests = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
    parity = "\n".join(text for path, text in tests.items() if path.parent.name == "parity")
    for family in families().values():
        published = re.escape(re.sub(r"For[A-Z].*|LMHead.*", "", family.format.architecture) or family.name)
        ours = re.sub(r"[-_]", "[-_ ]?", re.escape(family.name).replace("\\-", "-"))
        stems = "|".join({re.escape(size.split("-")[0]) for size in family.sizes} | {ours})
        names = re.compile(rf"\b{published}|(?<![a-z])({stems})(?![a-z])", re.IGNORECASE)
        match family.origin.reference:
            case Running():
                assert re.search(names, parity), f"{family.name} says it is checked against a running reference"
            case Recorded():
                goldens = "\n".join(text for text in tests.values() if "goldens" in text)
                assert re.search(names, goldens), f"{family.name} says it is checked against recorded outputs"
            case Paper():
                assert family.sizes and family.origin.counts.keys() == family.sizes.keys(), f"{family.name}: no counts"


def test_the_page_needs_nothing_but_itself() -> None:
    text = page(tree())
    assert not re.search(r'(src|href)="?https?:|url\(|@import|fetch\(', text), "nothing is loaded from elsewhere"
    assert "default-src 'none'" in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["nodes"].keys() == tree().nodes.keys()
    llama = data["nodes"]["llama"]
    assert ["norm", "LayerNorm", "RMSNorm"] in llama["changes"] and llama["compared"] == ["gpt3-6.7b", "llama-7b"]
    assert all(f'data-name="{name}"' in text for name in tree().nodes)
    assert "/*PALETTE*/" not in text and "<!--SVG-->" not in text and "/*DATA*/" not in text
