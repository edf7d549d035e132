"""The tree as a page to look around in: choose a name to see where it came from and what differs."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from etymon.lineage.facts import Facts, checked, parameters, status
from etymon.lineage.nodes import Tree
from etymon.lineage.picture import NAMES, palette, picture


def page(tree: Tree) -> str:
    """Return a page that needs nothing but itself."""
    frame = (resources.files("etymon.lineage") / "page.html").read_text(encoding="utf-8")
    data = {
        "nodes": {name: _told(Facts(tree, node)) for name, node in tree.nodes.items()},
        "branches": NAMES,
        "start": f"{len(tree.nodes)} models, each in the month when it appeared.",
    }
    colours = f":root {palette('light')}\n@media (prefers-color-scheme: dark) {{ :root {palette('dark')} }}\n"
    colours += "".join(f':root[data-theme="{name}"] {palette(name)}\n' for name in ("light", "dark"))
    parts = {
        "/*PALETTE*/": colours,
        "<!--SVG-->": picture(tree, framed=False),
        "/*DATA*/": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    }
    for mark, part in parts.items():
        frame = frame.replace(mark, part, 1)
    return frame


def _told(facts: Facts) -> dict[str, Any]:
    """What the page says about one node."""
    node = facts.node
    reference = node.reference
    return {
        "title": node.title,
        "published": node.published,
        "kind": node.kind,
        "branch": facts.branch,
        "brought": node.brought,
        "paper": node.paper,
        "parents": list(node.parents),
        "children": [child.name for child in facts.children],
        "phrase": facts.news,
        "compared": [spec.name for spec in facts.compared] if facts.compared else [],
        "changes": [[change.where, change.before, change.after] for change in facts.changes],
        "sizes": [[size, parameters(total)] for size, total in facts.sizes],
        "checked": f"{status(reference)}: {checked(reference)}" if reference else "",
    }
