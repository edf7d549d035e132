"""The tree as a page to look around in."""

from __future__ import annotations

from etymon.lineage.nodes import Tree
from etymon.lineage.picture import picture


def page(tree: Tree) -> str:
    """Return a page that needs nothing but itself."""
    return f"<!doctype html><meta charset=utf-8><title>The lineage of language models</title>{picture(tree)}"
