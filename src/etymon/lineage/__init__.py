"""The family tree: who came from whom, when, and what differs between them, computed from their specs."""

from etymon.lineage.differences import Change, changes, nearest
from etymon.lineage.facts import Facts
from etymon.lineage.nodes import Node, Tree, tree
from etymon.lineage.phrases import phrase

__all__ = ["Change", "Facts", "Node", "Tree", "changes", "nearest", "phrase", "tree"]
