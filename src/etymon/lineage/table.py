"""The tree as tables of a page: families with what changed in them, descendants, and what is not built here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from etymon.errors import ConfigError
from etymon.lineage.facts import Facts, checked, status
from etymon.lineage.nodes import Node, Tree

BEGIN, END = "<!-- begin: etymon lineage --markdown -->", "<!-- end -->"
MEANINGS = {
    "reference-verified": "a reference implementation runs beside ours in the tests",
    "golden-verified": "outputs recorded from another implementation",
    "no reference": "the paper's parameter counts and equations",
}


def filled(tree: Tree, path: Path) -> str:
    """Return the page at `path` with the tables between its marks; a page that is not there is the tables alone."""
    page = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}\n{END}\n"
    if BEGIN not in page or END not in page:
        raise ConfigError(f"{path}: the tables go between the lines {BEGIN} and {END}, which are not both there.")
    inside = "\n".join(tables(tree))
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{inside}\n{END}", page, flags=re.DOTALL
    )


def tables(tree: Tree) -> Iterator[str]:
    """Yield the lines of all tables."""
    nodes = list(tree.nodes.values())
    built = [node for node in nodes if node.reference is not None]
    counts = Counter(status(node.reference) for node in built if node.reference is not None)
    told = "; ".join(f"{counts[name]} {name} ({meaning})" for name, meaning in MEANINGS.items())
    yield f"{len(built)} families: {told}.\n"
    yield "| family | file | published | sizes | parent: what changed | checked against |"
    yield "|---|---|---|---|---|---|"
    yield from (_family(Facts(tree, node)) for node in built)
    yield "\n### Descendants\n\nModels of a parent's form, and ways of training it. Those with sizes are built here.\n"
    yield "| model | published | of | what it brought | sizes |"
    yield "|---|---|---|---|---|"
    others = [node for node in nodes if node.reference is None]
    yield from (_descendant(Facts(tree, node)) for node in others if node.kind in ("checkpoint", "method"))
    forms = [node for node in others if node.kind == "architecture"]
    later = [node for node in forms if tree.branch(node) == "senses"]
    yield "\n### Not built here\n"
    yield f"Forms named in the tree that have no file: {_titles(node for node in forms if node not in later)}."
    yield f"With other senses than text, which come later: {_titles(iter(later))}."
    yield f"Nothing is published about the form of: {_titles(node for node in others if node.kind == 'closed')}."


def _titles(nodes: Iterator[Node]) -> str:
    return ", ".join(f"[{node.title}]({node.paper})" for node in nodes)


def _family(facts: Facts) -> str:
    node = facts.node
    assert node.reference is not None
    sizes = f"{len(node.sizes)}: {facts.span}" if len(node.sizes) > 1 else facts.span
    relative = facts.relative
    changed = f"{relative.title}: {facts.phrase}" if relative and facts.compared else f"– ({node.brought})"
    file = f"`families/{node.file}.py`"
    cells = (f"[{node.title}]({node.paper})", file, node.published, sizes or "–", changed, checked(node.reference))
    return f"| {' | '.join(cells)} |"


def _descendant(facts: Facts) -> str:
    node = facts.node
    brought = f"{node.brought} ({facts.news})" if facts.news else node.brought
    sizes = f"{len(node.sizes)}: {facts.span}" if len(node.sizes) > 1 else facts.span
    parents = ", ".join(parent.title for parent in facts.parents)
    cells = (f"[{node.title}]({node.paper})", node.published, parents, brought, sizes or "–")
    return f"| {' | '.join(cells)} |"
