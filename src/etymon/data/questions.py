"""The built-in conversations: questions about the standard library, and checkable tasks, in English and Chinese.

They ask what functions do, for their signature, their module and a line of usage; to read a signature that is given;
and put the problems of `tasks`. Functions of held-out modules and problems with held-out operands carry the split
`held_out` and are never in training. Every reply but small talk is the only right one, so that it can be checked.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from etymon.config import Config
from etymon.data.builtin import Function, functions
from etymon.data.conversation import Conversation
from etymon.data.documents import Split
from etymon.data.tasks import Difficulty, Language, problems


class BuiltinConversations(Config):
    """Questions about the standard library and checkable tasks, made on the spot."""

    kind: Literal["builtin"] = "builtin"
    tasks: int = Field(default=20_000, ge=0, description="How many checkable tasks, both splits together")
    functions: int = Field(default=400, ge=0, description="How many functions are asked about, the best known first")
    phrasings: int = Field(default=2, ge=1, le=4, description="In how many ways each question about a function is put")
    languages: tuple[Language, ...] = Field(default=("en", "zh"), min_length=1)
    difficulty: Difficulty = Difficulty()
    seed: int = 0


# The modules that people ask about first; the rest follow in the order of the alphabet.
BEST_KNOWN = (
    "builtins", "math", "random", "textwrap", "json", "statistics", "string", "re", "shutil", "os", "glob", "copy",
    "itertools", "functools", "heapq", "bisect", "operator", "time", "calendar", "os.path", "fnmatch",
    "tempfile", "subprocess", "inspect", "ast", "dataclasses", "contextlib", "keyword", "secrets", "colorsys",
    "difflib", "pprint", "shlex", "html", "urllib.parse", "urllib.request", "types", "typing", "enum",
)  # fmt: skip
LONGEST_SUMMARY, LONGEST_SIGNATURE = 100, 70

# kind: language: (questions, reply)
QUESTIONS: dict[str, dict[Language, tuple[tuple[str, ...], str]]] = {
    "summary": {
        "en": (
            (
                "What does {path} do?",
                "What is {path} for?",
                "Explain {path} in one sentence.",
                "Describe {path}.",
            ),
            "{answer}",
        ),
        "zh": (
            (
                "{path} 是做什么的？",
                "函数 {path} 有什么用？",
                "用一句话介绍 {path}。",
                "请解释 {path} 的作用。",
            ),
            "{path} 的作用：{answer}",
        ),
    },
    "signature": {
        "en": (
            (
                "What is the signature of {path}?",
                "How is {path} called?",
                "Which parameters does {path} take?",
                "Show the signature of {path}.",
            ),
            "{answer}",
        ),
        "zh": (
            (
                "{path} 的签名是什么？",
                "怎样调用 {path}？",
                "{path} 有哪些参数？",
                "写出 {path} 的签名。",
            ),
            "它的签名是 {answer}",
        ),
    },
    "usage": {
        "en": (
            (
                "Show a line of code that uses {path}.",
                "Give an example of {path}.",
                "Use {path} in one line.",
                "How do I use {path}?",
            ),
            "{answer}",
        ),
        "zh": (
            (
                "写一行使用 {path} 的代码。",
                "举一个 {path} 的例子。",
                "{path} 怎么用？",
                "请用一行代码演示 {path}。",
            ),
            "例如：{answer}",
        ),
    },
    "module": {
        "en": (
            (
                "Which module has the function {name}?",
                "Where is {name} defined?",
                "In which module is {name}?",
                "From which module do I import {name}?",
            ),
            "{answer}",
        ),
        "zh": (
            (
                "函数 {name} 在哪个模块里？",
                "{name} 属于哪个模块？",
                "要从哪个模块导入 {name}？",
                "{name} 是哪个模块的函数？",
            ),
            "{answer}",
        ),
    },
    "read_name": {
        "en": (
            (
                "What is the name of this function? def {name}({parameters})",
                "def {name}({parameters}): what is it called?",
                "Name the function: def {name}({parameters})",
                "Which function does def {name}({parameters}) define?",
            ),
            "{answer}",
        ),
        "zh": (
            (
                "这个函数叫什么？def {name}({parameters})",
                "def {name}({parameters}) 定义的函数叫什么？",
                "写出函数名：def {name}({parameters})",
                "def {name}({parameters}) 的名字是什么？",
            ),
            "{answer}",
        ),
    },
    "read_parameter": {
        "en": (
            (
                "What is the first parameter? def {name}({parameters})",
                "def {name}({parameters}): name the first parameter.",
                "Give the first parameter of def {name}({parameters})",
                "Which parameter comes first in def {name}({parameters})?",
            ),
            "{answer}",
        ),
        "zh": (
            (
                "第一个参数是什么？def {name}({parameters})",
                "def {name}({parameters}) 的第一个参数叫什么？",
                "写出第一个参数：def {name}({parameters})",
                "def {name}({parameters}) 里哪个参数在最前面？",
            ),
            "{answer}",
        ),
    },
}

# What people type first. Not checkable, and too few to hold any out.
SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("Hello!", "Hello! Ask me about Python functions, sums, words or dates."),
    ("Hi", "Hi! Ask me about Python functions, sums, words or dates."),
    ("Who are you?", "I am a small language model, trained by etymon on this machine."),
    ("What can you do?", "I can answer short questions about Python functions, sums, words and dates."),
    ("Thank you!", "You are welcome."),
    ("Goodbye!", "Goodbye!"),
    ("你好", "你好！你可以问我 Python 函数、算术、单词或日期的问题。"),
    ("你好！", "你好！你可以问我 Python 函数、算术、单词或日期的问题。"),
    ("你是谁？", "我是一个小语言模型，由 etymon 在这台机器上训练。"),
    ("你会做什么？", "我能回答关于 Python 函数、算术、单词和日期的简短问题。"),
    ("谢谢！", "不客气。"),
    ("再见！", "再见！"),
)
SMALL_TALK_TIMES = 8


def summary(doc: str) -> str | None:
    """Return the first sentence of a docstring, None where it has none that is short and plain."""
    for paragraph in re.split(r"\n\s*\n", doc.strip())[:2]:
        text = " ".join(paragraph.split())
        sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
        if 6 <= len(sentence) <= LONGEST_SUMMARY and not re.match(r"[\w.]+\(|>>>|[-*:@]", sentence):
            return sentence
    return None


def usage(function: Function) -> str:
    """Return a line that calls `function`: the docstring's first such example, or one made of its parameters."""
    pattern = rf"^\s*>>> (.*\b{re.escape(function.name)}\(.*\).*)$"
    for line in re.findall(pattern, function.doc, flags=re.MULTILINE):
        code = str(line).strip()
        if len(code) <= LONGEST_SIGNATURE and code.count("(") == code.count(")"):
            return code
    return f"result = {function.path}({', '.join(function.required)})"


