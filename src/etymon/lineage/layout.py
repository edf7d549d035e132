"""Where the nodes of the tree stand in its picture: time runs to the right, one line of descent is one row.

Years are as wide as they have nodes. The heir of a node (its child with the most descendants) goes on in its row, the
other children branch off above and below, the latest nearest, so that no line crosses another and no name is covered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from etymon.lineage.nodes import Branch, Node, Tree

LEFT, GAP, LEAD = 24.0, 16.0, 9.0  # the margin, the space behind a name, the space from a dot to its name
BANDS: tuple[tuple[Branch, ...], ...] = (
    ("counts", "recurrent"),
    ("encoder",),
    ("encoder-decoder",),
    ("decoder", "mixture"),
    ("senses",),
)
NARROW, WIDE = set("iljtfrI.,:'|- 1"), set("mwMWGOQ@%ÜT")


def text_width(text: str, size: float, bold: bool) -> float:
    """Estimate how wide a text is set, on the safe side."""
    ems = sum(0.36 if c in NARROW else 0.88 if c in WIDE else 0.68 if c.isupper() else 0.58 for c in text)
    return ems * size * (1.06 if bold else 1.0)


def label_size(node: Node) -> float:
    """The size of a node's name: architectures are larger than what descends from them without a new form."""
    return 12.5 if node.kind == "architecture" else 11.0


@dataclass
class Axis:
    """Where the months are."""

    starts: dict[int, float]
    end: float

    def x(self, time: float) -> float:
        """The place of a moment."""
        year = int(time)
        begin, after = self.starts[year], self.starts.get(year + 1, self.end)
        return begin + (time - year) * (after - begin)


def axis_of(nodes: list[Node]) -> Axis:
    """Give every year a width according to how much happened in it."""
    busy = Counter(int(node.time) for node in nodes)
    starts, x = {}, LEFT
    for year in range(min(busy), max(busy) + 1):
        starts[year] = x
        x += 38 + 9.5 * busy[year] if busy[year] else 15
    return Axis(starts, x)


@dataclass
class Rows:
    """What is taken: spans of rows by names and lines, and columns by the lines that branch off."""

    spans: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    columns: list[tuple[float, int, int]] = field(default_factory=list)

    def free(self, row: int, begin: float, end: float) -> bool:
        """Whether nothing stands in this part of a row."""
        if any(begin < b and a < end for a, b in self.spans.get(row, [])):
            return False
        return not any(begin < x < end and low < row < high for x, low, high in self.columns)

    def reachable(self, x: float, start: int, row: int) -> bool:
        """Whether a line can go from one row to another at this place without crossing anything."""
        low, high = min(start, row), max(start, row)
        return not any(a < x < b for between in range(low + 1, high) for a, b in self.spans.get(between, []))

    def take(self, row: int, begin: float, end: float) -> None:
        """Stand in a part of a row."""
        self.spans.setdefault(row, []).append((begin, end))


@dataclass(frozen=True)
class Place:
    """Where a node's dot is."""

    x: float
    y: float


@dataclass(frozen=True)
class Layout:
    """The picture's geometry; `bands` are where the groups of branches begin and end."""

    axis: Axis
    places: dict[str, Place]
    bands: list[tuple[tuple[Branch, ...], float, float]]
    width: float
    height: float


def layout(tree: Tree, *, row_height: float = 19.0, top: float = 96.0, between: float = 26.0) -> Layout:
    """Place all nodes of a tree."""
    nodes = list(tree.nodes.values())
    axis = axis_of(nodes)
    places: dict[str, Place] = {}
    bands = []
    y, width = top, axis.end
    for band in BANDS:
        rows = _Band(tree, axis, band).rows()
        low, high = min(rows.values()), max(rows.values())
        for name, row in rows.items():
            places[name] = Place(axis.x(tree.nodes[name].time), y + (row - low + 0.5) * row_height)
            width = max(width, places[name].x + reach(tree.nodes[name]))
        bottom = y + (high - low + 1) * row_height
        bands.append((band, y, bottom))
        y = bottom + between
    return Layout(axis, places, bands, width + LEFT, y + 30)


def reach(node: Node) -> float:
    """How far a node's name goes to the right of its dot."""
    return LEAD + text_width(node.title, label_size(node), node.kind == "architecture")


class _Band:
    """Gives rows to the nodes of one group of branches."""

    def __init__(self, tree: Tree, axis: Axis, band: tuple[Branch, ...]) -> None:
        self.tree = tree
        self.axis = axis
        self.members = {node.name for node in tree.nodes.values() if band_of(tree, node) == band}
        self.taken = Rows()
        self.placed: dict[str, int] = {}

    def rows(self) -> dict[str, int]:
        """Return the row of every node."""
        for node in self.tree.nodes.values():
            if node.name in self.members and self.inner_parent(node) is None:
                row = next(row for row in _outwards(0) if self.fits(node, row, self.x(node) - GAP))
                self.place(node, row, self.x(node) - GAP)
        return self.placed

    def x(self, node: Node) -> float:
        return self.axis.x(node.time)

    def inner_parent(self, node: Node) -> Node | None:
        parent = self.tree.parent(node)
        return parent if parent is not None and parent.name in self.members else None

    def children(self, node: Node) -> list[Node]:
        return [child for child in self.tree.children[node.name] if child.name in self.members]

    def weight(self, node: Node) -> int:
        return 1 + sum(self.weight(child) for child in self.children(node))

    def end(self, node: Node) -> float:
        return self.x(node) + reach(node) + GAP

    def fits(self, node: Node, row: int, begin: float) -> bool:
        return self.taken.free(row, begin, self.end(node))

    def heir(self, node: Node, row: int) -> Node | None:
        """The child that goes on in this row."""
        found = [
            c for c in self.children(node) if self.x(c) - LEAD > self.end(node) and self.fits(c, row, self.end(node))
        ]
        found = [c for c in found if c.kind == "architecture" or self.weight(c) > 1 or len(self.children(node)) == 1]
        return max(found, key=self.weight, default=None)

    def place(self, node: Node, row: int, begin: float) -> None:
        """Place a node, the line of its heirs, and all that branches off from it."""
        chain = []
        current: Node | None = node
        while current is not None:
            self.placed[current.name] = row
            self.taken.take(row, begin, self.end(current))
            chain.append(current)
            begin = self.end(current)
            current = self.heir(current, row)
        for parent in reversed(chain):
            for child in sorted(self.children(parent), key=lambda c: (-c.time, self.weight(c))):
                if child.name not in self.placed:
                    self.branch_off(parent, child, row)

    def branch_off(self, parent: Node, child: Node, row: int) -> None:
        """Find a row near by; one that a line reaches without crossing another, if there is one."""
        x = self.x(parent)
        free = [there for there in _outwards(row, 60) if there != row and self.fits(child, there, x)]
        there = next((there for there in free if self.taken.reachable(x, row, there)), free[0])
        self.taken.columns.append((x, min(row, there), max(row, there)))
        self.place(child, there, x)


def band_of(tree: Tree, node: Node) -> tuple[Branch, ...]:
    """The group of branches that a node stands in; mixtures stand with what they came from."""
    branch = tree.branch(node)
    parent = tree.parent(node)
    if branch == "mixture" and parent is not None:
        return band_of(tree, parent)
    return next(band for band in BANDS if branch in band)


def _outwards(row: int, far: int = 200) -> Iterator[int]:
    """Yield a row and those around it, the nearest first."""
    yield row
    for distance in range(1, far):
        yield row + distance
        yield row - distance
