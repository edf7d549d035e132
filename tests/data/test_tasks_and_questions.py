from __future__ import annotations

import datetime
import re
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from etymon.data import (
    BuiltinConversations,
    Conversation,
    Difficulty,
    Problem,
    builtin,
    builtin_conversations,
    functions,
    problems,
    read_conversations,
    sample,
    write_conversations,
)
from etymon.data.questions import summary, usage
from etymon.data.tasks import KINDS, WEEKDAYS, WEEKDAYS_ZH


@pytest.fixture(scope="module")
def made() -> list[Conversation]:
    return builtin_conversations(BuiltinConversations(tasks=6000))


def dates(question: str) -> list[datetime.date]:
    return [datetime.date(*map(int, m)) for m in re.findall(r"(\d{4})[-年](\d{1,2})[-月](\d{1,2})", question)]


def without_dates(question: str) -> str:
    return re.sub(r"\d{4}[-年]\d{1,2}[-月]\d{1,2}日?", "", question)


def solve(problem: Problem) -> str:
    """Answer from the question's text alone, by another way than the one that made it."""
    question = problem.question
    numbers = [int(n) for n in re.findall(r"\d+", without_dates(question))]
    # a word of the task stands where the English forms have no word of their own
    words = re.findall(r"[a-z]+", question)
    if problem.kind == "add":
        return str(sum(numbers))
    if problem.kind == "subtract":
        return str(abs(numbers[0] - numbers[1]))
    if problem.kind == "multiply":
        return str(numbers[0] * numbers[1])
    if problem.kind == "compare":
        return str(max(numbers))
    if problem.kind == "weekday":
        day = dates(question)[0].isoweekday() - 1
        return WEEKDAYS[day] if problem.language == "en" else WEEKDAYS_ZH[day]
    if problem.kind == "days_between":
        first, last = dates(question)
        return f"{(last - first).days}" + (" 天" if problem.language == "zh" else "")
    if problem.kind == "add_days":
        date = dates(question)[0] + datetime.timedelta(numbers[0])
        return str(date) if problem.language == "en" else f"{date.year}年{date.month}月{date.day}日"
    assert problem.language == "zh"  # only there is the word the only Latin one
    word = max(words, key=len)
    letter = min(words, key=len)
    return {
        "reverse": lambda: "".join(reversed(word)),
        "upper": lambda: word.upper(),
        "length": lambda: str(len(word)),
        "letter": lambda: word[numbers[0] - 1],
        "repeat": lambda: " ".join(word for _ in range(numbers[0])),
        "count": lambda: str(len(word) - len(word.replace(letter, ""))),
    }[problem.kind]()


def test_answers_are_right() -> None:
    checked = Counter()
    for problem in problems(6000, seed=3):
        if problem.language == "zh" or problem.kind not in ("reverse", "upper", "length", "letter", "repeat", "count"):
            assert solve(problem) == problem.answer, problem
            checked[problem.kind] += 1
    assert set(checked) == set(KINDS)
    assert all(n > 50 for n in checked.values())


def test_english_and_chinese_forms_agree() -> None:
    """The same draw in both languages is the same problem, so what is right in Chinese is right in English."""
    import random

    from etymon.data.tasks import make_problem

    for kind in ("reverse", "upper", "length", "letter", "repeat", "count"):
        for seed in range(30):
            pair = [make_problem(kind, random.Random(seed), Difficulty(), language) for language in ("en", "zh")]
            assert pair[0].answer == pair[1].answer
            assert pair[0].split == pair[1].split
            assert pair[0].question.isascii()
            assert not pair[1].question.isascii()


def test_same_seed_same_problems_and_no_question_twice() -> None:
    first = list(problems(3000, seed=5))
    assert first == list(problems(3000, seed=5))
    assert first != list(problems(3000, seed=6))
    assert len({p.question for p in first}) == len(first) == 3000


def test_held_out_operands_are_never_trained_on() -> None:
    found = list(problems(30_000, seed=0)) + list(problems(10_000, seed=1))
    sides: dict[object, set[str]] = {}
    for p in found:
        if p.kind in ("add", "multiply", "subtract", "compare"):
            key: object = (p.kind, frozenset(re.findall(r"\d+", p.question)))
        elif dates(p.question):
            key = dates(p.question)[0]
        elif p.language == "zh":
            word = max(re.findall(r"[a-z]+", p.question), key=len)
            key = min(word, word[::-1])
        else:
            continue
        sides.setdefault(key, set()).add(p.split)
    assert all(len(side) == 1 for side in sides.values())
    share = sum(side == {"held_out"} for side in sides.values()) / len(sides)
    assert 0.07 < share < 0.13


