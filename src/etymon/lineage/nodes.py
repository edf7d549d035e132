"""The nodes of the family tree: every family file, and the descendants that need none.

A family says in its own file where it comes from. What has no file (a checkpoint of a parent's architecture, a way of
training, a model that nobody published) stands in `descendants.yaml`. A descendant may be some of a family's sizes; it
then has specs of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, cached_property
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import Field

from etymon.config import Config
from etymon.errors import ConfigError, suggest
from etymon.families import Family, families
from etymon.families.origin import Recorded, Reference
from etymon.spec import ModelSpec, MoE

Kind = Literal["architecture", "checkpoint", "method", "closed"]
Branch = Literal["counts", "recurrent", "encoder", "encoder-decoder", "decoder", "mixture", "senses"]


class Descendant(Config):
    """An entry of `descendants.yaml`, whose head says what the fields mean."""

    title: str
    published: str = Field(pattern=r"^(19|20)\d\d-(0[1-9]|1[0-2])$")
    kind: Kind
    parents: list[str]
    paper: str
    brought: str = Field(max_length=90)
    sizes: str | None = None
    branch: Branch | None = None
    file: str | None = None
    recorded: str | None = None


@dataclass(frozen=True)
class Node:
    """One model or family of the lineage. `sizes` are its published specs' (family, size)."""

    name: str
    title: str
    published: str
    kind: Kind
    parents: tuple[str, ...]
    paper: str
    brought: str
    family: Family | None = None
    file: str | None = None
    reference: Reference | None = None
    sizes: tuple[tuple[str, str], ...] = ()
    branch: Branch | None = None

    @property
    def time(self) -> float:
        """The middle of the month, in years."""
        year, month = self.published.split("-")
        return int(year) + (int(month) - 0.5) / 12

    @cached_property
    def specs(self) -> list[ModelSpec]:
        """The specs of the published sizes; of a family that has none, one of small dimensions."""
        if not self.sizes and self.family is not None:
            return [self.family.spec(**self.family.tiny)]
        return [families()[family].spec(size) for family, size in self.sizes]


class Tree:
    """All nodes by name, in order of time."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = {node.name: node for node in sorted(nodes, key=lambda node: (node.time, node.title.lower()))}
        self.children: dict[str, list[Node]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for parent in node.parents:
                if parent not in self.nodes:
                    hint = suggest(parent, self.nodes)
                    raise ConfigError(f"lineage: {node.name} has a parent {parent!r}, which is no node.{hint}")
            if node.parents:
                self.children[node.parents[0]].append(node)

    def __getitem__(self, name: str) -> Node:
        """Return the node of this name, or the one that has this size. Raises ConfigError that names the nearest."""
        if name in self.nodes:
            return self.nodes[name]
        for node in self.nodes.values():
            if name == node.title or any(name == size for _, size in node.sizes):
                return node
        known = [*self.nodes, *(size for node in self.nodes.values() for _, size in node.sizes)]
        raise ConfigError(f"There is no {name!r} in the lineage.{suggest(name, known)} `etymon lineage` shows all.")

    @property
    def roots(self) -> list[Node]:
        """The nodes without parents."""
        return [node for node in self.nodes.values() if not node.parents]

    def parent(self, node: Node) -> Node | None:
        """The first parent."""
        return self.nodes[node.parents[0]] if node.parents else None

    def ancestors(self, node: Node) -> list[Node]:
        """The first parents, from the root down to `node` itself."""
        parent = self.parent(node)
        return [*(self.ancestors(parent) if parent else []), node]

    def relative(self, node: Node) -> Node | None:
        """The nearest of the first parents that has a spec, which is what differences are taken from."""
        return next((each for each in reversed(self.ancestors(node)[:-1]) if each.specs), None)

    def branch(self, node: Node) -> Branch:
        """Where a node stands in the picture: what its spec says, or its own word, or where its parent stands."""
        if node.branch is not None:
            return node.branch
        if node.specs:
            return branch_of(node.specs[0])
        parent = self.parent(node)
        return self.branch(parent) if parent else "counts"


def branch_of(spec: ModelSpec) -> Branch:
    """Say which branch of the tree an architecture belongs to."""
    ops = [sub.op for stack in spec.stacks for block in set(stack.blocks) for sub in block.subs]
    if any(isinstance(op, MoE) for op in ops):
        return "mixture"
    if len(spec.stacks) == 2:
        return "encoder-decoder"
    if spec.encoder is not None:
        return "encoder"
    return "decoder" if any("attention" in op.name for op in ops) else "recurrent"


@cache
def tree() -> Tree:
    """Return the whole lineage. Raises ConfigError that names a parent which is no node."""
    found = {name: Descendant(**entry) for name, entry in _descendants().items() if name not in families()}
    claimed: dict[tuple[str, str], str] = {}
    for name, entry in found.items():
        for size in _matching(entry):
            claimed[size] = name
    nodes = [_of_family(family, claimed) for family in families().values()]
    nodes += [_of_descendant(name, entry, claimed) for name, entry in found.items()]
    return Tree(nodes)


def _descendants() -> dict[str, dict[str, Any]]:
    text = (resources.files("etymon.lineage") / "descendants.yaml").read_text(encoding="utf-8")
    value = yaml.safe_load(text)
    assert isinstance(value, dict)
    return value


def _matching(entry: Descendant) -> list[tuple[str, str]]:
    pattern = entry.sizes
    if pattern is None:
        return []
    return [(family.name, size) for family in families().values() for size in family.sizes if fnmatch(size, pattern)]


def _of_family(family: Family, claimed: dict[tuple[str, str], str]) -> Node:
    return Node(
        name=family.name,
        title=family.title,
        published=family.origin.published,
        kind="architecture",
        parents=family.origin.parents,
        paper=family.paper,
        brought=family.origin.brought,
        family=family,
        file=family.name.replace("-", "_"),
        reference=family.origin.reference,
        sizes=tuple((family.name, size) for size in family.sizes if (family.name, size) not in claimed),
    )


def _of_descendant(name: str, entry: Descendant, claimed: dict[tuple[str, str], str]) -> Node:
    return Node(
        name=name,
        title=entry.title,
        published=entry.published,
        kind=entry.kind,
        parents=tuple(entry.parents),
        paper=entry.paper,
        brought=entry.brought,
        sizes=tuple(size for size, owner in claimed.items() if owner == name),
        branch=entry.branch,
        file=entry.file,
        reference=Recorded(entry.recorded) if entry.recorded else None,
    )
