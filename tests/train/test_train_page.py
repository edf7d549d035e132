"""The Python of the pages about training runs: the blocks of a page, in order, as one script."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("page", "run"), [("train", "run"), ("objectives", "classifier"), ("optimizers", "tuned")])
def test_the_page_runs(page: str, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = DOCS / f"{page}.md"
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    exec(compile("\n".join(blocks), str(path), "exec"), {"__name__": "page"})
    assert (tmp_path / run / "COMPLETE").exists()