def test_worked_tasks_of_the_corpus_hold_no_held_out_question(made: list[Conversation]) -> None:
    lines = {line for d in builtin.documents(("tasks",)) for line in d.text.split("\n")}
    assert len(lines) > 5000
    of_corpus = [p for p in problems(20_000, seed=1) if f"{p.question} {p.answer}" in lines]
    assert len(of_corpus) > 5000
    assert {p.split for p in of_corpus} == {"train"}
    held_out = [c for c in made if c.split == "held_out" and c.kind in KINDS]
    assert len(held_out) > 300
    assert not any(f"{c.messages[0]['content']} {c.answer}" in lines for c in held_out)


def test_difficulty_is_a_setting() -> None:
    hard = Difficulty(digits=5, factor_digits=3, letters=(8, 9), years=(1900, 1901), days=300)
    found = list(problems(2000, seed=0, difficulty=hard))
    assert max(int(n) for p in found if p.kind == "add" for n in re.findall(r"\d+", p.question)) > 9999
    assert {len(p.answer) for p in found if p.kind == "reverse"} == {8, 9}
    assert all(d.year in (1900, 1901, 1902) for p in found for d in dates(p.question))
    easy = list(problems(2000, difficulty=Difficulty(digits=1), kinds=("add",)))
    assert len(easy) <= 600  # a hundred pairs in six forms: exhausted, not endless
    with pytest.raises(ValidationError, match="letters must be two lengths"):
        Difficulty(letters=(5, 3))
    with pytest.raises(ValidationError, match="years must be"):
        Difficulty(years=(2025, 2024))


def test_held_out_functions_are_never_asked_in_training(made: list[Conversation]) -> None:
    held_out = {f.path for f in functions() if f.split == "held_out"}
    asked = {"train": set(), "held_out": set()}
    for c in made:
        if c.kind in ("summary", "signature", "usage", "module", "read_name", "read_parameter"):
            asked[c.split].add(c.id.split("/")[-1])
    assert len(asked["held_out"]) >= 20
    assert asked["held_out"] <= held_out
    assert not asked["train"] & held_out
    train = {c.messages[0]["content"] for c in made if c.split == "train"}
    questions = [c.messages[0]["content"] for c in made if c.split == "held_out"]
    assert len(set(questions)) == len(questions)
    assert not train & set(questions)


def test_questions_are_in_both_languages_and_answers_in_the_questions(made: list[Conversation]) -> None:
    found = {c.id: c for c in made}
    assert found["builtin:signature/en/0/textwrap.dedent"].answer == "textwrap.dedent(text)"
    assert found["builtin:signature/zh/0/textwrap.dedent"].answer == "它的签名是 textwrap.dedent(text)"
    assert found["builtin:module/zh/0/textwrap.dedent"].answer == "textwrap"
    assert found["builtin:read_parameter/en/0/textwrap.dedent"].answer == "text"
    assert found["builtin:usage/en/0/textwrap.dedent"].answer == "result = textwrap.dedent(text)"
    assert "leading whitespace" in found["builtin:summary/zh/0/textwrap.dedent"].answer
    by_language = Counter(c.id.split("/")[1] for c in made if c.kind == "summary")
    assert by_language["en"] == by_language["zh"] > 500
    assert all(c.messages[-1] == {"role": "assistant", "content": c.answer} for c in made if c.answer is not None)
    only_chinese = builtin_conversations(BuiltinConversations(tasks=60, functions=20, languages=("zh",)))
    assert only_chinese
    assert not any(c.messages[0]["content"].isascii() for c in only_chinese)
    assert not builtin_conversations(BuiltinConversations(tasks=0, functions=0, languages=("en",)))[0].answer


def test_lines_of_usage_are_code(made: list[Conversation]) -> None:
    for c in made:
        if c.kind == "usage":
            compile(c.answer.removeprefix("例如："), c.id, "exec")


def test_summary_is_the_first_sentence() -> None:
    assert summary("Return x. And more.\n\nElse.") == "Return x."
    assert summary("Join two\nlines here") == "Join two lines here"
    assert summary("f(x) -> y\n\nWhat it does.") == "What it does."
    assert summary("word " * 60) is None
    doc = "Short.\n\n    >>> add_up(1, 2)\n    3\n"
    assert usage(builtin.Function("m", "add_up", "a, b", doc)) == "add_up(1, 2)"


def test_sample_balances_kinds_and_is_the_same_again(made: list[Conversation]) -> None:
    for split in ("train", "held_out"):
        chosen = sample(made, split, 7, seed=1)
        assert {c.split for c in chosen} == {split}
        assert max(Counter(c.kind for c in chosen).values()) == 7
        assert {c.kind for c in chosen} >= {"add", "summary", "weekday", "read_name"}
        assert chosen == sample(reversed(made), split, 7, seed=1)
        assert chosen != sample(made, split, 7, seed=2)


def test_written_and_read_again(tmp_path: Path, made: list[Conversation]) -> None:
    assert write_conversations(made[:500], tmp_path / "c.jsonl") == 500
    assert list(read_conversations([tmp_path / "c.jsonl"])) == made[:500]
