"""The tree as a picture (SVG) that follows the reader's light or dark screen."""

from __future__ import annotations

from html import escape
from importlib import resources

from etymon.lineage.facts import Facts
from etymon.lineage.layout import LEAD, LEFT, Layout, layout
from etymon.lineage.nodes import Branch, Node, Tree

NAMES: dict[Branch, str] = {
    "counts": "counts",
    "recurrent": "recurrent, state space",
    "encoder": "encoder",
    "encoder-decoder": "encoder-decoder",
    "decoder": "decoder",
    "mixture": "mixture of experts",
    "senses": "other senses",
}
STYLE = (resources.files("etymon.lineage") / "picture.css").read_text(encoding="utf-8")


def picture(tree: Tree) -> str:
    """Return the whole tree as an SVG document."""
    return drawn(tree, layout(tree))


def drawn(tree: Tree, plan: Layout) -> str:
    """Draw a tree according to a plan."""
    size = f'width="{plan.width:.0f}" height="{plan.height:.0f}" viewBox="0 0 {plan.width:.0f} {plan.height:.0f}"'
    nodes = tree.nodes.values()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="The lineage of language models">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{plan.width:.0f}" height="{plan.height:.0f}"/>',
        *_bands(plan),
        *_years(plan),
        *_head(tree),
        *(_edge(tree, plan, node) for node in nodes if node.parents),
        *(_node(Facts(tree, node), plan) for node in nodes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _bands(plan: Layout) -> list[str]:
    return [
        f'<rect class="band" x="0" y="{top - 8:.1f}" width="{plan.width:.0f}" height="{bottom - top + 16:.1f}"/>'
        for _, top, bottom in plan.bands
    ]


def _years(plan: Layout) -> list[str]:
    found = []
    starts = plan.axis.starts
    top, bottom = plan.bands[0][1] - 8, plan.bands[-1][2] + 8
    for year, x in starts.items():
        width = starts.get(year + 1, plan.axis.end) - x
        if width > 30 or year % 5 == 0:
            found.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
            old = "" if width > 30 else " old"
            for y in (top - 9, bottom + 16):
                found.append(f'<text class="year{old}" x="{x + width / 2:.1f}" y="{y:.1f}">{year}</text>')
    return found


def _head(tree: Tree) -> list[str]:
    known = sum(bool(node.specs) for node in tree.nodes.values())
    under = (
        f"{len(tree.nodes)} models, {known} of them built from specs; each name stands in the month when it appeared"
    )
    found = [
        f'<text class="title" x="{LEFT}" y="34">The lineage of language models</text>',
        f'<text class="under" x="{LEFT}" y="54">{under}</text>',
    ]
    x = 470.0
    for branch, name in NAMES.items():
        found.append(f'<g class="{branch}"><circle class="dot" cx="{x}" cy="30" r="4.5"/>')
        found.append(f'<text class="key" x="{x + 10}" y="30">{name}</text></g>')
        x += 34 + 6.4 * len(name)
    x = 470.0
    marks = {"with a spec": "dot", "without one": "dot open"}
    for name, style in marks.items():
        found.append(f'<g class="counts"><circle class="{style}" cx="{x}" cy="52" r="4.5"/>')
        found.append(f'<text class="key" x="{x + 10}" y="52">{name}</text></g>')
        x += 34 + 6.4 * len(name)
    found.append(f'<g class="counts"><circle class="dot" cx="{x}" cy="52" r="3"/>')
    found.append(f'<text class="key" x="{x + 10}" y="52">checkpoint of its parent</text></g>')
    x += 190
    found.append(f'<g class="counts">{_diamond(x, 52)}<text class="key" x="{x + 10}" y="52">way of training</text></g>')
    return found


def _edge(tree: Tree, plan: Layout, node: Node) -> str:
    parent = tree.nodes[node.parents[0]]
    a, b = plan.places[parent.name], plan.places[node.name]
    near = abs(_band(plan, a.y) - _band(plan, b.y)) == 0
    corner = min(7.0, abs(b.y - a.y) / 2, abs(b.x - a.x) / 2)
    if a.y == b.y:
        path = f"M{a.x:.1f} {a.y:.1f}H{b.x:.1f}"
    elif near and b.x > a.x:
        turn = corner if b.y > a.y else -corner
        path = f"M{a.x:.1f} {a.y:.1f}V{b.y - turn:.1f}q0 {turn:.1f} {corner:.1f} {turn:.1f}H{b.x:.1f}"
    else:
        middle = max(a.x + 20, b.x - 30)
        path = f"M{a.x:.1f} {a.y:.1f}C{middle:.1f} {a.y:.1f} {a.x:.1f} {b.y:.1f} {b.x:.1f} {b.y:.1f}"
    far = "" if near else " far"
    return f'<path class="edge {tree.branch(node)} {node.kind}{far}" data-to="{escape(node.name)}" d="{path}"/>'


def _band(plan: Layout, y: float) -> int:
    return next(i for i, (_, top, bottom) in enumerate(plan.bands) if top <= y <= bottom)


def _node(facts: Facts, plan: Layout) -> str:
    node, place = facts.node, plan.places[facts.node.name]
    if node.kind == "method":
        dot = _diamond(place.x, place.y)
    else:
        radius = 4.8 if node.kind == "architecture" else 3.2
        style = "dot" if node.specs or node.kind == "checkpoint" else "dot open"
        dot = f'<circle class="{style}" cx="{place.x:.1f}" cy="{place.y:.1f}" r="{radius}"/>'
    told = facts.news or node.brought
    return (
        f'<g class="node {facts.branch} {node.kind}" data-name="{escape(node.name)}">'
        f"<title>{escape(node.title)}, {node.published}: {escape(told)}</title>{dot}"
        f'<text x="{place.x + LEAD:.1f}" y="{place.y:.1f}">{escape(node.title)}</text></g>'
    )


def _diamond(x: float, y: float) -> str:
    return f'<path class="dot" d="M{x - 4:.1f} {y:.1f}L{x:.1f} {y - 4:.1f}L{x + 4:.1f} {y:.1f}L{x:.1f} {y + 4:.1f}Z"/>'
