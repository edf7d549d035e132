"""The commands on the pages of docs/ run: every block marked `sh test`, in order, page by page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh test\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    found = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    return sorted(page for page in found if BLOCK.search(page.read_text(encoding="utf-8")))


def test_there_are_pages():
    assert {"quickstart.md", "recipes.md"} <= {page.name for page in pages()}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_commands_of_a_page(page: Path, tmp_path: Path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    script = "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr
