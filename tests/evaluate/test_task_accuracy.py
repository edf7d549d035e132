from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import random_model

from etymon.data import Conversation
from etymon.engine import Engine, EngineConfig
from etymon.errors import DataError, RequestError
from etymon.evaluate import Task, compare
from etymon.evaluate.tasks import is_exact
from etymon.nn import Model
from etymon.text import Renderer, Tokenizer

QUESTIONS = ("What is 3 + 4?", "三加四等于多少？", "Reverse fox.", "What is 3 + 5?", "狐狸有几个字？", "Reverse dog.")


def conversations(answers: dict[str, str] | None = None) -> list[Conversation]:
    made = []
    for number, question in enumerate(QUESTIONS):
        answer = (answers or {}).get(question, "never this")
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        split = "train" if number < 3 else "held_out"
        made.append(Conversation(f"c{number}", messages, ("sum", "sum", "word")[number % 3], split, answer))
    return made


def engine(model: Model, tokenizer: Tokenizer, slots: int = 4) -> Engine:
    return Engine(model, tokenizer, EngineConfig(slots=slots))


def test_right_answers_are_counted_by_kind_and_split(model: Model, tokenizer: Tokenizer, renderer: Renderer) -> None:
    first = Task(conversations(), max_tokens=8).run(engine(model, tokenizer), renderer, name="blank")
    assert first.accuracy().correct == 0
    said = {QUESTIONS[i]: first.verdicts[i].output for i in (0, 2, 4)}
    result = Task(conversations(said), max_tokens=8).run(engine(model, tokenizer), renderer, name="knows")
    assert [v.correct for v in result.verdicts] == [True, False, True, False, True, False]
    assert (result.accuracy("memorised").correct, result.accuracy("held_out").correct) == (2, 1)
    written = result.to_dict()
    cells = {(cell["kind"], cell["split"]): (cell["correct"], cell["count"]) for cell in written["kinds"]}
    assert cells == {
        ("sum", "memorised"): (1, 2),
        ("word", "memorised"): (1, 1),
        ("sum", "held_out"): (1, 2),
        ("word", "held_out"): (0, 1),
    }
    assert written["splits"][0]["interval"][0] < 2 / 3 < written["splits"][0]["interval"][1]
    assert written["overlap"] == 0


def test_verdicts_do_not_depend_on_what_else_runs(model: Model, tokenizer: Tokenizer, renderer: Renderer) -> None:
    task = Task(conversations(), max_tokens=12)
    alone = task.run(engine(model, tokenizer, slots=1), renderer)
    together = task.run(engine(model, tokenizer, slots=6), renderer)
    assert alone.verdicts == together.verdicts


def test_the_model_sees_the_ids_that_serving_would_show_it(
    model: Model, tokenizer: Tokenizer, renderer: Renderer
) -> None:
    result = Task(conversations(), max_tokens=4).run(engine(model, tokenizer), renderer)
    for item, verdict in zip(conversations(), result.verdicts, strict=True):
        expected = renderer.render(item.messages[:-1], add_generation_prompt=True).ids
        assert verdict.prompt_ids == list(expected)
        assert "never this" not in tokenizer.decode(verdict.prompt_ids)


def test_answers_are_given_the_room_of_the_expected_one(model: Model, tokenizer: Tokenizer, renderer: Renderer) -> None:
    result = Task(conversations()).run(engine(model, tokenizer), renderer)
    room = 2 * len(tokenizer.encode("never this")) + 16
    assert all(len(verdict.output_ids) <= room for verdict in result.verdicts)
    assert any(len(verdict.output_ids) == room and verdict.finish == "length" for verdict in result.verdicts)


def test_every_item_is_written(model: Model, tokenizer: Tokenizer, renderer: Renderer, tmp_path: Path) -> None:
    result = Task(conversations(), max_tokens=4).run(engine(model, tokenizer), renderer, name="pretrained")
    result.save(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "evaluate/items-pretrained.jsonl").open(encoding="utf-8")]
    assert [row["id"] for row in rows] == [f"c{i}" for i in range(6)]
    assert rows[1]["messages"] == [{"role": "user", "content": "三加四等于多少？"}]
    assert rows[1]["prompt_ids"] == result.verdicts[1].prompt_ids
    assert {"expected", "output", "output_ids", "finish", "correct"} <= rows[0].keys()
    assert json.loads((tmp_path / "evaluate/tasks-pretrained.json").read_text())["model"] == "pretrained"


def test_a_held_out_question_that_was_trained_on_is_counted(
    model: Model, tokenizer: Tokenizer, renderer: Renderer
) -> None:
    items = conversations()
    leaked = replace(items[0], id="leaked", split="held_out")
    result = Task([*items, leaked], max_tokens=2).run(engine(model, tokenizer), renderer)
    assert result.to_dict()["overlap"] == 1


def test_items_that_cannot_be_asked_are_errors(model: Model, tokenizer: Tokenizer, renderer: Renderer) -> None:
    item = conversations()[0]
    bad = {
        "nothing to ask": [],
        "has no answer": [replace(item, answer=None)],
        "asks nothing": [replace(item, messages=item.messages[1:])],
    }
    for message, items in bad.items():
        with pytest.raises(DataError, match=message):
            Task(items).run(engine(model, tokenizer), renderer)
    long = replace(item, messages=[{"role": "user", "content": "word " * 100}, item.messages[1]])
    with pytest.raises(RequestError, match="context"):
        Task([item, long]).run(engine(model, tokenizer), renderer)


@pytest.mark.parametrize(
    ("output", "expected", "right"),
    [
        ("7", "7", True),
        (" 7.\n", "7", True),
        ("７", "7", True),
        ('"fox"', "fox", True),
        ("「狐狸」。", "狐狸", True),
        ("a  b\nc", "a b c", True),
        ("`f(x)`", "f(x)", True),
        ("Return it.", "Return it", True),
        ("FOX", "fox", False),
        ("7 because", "7", False),
        ("77", "7", False),
        ("", "7", False),
        (".", "", False),
        ("3.5", "35", False),
        ("it's", "its", False),
    ],
)
def test_exact_match_is_what_it_says(output: str, expected: str, right: bool) -> None:
    assert is_exact(output, expected) is right


def test_models_are_compared_item_by_item(model: Model, tokenizer: Tokenizer, renderer: Renderer) -> None:
    blank = Task(conversations(), max_tokens=8).run(engine(model, tokenizer), renderer, name="before")
    flipped = [replace(v, correct=i in (0, 1, 3)) for i, v in enumerate(blank.verdicts)]
    lost = [replace(v, correct=i == 5) for i, v in enumerate(blank.verdicts)]
    found = compare(replace(blank, verdicts=lost), replace(blank, model="after", verdicts=flipped))
    assert found.unpaired == 0
    memorised, held_out = found.changes
    assert (memorised.split, memorised.only_after, memorised.only_before, memorised.count) == ("memorised", 2, 0, 3)
    assert (held_out.only_after, held_out.only_before, held_out.change) == (1, 1, 0.0)
    assert held_out.p_value == 1.0
    assert memorised.p_value == pytest.approx(0.5)
    assert memorised.interval[0] <= memorised.change <= memorised.interval[1]


def test_items_rendered_differently_are_not_paired(model: Model, tokenizer: Tokenizer, renderer: Renderer) -> None:
    before = Task(conversations(), max_tokens=2).run(engine(model, tokenizer), renderer, name="before")
    template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    after = Task(conversations(), max_tokens=2).run(engine(model, tokenizer), Renderer(tokenizer, template))
    found = compare(before, after)
    assert (found.changes, found.unpaired) == ([], 12)


def test_another_model_answers_otherwise(model: Model, tokenizer: Tokenizer, renderer: Renderer) -> None:
    task = Task(conversations(), max_tokens=8)
    outputs = [
        [v.output_ids for v in task.run(engine(m, tokenizer), renderer).verdicts]
        for m in (model, random_model(tokenizer.vocab_size, seed=9))
    ]
    assert outputs[0] != outputs[1]
