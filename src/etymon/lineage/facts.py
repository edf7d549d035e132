"""All that is known about one node, gathered for a terminal, a page or a picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from etymon.families.origin import Paper, Recorded, Reference, Running
from etymon.lineage.differences import Change, changes, nearest
from etymon.lineage.nodes import Branch, Node, Tree
from etymon.lineage.phrases import phrase
from etymon.nn import count
from etymon.spec import ModelSpec


@dataclass(frozen=True)
class Facts:
    """A node in its tree."""

    tree: Tree
    node: Node

    @property
    def branch(self) -> Branch:
        """Where it stands in the picture."""
        return self.tree.branch(self.node)

    @property
    def parents(self) -> list[Node]:
        """Those it came from; the first is the one that differences are taken from."""
        return [self.tree.nodes[name] for name in self.node.parents]

    @property
    def children(self) -> list[Node]:
        """Those that came from it, first of all or among others."""
        return [other for other in self.tree.nodes.values() if self.node.name in other.parents]

    @property
    def relative(self) -> Node | None:
        """The nearest first parent with a spec."""
        return self.tree.relative(self.node)

    @cached_property
    def compared(self) -> tuple[ModelSpec, ModelSpec] | None:
        """The two specs, of the relative and of this node, whose difference is told."""
        relative = self.relative
        return nearest(relative.specs, self.node.specs) if relative and self.node.specs else None

    @cached_property
    def changes(self) -> list[Change]:
        """What differs from the relative, computed from specs."""
        return changes(*self.compared) if self.compared else []

    @property
    def phrase(self) -> str:
        """The same in a few words; empty where there is no spec to compare."""
        return phrase(self.changes) if self.compared else ""

    @property
    def news(self) -> str:
        """What changed in a few words, if that is anything a person would name."""
        told = self.phrase in ("the same design", self.node.title) or self.phrase.startswith("only ")
        return "" if told else self.phrase

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """The published sizes with their numbers of parameters."""
        names = [size for _, size in self.node.sizes]
        return [(name, count(spec).total) for name, spec in zip(names, self.node.specs, strict=False)]

    @property
    def span(self) -> str:
        """The smallest and the largest size, as in "7B – 65B"."""
        numbers = sorted(total for _, total in self.sizes)
        if not numbers:
            return ""
        ends = dict.fromkeys(map(parameters, (numbers[0], numbers[-1])))
        return " – ".join(ends)


STATUSES = {Running: "reference-verified", Recorded: "golden-verified", Paper: "no reference"}


def status(reference: Reference) -> str:
    """Say how far a family is checked."""
    return STATUSES[type(reference)]


def checked(reference: Reference) -> str:
    """Say what a family is checked against."""
    match reference:
        case Running(name):
            return name
        case Recorded(name):
            return f"recorded outputs of {name}"
        case Paper():
            return "the paper's counts and equations"


def parameters(number: float) -> str:
    """Write a number of parameters: "14M", "6.74B", "1.2T"."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * scale:
            return f"{number / scale:.3g}{unit}"
    return str(number)
