from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from etymon.data import BuiltinSource, DocumentsConfig, FilesSource

GUIDE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_python_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    exec("\n".join(re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)), {"__name__": "guide"})
    promised = re.findall(r"^# (\{.*\})$", GUIDE, flags=re.MULTILINE)
    assert promised
    assert promised[0] in capsys.readouterr().out


def test_the_recipe_of_the_guide_is_valid() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.DOTALL)
    config = DocumentsConfig.model_validate(yaml.safe_load(block)["data"])
    assert [type(source) for source in config.sources] == [FilesSource, FilesSource, BuiltinSource]
