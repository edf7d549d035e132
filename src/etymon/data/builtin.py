"""The built-in corpus: what every machine with Python has to read, found where it is installed.

The standard library's source, reference pages made of its signatures and docstrings, the topics of `help()`, and
worked tasks. Modules are read with `ast` and never imported, so nothing of them runs; the exceptions are a few
compiled modules, which have no source and are part of every interpreter. The order is the same everywhere; the text
is that of the running Python's version.

A twentieth of the modules and topics is held out, always the same ones by a hash of their names, for documents and
for questions (`conversations`) alike: a held-out function is seen neither in pretraining nor in fine-tuning.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from etymon.data.documents import Document, Split, held_out
from etymon.data.tasks import problems
from etymon.errors import DataError

Part = Literal["source", "pages", "topics", "tasks"]
PARTS: tuple[Part, ...] = ("source", "pages", "topics", "tasks")
HELD_OUT_MODULES = 0.05
SOURCE_CHARACTERS = 6_000  # neighbouring definitions are put together up to this

# Tests, third-party code, tables of numbers and programs that are not library text.
SKIPPED_FOLDERS = {
    "__pycache__", "dist-packages", "encodings", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
SKIPPED_PREFIXES = ("_sysconfigdata", "test_", "config-")
COMPILED = ("builtins", "itertools", "math", "time")
# Modules that are one under several names: they share a side of the split, and people know the first two as os.path.
PATH_MODULES = {"posixpath": "os.path", "genericpath": "os.path", "ntpath": "os.path"}
TASK_DOCUMENTS, TASKS_PER_DOCUMENT = 400, 24


@dataclass(frozen=True)
class Module:
    """A module of the standard library: its dotted name, its source text and what `ast` makes of it."""

    name: str
    text: str
    tree: ast.Module

    @property
    def split(self) -> Split:
        """The side of the split on which all of this module is."""
        return module_split(self.name)


@dataclass(frozen=True)
class Function:
    """A public, documented function of the standard library."""

    module: str
    name: str
    parameters: str
    doc: str

    @property
    def path(self) -> str:
        """The dotted name, such as `textwrap.dedent`; built-in functions have no module in front."""
        return self.name if self.module == "builtins" else f"{self.module}.{self.name}"

    @property
    def signature(self) -> str:
        """The call, such as `textwrap.dedent(text)`."""
        return f"{self.path}({self.parameters})"

    @property
    def _arguments(self) -> ast.arguments:
        node = ast.parse(f"def f({self.parameters}): pass").body[0]
        assert isinstance(node, ast.FunctionDef)
        return node.args

    @property
    def positional(self) -> list[str]:
        """The names of the positional parameters."""
        return [argument.arg for argument in (*self._arguments.posonlyargs, *self._arguments.args)]

    @property
    def required(self) -> list[str]:
        """What a call must give: names, and `name=name` for those that go by keyword."""
        arguments = self._arguments
        names = self.positional[: len(self.positional) - len(arguments.defaults)]
        keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        return names + [f"{argument.arg}={argument.arg}" for argument, default in keywords if default is None]

    @property
    def split(self) -> Split:
        """The side of the split on which this function is."""
        return module_split(self.module)


def module_split(name: str) -> Split:
    """Return the side of the split of a module or topic by its name."""
    name = PATH_MODULES.get(name, name)
    return "held_out" if held_out(f"module:{name}", HELD_OUT_MODULES) else "train"


def _library_files() -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and file of each module, sorted."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[str, Path]] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith(SKIPPED_PREFIXES)]
        for file in files:
            if file.endswith(".py") and not file.startswith(SKIPPED_PREFIXES):
                path = Path(folder) / file
                parts = path.relative_to(root).with_suffix("").parts
                found.append((".".join(part for part in parts if part != "__init__"), path))
    if not found:
        raise DataError(
            f"This Python has no standard library source at {root}, which the built-in corpus is read from. "
            "Install it (on Debian: libpython3-stdlib), or give `sources` of your own."
        )
    yield from sorted(found)


def modules() -> Iterator[Module]:
    """Yield the modules of the standard library whose source this Python can read, in order of name.

    They are not kept: the syntax trees of the whole library take half a gigabyte.
    """
    for name, path in _library_files():
        try:
            with tokenize.open(path) as f, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in old modules
                text = f.read()
                yield Module(name, text, ast.parse(text))
        except (SyntaxError, UnicodeDecodeError, OSError, ValueError):
            continue  # a file of another version or a template; nothing that a reader would miss


def documents(parts: tuple[Part, ...] = PARTS) -> Iterator[Document]:
    """Yield the documents of `parts`, their splits already decided."""
    if "topics" in parts:
        yield from _topics()
    if "pages" in parts:
        for name in COMPILED:
            yield from map(_function_page, _compiled_functions(name))
    if "source" in parts or "pages" in parts:
        for module in modules():
            if "pages" in parts and _is_public(module.name):
                yield from _pages(module)
            if "source" in parts:
                yield from _source(module)
    if "tasks" in parts:
        yield from _tasks()


def _source(module: Module) -> Iterator[Document]:
    for number, text in enumerate(_chunks(module)):
        yield Document(f"builtin:source/{module.name}#{number}", text, "builtin", module.split)


def _chunks(module: Module) -> Iterator[str]:
    """Cut a module between top-level definitions, comments above a definition staying with it."""
    lines = module.text.splitlines(keepends=True)
    begin, size, previous = 0, 0, 0
    for node in module.tree.body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        while first > previous and lines[first - 1].startswith("#"):
            first -= 1
        end = node.end_lineno or node.lineno
        length = sum(map(len, lines[previous:end]))
        if size and size + length > SOURCE_CHARACTERS and first >= previous:
            yield "".join(lines[begin:first])
            begin, size = first, 0
        size += length
        previous = end
    yield "".join(lines[begin:])


def _pages(module: Module) -> Iterator[Document]:
    """Reference pages of a module, its functions and its classes: the signature, then the docstring."""
    doc = ast.get_docstring(module.tree)
    if doc:
        yield Document(f"builtin:pages/{module.name}", f"module {module.name}\n\n{doc}", "builtin", module.split)
    yield from map(_function_page, _functions(module))
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            page = _class_page(module.name, node)
            if page:
                yield Document(f"builtin:pages/{module.name}.{node.name}", page, "builtin", module.split)


def _function_page(function: Function) -> Document:
    text = f"{function.signature}\n\n{function.doc}"
    return Document(f"builtin:pages/{function.path}", text, "builtin", function.split)


def _class_page(module: str, node: ast.ClassDef) -> str | None:
    doc = ast.get_docstring(node)
    if not doc:
        return None
    bases = ", ".join(map(ast.unparse, node.bases))
    parts = [f"class {module}.{node.name}({bases})" if bases else f"class {module}.{node.name}", doc]
    for method in node.body:
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.name.startswith("_"):
            method_doc = ast.get_docstring(method)
            if method_doc:
                parts.append(f"{node.name}.{method.name}({_parameters(method)})\n" + _indent(method_doc))
    return "\n\n".join(parts)


def _indent(text: str) -> str:
    return re.sub("^(?=.)", "    ", text, flags=re.MULTILINE)


def _topics() -> Iterator[Document]:
    """The topics of `help()`: read from the dictionary that `pydoc_data/topics.py` assigns."""
    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    if not path.is_file():
        return  # some distributions package it apart
    with tokenize.open(path) as f:
        tree = ast.parse(f.read())
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in sorted(ast.literal_eval(node.value).items()):
                yield Document(f"builtin:topics/{name}", text, "builtin", module_split(f"topics/{name}"))


def _tasks() -> Iterator[Document]:
    """Worked tasks, a few to a document; none of the held-out operands."""
    trained = [p for p in problems(TASK_DOCUMENTS * TASKS_PER_DOCUMENT, seed=1) if p.split == "train"]
    for number in range(0, len(trained), TASKS_PER_DOCUMENT):
        page = trained[number : number + TASKS_PER_DOCUMENT]
        text = "\n".join(f"{problem.question} {problem.answer}" for problem in page)
        yield Document(f"builtin:tasks/{number // TASKS_PER_DOCUMENT}", text, "builtin", "train")


def _is_public(path: str) -> bool:
    return not any(part.startswith("_") for part in path.split("."))


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return ast.unparse(node.args)


def _functions(module: Module) -> Iterator[Function]:
    """Yield the public, documented functions that a module defines at its top level."""
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            doc = ast.get_docstring(node)
            if doc:
                name = module.name if module.name == "ntpath" else PATH_MODULES.get(module.name, module.name)
                yield Function(name, node.name, _parameters(node), doc)


def _compiled_functions(module: str) -> Iterator[Function]:
    """Functions without source; these modules are part of the interpreter, so importing them runs nothing new."""
    for name, value in sorted(vars(importlib.import_module(module)).items()):
        if name.startswith("_") or not inspect.isbuiltin(value) or not value.__doc__:
            continue
        try:
            parameters = str(inspect.signature(value))[1:-1]
        except ValueError:
            continue
        yield Function(module, name, parameters.removesuffix(", /").removesuffix("/"), inspect.cleandoc(value.__doc__))


@cache
def functions() -> tuple[Function, ...]:
    """Return the public, documented functions of the library, each name once, in order of module and name."""
    found = [function for name in COMPILED for function in _compiled_functions(name)]
    for module in modules():
        if _is_public(module.name):
            found.extend(_functions(module))
    return tuple({function.path: function for function in found}.values())
