from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "evaluate.md"


def test_the_guide_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 6
    exec(compile("\n".join(blocks), str(GUIDE), "exec"), {"__name__": "guide"})
    assert "'correct': 0, 'count': 1" in capsys.readouterr().out
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "狐狸" not in page
    assert "三加五等于多少？" in page


def test_the_guide_names_the_files_that_are_read() -> None:
    source = (GUIDE.parents[1] / "src/etymon/evaluate/record.py").read_text(encoding="utf-8")
    guide = GUIDE.read_text(encoding="utf-8")
    for name in re.findall(r'"([\w-]+\.(?:json|jsonl|yaml))"', source):
        assert name in guide, name
