"""The report of a run: one page that says what was trained, on what, for how long, and how good it is.

It reads what the run directory holds and writes `report.html` (self-contained: no script, no network) and `report.md`.
What is missing is said to be missing; nothing is filled in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

import etymon
from etymon.evaluate import headline, sections
from etymon.evaluate.record import Record, read_record
from etymon.files import write_text


def write_report(run: str | Path) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into the run directory and return their paths.

    Raises DataError where `run` is not a run directory; a missing or broken part is reported in the report instead.
    """
    record = read_record(Path(run))
    view = _view(record)
    paths = record.path / "report.html", record.path / "report.md"
    for path in paths:
        page = templates(path.suffix == ".html").get_template(f"{path.name}.jinja").render(view)
        # JSON can spell half of a surrogate pair, which no file can hold.
        write_text(path, page.encode("utf-8", "replace").decode("utf-8"))
    return paths


def templates(escape: bool, *folders: Path) -> jinja2.Environment:
    """Return the templates of these folders and of this one, whose `page.css` is the style of every report."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"cell": _cell, "fence": _fence}
    return environment


def _cell(text: object) -> str:
    """Escape `text` for a cell of a Markdown table: whatever a model wrote stays one cell and is not markup."""
    escaped = str(text).replace("\\", "\\\\").replace("|", "\\|").replace("&", "&amp;").replace("<", "&lt;")
    for mark in "`*_[]":
        escaped = escaped.replace(mark, f"\\{mark}")
    return " ".join(escaped.split())


def _fence(text: str) -> str:
    """Put `text` into a Markdown code block that no backticks inside can close."""
    marks = "```"
    while marks in text:
        marks += "`"
    return f"{marks}\n{text.rstrip()}\n{marks}"


def _view(record: Record) -> dict[str, Any]:
    """Return everything that the templates show; a section that has nothing to show is None."""
    return {
        "name": record.path.resolve().name,
        "created": (record.environment or {}).get("created", "")[:16].replace("T", " "),
        "version": etymon.__version__,
        "summary": headline.summary(record),
        "notices": headline.notices(record),
        "cards": headline.cards(record),
        "loss": [sections.loss(stage) for stage in record.stages if stage.rows],
        "bits": sections.bits(record),
        "held_out": sections.held_out(record),
        "tasks": sections.tasks(record),
        "samples": sections.samples(record),
        "training": sections.training(record),
        "tokenizer": sections.tokenizer(record),
        "data": sections.data(record),
        "int8": sections.int8(record),
        "service": sections.service(record),
        "environment": sections.machine(record),
        "recipe": record.recipe,
    }
