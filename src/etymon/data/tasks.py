"""Questions with exactly one right answer, made from a seed: arithmetic, strings and dates, in English and Chinese.

A problem is its kind and its operands; which side of the split it is on is decided by the operands alone, so that
neither another phrasing nor another language of a held-out problem is ever trained on. Words and dates are held
out for all kinds at once, and `a + b` together with `b + a`.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from etymon.config import Config
from etymon.data.documents import Split, held_out

Language = Literal["en", "zh"]
HELD_OUT_OPERANDS = 0.1


class Difficulty(Config):
    """How large the operands are. The default is what a model of a few million parameters can begin to learn."""

    digits: int = Field(
        default=2, ge=1, le=12, description="Digits of the operands of sums, differences and comparisons"
    )
    factor_digits: int = Field(default=1, ge=1, le=12, description="Digits of the factors of products")
    letters: tuple[int, int] = Field(default=(3, 5), description="Shortest and longest word")
    years: tuple[int, int] = Field(default=(2024, 2025), description="First and last year of dates")
    days: int = Field(default=9, ge=1, le=10_000, description="Most days between two dates")

    @model_validator(mode="after")
    def _ordered(self) -> Difficulty:
        if not 2 <= self.letters[0] <= self.letters[1] <= 40:
            raise ValueError(f"letters must be two lengths with 2 <= shortest <= longest <= 40, not {self.letters}")
        if not 1 <= self.years[0] <= self.years[1] <= 9000:
            raise ValueError(f"years must be two years with 1 <= first <= last <= 9000, not {self.years}")
        return self


@dataclass(frozen=True)
class Problem:
    """One task in one phrasing: the question, its only right answer, and what it is about."""

    kind: str
    language: Language
    question: str
    answer: str
    split: Split


@dataclass(frozen=True)
class _Operands:
    """What a phrasing fills in, per language where it differs; `key` names the operands for the split."""

    key: str
    fields: dict[str, Any]
    answer: str
    zh_fields: dict[str, Any] | None = None
    zh_answer: str | None = None


FORMS: dict[str, dict[Language, tuple[str, ...]]] = {
    "add": {
        "en": (
            "What is {a} + {b}?",
            "{a} + {b} = ?",
            "Add {a} and {b}.",
        ),
        "zh": (
            "{a} 加 {b} 等于多少？",
            "{a} + {b} 等于几？",
            "计算：{a} + {b}",
        ),
    },
    "subtract": {
        "en": (
            "What is {a} - {b}?",
            "{a} - {b} = ?",
            "Subtract {b} from {a}.",
        ),
        "zh": (
            "{a} 减 {b} 等于多少？",
            "{a} - {b} 等于几？",
            "计算：{a} - {b}",
        ),
    },
    "multiply": {
        "en": (
            "What is {a} * {b}?",
            "{a} * {b} = ?",
            "Multiply {a} by {b}.",
        ),
        "zh": (
            "{a} 乘以 {b} 等于多少？",
            "{a} * {b} 等于几？",
            "计算：{a} * {b}",
        ),
    },
    "compare": {
        "en": (
            "Which is larger, {a} or {b}?",
            "Give the larger number: {a}, {b}",
            "{a} or {b}: which is greater?",
        ),
        "zh": (
            "{a} 和 {b} 哪个大？",
            "{a} 与 {b} 中较大的数是哪个？",
            "比较 {a} 和 {b}，哪个更大？",
        ),
    },
    "reverse": {
        "en": (
            "Reverse the word {word}.",
            "Write {word} backwards.",
            "What is {word} spelled backwards?",
        ),
        "zh": (
            "把 {word} 倒过来写。",
            "反转单词 {word}。",
            "{word} 反过来怎么写？",
        ),
    },
    "upper": {
        "en": (
            "Write {word} in upper case.",
            "Uppercase {word}.",
            "What is {word} in capital letters?",
        ),
        "zh": (
            "把 {word} 改成大写。",
            "用大写字母写 {word}。",
            "{word} 的大写是什么？",
        ),
    },
    "length": {
        "en": (
            "How many letters are in {word}?",
            "What is the length of {word}?",
            "Count the letters of {word}.",
        ),
        "zh": (
            "{word} 有几个字母？",
            "单词 {word} 的长度是多少？",
            "数一数 {word} 的字母个数。",
        ),
    },
    "letter": {
        "en": (
            "What is letter {n} of {word}?",
            "Give letter number {n} of the word {word}.",
            "{word}: which letter is at place {n}?",
        ),
        "zh": (
            "{word} 的第 {n} 个字母是什么？",
            "单词 {word} 里第 {n} 个字母是哪个？",
            "写出 {word} 的第 {n} 个字母。",
        ),
    },
    "repeat": {
        "en": (
            "Repeat {word} {n} times.",
            "Write {word} {n} times, with spaces.",
            "Say {word} {n} times.",
        ),
        "zh": (
            "把 {word} 重复 {n} 遍。",
            "将 {word} 写 {n} 次，用空格隔开。",
            "说 {n} 遍 {word}。",
        ),
    },
    "count": {
        "en": (
            "How many times is {letter} in {word}?",
            "Count the letter {letter} in {word}.",
            "In {word}, how often does {letter} occur?",
        ),
        "zh": (
            "{word} 里有几个 {letter}？",
            "数一数 {word} 中字母 {letter} 的个数。",
            "字母 {letter} 在 {word} 中出现几次？",
        ),
    },
    "weekday": {
        "en": (
            "What day of the week is {date}?",
            "Which weekday is {date}?",
            "{date}: what day is it?",
        ),
        "zh": (
            "{date}是星期几？",
            "请问{date}是星期几？",
            "{date}那天是星期几？",
        ),
    },
    "days_between": {
        "en": (
            "How many days are there from {date} to {other}?",
            "Count the days from {date} to {other}.",
            "{date} to {other}: how many days?",
        ),
        "zh": (
            "从{date}到{other}有多少天？",
            "{date}到{other}相隔几天？",
            "计算从{date}到{other}的天数。",
        ),
    },
    "add_days": {
        "en": (
            "What date is {n} days after {date}?",
            "Add {n} days to {date}.",
            "{date} plus {n} days is which date?",
        ),
        "zh": (
            "{date}之后 {n} 天是哪一天？",
            "{date}加 {n} 天是几月几日？",
            "从{date}起过 {n} 天是哪天？",
        ),
    },
}

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WEEKDAYS_ZH = ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日")
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def _numbers(rng: random.Random, digits: int) -> tuple[int, int]:
    limit = 10**digits
    return rng.randrange(limit), rng.randrange(limit)


def _pair_key(kind: str, a: int, b: int) -> str:
    return f"{kind}:{min(a, b)},{max(a, b)}"


def _add(rng: random.Random, difficulty: Difficulty) -> _Operands:
    a, b = _numbers(rng, difficulty.digits)
    return _Operands(_pair_key("add", a, b), {"a": a, "b": b}, str(a + b))


def _subtract(rng: random.Random, difficulty: Difficulty) -> _Operands:
    b, a = sorted(_numbers(rng, difficulty.digits))
    return _Operands(_pair_key("subtract", a, b), {"a": a, "b": b}, str(a - b))


def _multiply(rng: random.Random, difficulty: Difficulty) -> _Operands:
    a, b = _numbers(rng, difficulty.factor_digits)
    return _Operands(_pair_key("multiply", a, b), {"a": a, "b": b}, str(a * b))


def _compare(rng: random.Random, difficulty: Difficulty) -> _Operands:
    a, b = _numbers(rng, difficulty.digits)
    b += a == b
    return _Operands(_pair_key("compare", a, b), {"a": a, "b": b}, str(max(a, b)))


def _word(rng: random.Random, difficulty: Difficulty) -> str:
    """A pronounceable word that no dictionary needs to hold: consonants and vowels in turn."""
    length = rng.randint(*difficulty.letters)
    start = rng.randrange(2)
    return "".join(rng.choice(VOWELS if (start + i) % 2 else CONSONANTS) for i in range(length))


def _word_operands(word: str, fields: dict[str, Any], answer: str) -> _Operands:
    return _Operands("word:" + min(word, word[::-1]), {"word": word, **fields}, answer)


def _reverse(rng: random.Random, difficulty: Difficulty) -> _Operands:
    word = _word(rng, difficulty)
    return _word_operands(word, {}, word[::-1])


def _upper(rng: random.Random, difficulty: Difficulty) -> _Operands:
    word = _word(rng, difficulty)
    return _word_operands(word, {}, word.upper())


def _length(rng: random.Random, difficulty: Difficulty) -> _Operands:
    word = _word(rng, difficulty)
    return _word_operands(word, {}, str(len(word)))


def _letter(rng: random.Random, difficulty: Difficulty) -> _Operands:
    word = _word(rng, difficulty)
    n = rng.randint(1, len(word))
    return _word_operands(word, {"n": n}, word[n - 1])


def _repeat(rng: random.Random, difficulty: Difficulty) -> _Operands:
    word = _word(rng, difficulty)
    n = rng.randint(2, 4)
    return _word_operands(word, {"n": n}, " ".join([word] * n))


def _count(rng: random.Random, difficulty: Difficulty) -> _Operands:
    word = _word(rng, difficulty)
    letter = rng.choice(word) if rng.random() < 0.75 else rng.choice(CONSONANTS + VOWELS)
    return _word_operands(word, {"letter": letter}, str(word.count(letter)))


def _date(rng: random.Random, difficulty: Difficulty) -> datetime.date:
    first = datetime.date(difficulty.years[0], 1, 1).toordinal()
    last = datetime.date(difficulty.years[1], 12, 31).toordinal()
    return datetime.date.fromordinal(rng.randint(first, last))


def _zh_date(date: datetime.date) -> str:
    return f"{date.year}年{date.month}月{date.day}日"


def _weekday(rng: random.Random, difficulty: Difficulty) -> _Operands:
    date = _date(rng, difficulty)
    day = date.weekday()
    return _Operands(f"date:{date}", {"date": date}, WEEKDAYS[day], {"date": _zh_date(date)}, WEEKDAYS_ZH[day])


def _days_between(rng: random.Random, difficulty: Difficulty) -> _Operands:
    date = _date(rng, difficulty)
    n = rng.randint(1, difficulty.days)
    other = date + datetime.timedelta(days=n)
    zh = {"date": _zh_date(date), "other": _zh_date(other)}
    return _Operands(f"date:{date}", {"date": date, "other": other}, str(n), zh, f"{n} 天")


def _add_days(rng: random.Random, difficulty: Difficulty) -> _Operands:
    date = _date(rng, difficulty)
    n = rng.randint(1, difficulty.days)
    other = date + datetime.timedelta(days=n)
    return _Operands(
        f"date:{date}", {"date": date, "n": n}, str(other), {"date": _zh_date(date), "n": n}, _zh_date(other)
    )


MAKERS: dict[str, Callable[[random.Random, Difficulty], _Operands]] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "compare": _compare,
    "reverse": _reverse,
    "upper": _upper,
    "length": _length,
    "letter": _letter,
    "repeat": _repeat,
    "count": _count,
    "weekday": _weekday,
    "days_between": _days_between,
    "add_days": _add_days,
}
KINDS = tuple(MAKERS)


def make_problem(kind: str, rng: random.Random, difficulty: Difficulty, language: Language) -> Problem:
    """Return one random problem of `kind`."""
    operands = MAKERS[kind](rng, difficulty)
    split: Split = "held_out" if held_out(operands.key, HELD_OUT_OPERANDS) else "train"
    form = rng.choice(FORMS[kind][language])
    if language == "zh":
        fields, answer = operands.zh_fields or operands.fields, operands.zh_answer or operands.answer
    else:
        fields, answer = operands.fields, operands.answer
    return Problem(kind, language, form.format(**fields), answer, split)


def problems(
    count: int,
    *,
    seed: int = 0,
    difficulty: Difficulty | None = None,
    languages: tuple[Language, ...] = ("en", "zh"),
    kinds: tuple[str, ...] = KINDS,
) -> Iterator[Problem]:
    """Yield up to `count` problems of both splits, no question twice, kinds and languages in turn.

    A kind with fewer questions than its share (small products) gives those it has and leaves the rest to the others.
    """
    difficulty = difficulty or Difficulty()
    rng = random.Random(f"tasks:{seed}")
    asked: set[str] = set()
    open_kinds = [(kind, language) for kind in kinds for language in languages]
    done = 0
    while open_kinds:
        for pair in list(open_kinds):
            if done == count:
                return
            for _ in range(50):
                problem = make_problem(pair[0], rng, difficulty, pair[1])
                if problem.question not in asked:
                    asked.add(problem.question)
                    done += 1
                    yield problem
                    break
            else:  # fifty in a row were known: this kind is as good as exhausted
                open_kinds.remove(pair)
