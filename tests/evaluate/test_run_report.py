from __future__ import annotations

import html.parser
import json
import re
import shutil
import warnings
from collections import Counter
from pathlib import Path

import pytest
from run_directory import make_run, write

from etymon.errors import DataError
from etymon.evaluate import write_report
from etymon.evaluate.record import read_record


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "demo")


def report(run: Path) -> tuple[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of characters that its font lacks
        pages = write_report(run)
    return pages[0].read_text(encoding="utf-8"), pages[1].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The reports of a whole run."""
    return report(make_run(tmp_path_factory.mktemp("whole") / "demo"))


VOID = {"meta", "hr", "br", "link", "img"}


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects ids, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.words: list[str] = []
        self.drawn: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attributes:
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("href", "src", "xlink:href") and value:
                self.links.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            (self.drawn if "svg" in self.open else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def tables(markdown: str) -> list[list[str]]:
    found, rows = [], []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            found.append(rows)
            rows = []
    return found


def test_the_headline_says_what_the_files_say(run: Path) -> None:
    page, markdown = report(run)
    text = Page(page).text
    assert "6.23 M parameters" in text
    assert "4.090 1.071" in text
    held_out = json.loads((run / "evaluate/tasks-fine-tuned.json").read_text())["splits"][1]
    assert held_out["split"] == "held_out"
    assert f"{100 * held_out['accuracy']:.0f} %" in text
    assert f"{held_out['correct']} of {held_out['count']} right" in text
    assert "3.8× smaller" in text
    assert "+0.002 bits per byte" in text
    assert "answers" in text
    assert "Missing" not in text
    assert "missing" not in text
    assert "Missing" not in markdown
    assert "| Held-out bits per byte | 4.090 | **1.071** |" in markdown


def test_every_part_is_there(pages: tuple[str, str]) -> None:
    page, markdown = pages
    text = Page(page).text
    for said in (
        "Pretraining", "Fine-tuning", "文档/笔记", "learning rate", "AMD EPYC 7763", "170 GFLOP/s", "98.7 %",
        "0, 3, 0 of 20,000", "undecodable", "textwrap.dedent 是做什么的？", "kind: muon", "签名", "What is 3 + 4?",
        "99.54 %", "p, McNemar", "2.13.0+cpu",
    ):  # fmt: skip
        assert said in text + page, said
        assert said in markdown or said in ("learning rate",), said
    assert page.count("<svg") == 2 + 2 + 2 * 4


def test_the_page_needs_nothing_but_itself(pages: tuple[str, str]) -> None:
    page, _ = pages
    parsed = Page(page)
    assert parsed.tags["script"] == parsed.tags["link"] == parsed.tags["img"] == 0
    assert all(link.startswith("#") for link in parsed.links)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_the_page_is_well_formed_and_its_ids_are_unique(pages: tuple[str, str]) -> None:
    parsed = Page(pages[0])
    assert [name for name, count in parsed.ids.items() if count > 1] == []
    assert {link[1:] for link in parsed.links} <= set(parsed.ids)


def test_what_a_model_wrote_is_text(pages: tuple[str, str]) -> None:
    page, markdown = pages
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "</div>" in Page(page).text  # a sample that tries to close what it is in
    assert "<script>" not in markdown


def test_figures_take_their_colours_from_the_page_and_hold_no_chinese(pages: tuple[str, str]) -> None:
    page, _ = pages
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    for figure in figures:
        colours = re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", figure)
        assert set(colours) <= {"#000000"}, colours
        assert "var(--" in figure
    assert "".join(Page(page).drawn).isascii()
    assert "kind 9" in "".join(Page(page).drawn)


def test_markdown_tables_have_the_columns_of_their_heads(pages: tuple[str, str]) -> None:
    _, markdown = pages
    found = tables(markdown.split("## Recipe")[0])
    assert len(found) >= 9
    for rows in found:
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert len(widths) == 1, rows
        assert re.fullmatch(r"\|(:?-+:?\|)+", rows[1]), rows


def test_the_same_run_gives_the_same_report(run: Path) -> None:
    assert report(run) == report(run)


PARTS = [
    "recipe.yaml", "environment.json", "data", "pretrain", "sft", "evaluate/bits_per_byte.json", "evaluate/tasks-*",
    "evaluate/items-*", "evaluate/samples-*", "evaluate/int8.json", "evaluate/service.json", "evaluate/model.json",
    "evaluate/timings.json", "evaluate",
]  # fmt: skip
SAID = {
    "recipe.yaml": "The recipe was not stored.",
    "data": "There are no counts of the documents.",
    "evaluate/bits_per_byte.json": "Held-out documents have not been scored.",
    "evaluate/tasks-*": "No questions have been asked.",
    "evaluate/samples-*": "No samples have been written.",
    "evaluate/int8.json": "The model has not been quantised.",
    "evaluate/service.json": "The service has not been checked.",
}


def remove(run: Path, part: str) -> None:
    for path in run.glob(part):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_said_to_be_missing(run: Path, part: str) -> None:
    remove(run, part)
    page, markdown = report(run)
    if part in SAID:
        assert SAID[part] in Page(page).text
        assert SAID[part] in markdown


def test_a_run_that_stopped_after_pretraining_has_a_report(run: Path) -> None:
    for part in ("sft", "evaluate", "pretrain/COMPLETE"):
        remove(run, part)
    page, _ = report(run)
    text = Page(page).text
    assert "Pretraining did not reach its end" in text
    assert "8.19 M tokens" in text
    assert text.count("Missing.") == 5
    assert page.count("<svg") == 1 + 4


def test_a_recipe_alone_is_a_run_that_has_not_begun(tmp_path: Path) -> None:
    write(tmp_path / "recipe.yaml", "name: new\n")
    text = Page(report(tmp_path)[0]).text
    assert "has not been trained yet" in text


@pytest.mark.parametrize("content", ["{", "[1, 2]", "\x00", '{"models": 3}'])
def test_a_broken_file_is_named_and_hides_nothing_else(run: Path, content: str) -> None:
    write(run / "evaluate/bits_per_byte.json", content)
    text = Page(report(run)[0]).text
    assert "could not be read and is left out: evaluate/bits_per_byte.json" in text
    assert "3.8× smaller" in text


def test_a_file_that_lacks_what_it_should_hold_is_named(run: Path) -> None:
    write(run / "evaluate/bits_per_byte.json", json.dumps({"models": [{"model": "pretrained"}]}))
    write(run / "evaluate/samples-pretrained.json", json.dumps({"model": "pretrained", "samples": [{"prompt": 3}]}))
    page, _ = report(run)
    text = Page(page).text
    assert "bits_per_byte.json" in text
    assert "samples-pretrained.json" in text
    assert "3.8× smaller" in text


def test_a_torn_last_line_of_the_metrics_is_not_an_error(run: Path) -> None:
    with (run / "pretrain/metrics.jsonl").open("a") as file:
        file.write('{"step": 1010, "lo')
    record = read_record(run)
    assert record.broken == []
    assert record.stages[0].rows[-1]["step"] == 1000
    with (run / "pretrain/metrics.jsonl").open("a") as file:
        file.write('\n{"step": 1020, "loss": NaN}\n')
    record = read_record(run)
    assert len(record.broken) == 1
    assert "line 102" in record.broken[0]
    assert record.stages[0].column("loss")[0][-1] == 1000


def test_contamination_and_a_failed_service_are_told_first(run: Path) -> None:
    path = run / "evaluate/tasks-fine-tuned.json"
    write(path, json.loads(path.read_text()) | {"overlap": 4})
    write(run / "evaluate/service.json", {"ok": False, "error": "connection refused"})
    text = Page(report(run)[0]).text
    assert "4 held-out questions of fine-tuned have the prompt of a memorised one" in text
    assert "connection refused" in text
    assert text.index("connection refused") < text.index("What it learned")


def test_a_directory_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run directory"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="no such run directory"):
        write_report(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_long_run_stays_a_small_page(tmp_path: Path) -> None:
    rows = (json.dumps({"step": i, "loss": 3 + (i % 7) / 10, "lr": 1e-3}) for i in range(1, 60_001))
    write(tmp_path / "pretrain/metrics.jsonl", "\n".join(rows) + "\n")
    page, _ = report(tmp_path)
    assert len(page) < 120_000


def test_control_characters_and_half_characters_do_no_harm(run: Path) -> None:
    path = run / "evaluate/samples-pretrained.json"
    path.write_text(path.read_text(encoding="utf-8").replace("</div>", "\\u0000\\u001b[31m\\ud83d"), encoding="utf-8")
    page, _ = report(run)
    assert "␀␛[31m?" in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page)


def test_a_training_set_that_was_not_finished_is_told(run: Path) -> None:
    with (run / "sft/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 310, "epoch": 0.25}) + "\n")
    page, markdown = report(run)
    assert "Fine-tuning ended after 25 % of the training set" in Page(page).text
    assert "Fine-tuning ended after 25 % of the training set" in markdown
