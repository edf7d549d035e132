"""The page of models runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import etymon

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 6
    names: dict[str, object] = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    ids, model = names["ids"], names["model"]
    again, _ = etymon.load("my-model-own")
    assert callable(model)
    assert torch.equal(again(ids).logits, model(ids).logits)