def _answers(function: Function, unique: bool) -> dict[str, str | None]:
    """Return the right answer to each kind of question about `function`, None where it is not asked."""
    short = len(function.signature) <= LONGEST_SIGNATURE
    positional = function.positional
    line = usage(function)
    return {
        "summary": summary(function.doc),
        "signature": function.signature if short else None,
        "usage": line if len(line) <= LONGEST_SIGNATURE else None,
        "module": function.module if unique else None,
        "read_name": function.name if short else None,
        "read_parameter": positional[0] if short and positional else None,
    }


def _ask(kind: str, language: Language, phrasing: int, function: Function, answer: str) -> Conversation:
    """Put one question about a function."""
    questions, frame = QUESTIONS[kind][language]
    fields = {"path": function.path, "name": function.name, "parameters": function.parameters}
    return _exchange(
        f"builtin:{kind}/{language}/{phrasing}/{function.path}",
        questions[phrasing].format(**fields),
        frame.format(answer=answer, **fields),
        kind,
        function.split,
    )


def _exchange(name: str, question: str, answer: str, kind: str, split: Split) -> Conversation:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation(name, messages, kind, split, answer)


def _library_questions(source: BuiltinConversations) -> Iterator[Conversation]:
    """Ask about the best known functions; signatures to read are taken from all of them."""
    found = functions()
    defined: dict[str, int] = {}
    for function in found:
        defined[function.name] = defined.get(function.name, 0) + 1
    rank = {module: number for number, module in enumerate(BEST_KNOWN)}
    ranked = sorted(found, key=lambda f: rank.get(f.module, len(rank)))  # a stable sort: then the alphabet
    asked: set[str] = set()
    for split, count in (
        ("train", source.functions),
        ("held_out", max(source.functions // 8, min(source.functions, 20))),
    ):
        asked.update([f.path for f in ranked if f.split == split][:count])
    for function in ranked if source.functions else ():
        for kind, answer in _answers(function, defined[function.name] == 1).items():
            if answer is None or (function.path not in asked and not kind.startswith("read_")):
                continue
            for language in source.languages:
                for phrasing in range(source.phrasings):
                    yield _ask(kind, language, phrasing, function, answer)


def _small_talk(source: BuiltinConversations) -> Iterator[Conversation]:
    for number, (question, reply) in enumerate(SMALL_TALK):
        language = "en" if question.isascii() else "zh"
        if language in source.languages:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
            for time in range(SMALL_TALK_TIMES):
                yield Conversation(f"builtin:small_talk/{number}/{time}", messages, "small_talk", "train")


def _tasks(source: BuiltinConversations) -> Iterator[Conversation]:
    asked = problems(source.tasks, seed=source.seed, difficulty=source.difficulty, languages=source.languages)
    for number, problem in enumerate(asked):
        name = f"builtin:{problem.kind}/{problem.language}/{number}"
        yield _exchange(name, problem.question, problem.answer, problem.kind, problem.split)


def builtin_conversations(source: BuiltinConversations | None = None) -> list[Conversation]:
    """Return the built-in conversations of both splits, in an order that the source's seed shuffles.

    No question that can be checked is put twice, and one that is held out (two modules may define functions of the
    same signature) is not in training under another function's name either.
    """
    source = source or BuiltinConversations()
    checkable = [*_library_questions(source), *_tasks(source)]
    checkable.sort(key=lambda conversation: conversation.split != "held_out")
    once = {conversation.messages[0]["content"]: conversation for conversation in reversed(checkable)}
    made = [*once.values(), *_small_talk(source)]
    random.Random(f"conversations:{source.seed}").shuffle(made)
    return made
