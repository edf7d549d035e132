"""The tree as a picture (SVG) that follows the reader's light or dark screen."""

from __future__ import annotations

from html import escape
from importlib import resources

from etymon.lineage.facts import Facts
from etymon.lineage.layout import LEAD, LEFT, Layout, layout, reach, text_width
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
PALETTE = {  # light, dark
    "paper": ("#fcfcfa", "#14171c"),
    "ink": ("#1d2127", "#e8eaee"),
    "soft": ("#69707c", "#98a0ad"),
    "grid": ("#e4e4de", "#282d36"),
    "band": ("#f5f5f0", "#191d23"),
    "counts": ("#6b7280", "#a5adba"),
    "recurrent": ("#2a8a55", "#5cc98b"),
    "encoder": ("#a0459b", "#d98ad4"),
    "encoder-decoder": ("#ad7410", "#e5b04c"),
    "decoder": ("#1f6fb8", "#6db3f2"),
    "mixture": ("#cf4338", "#f27d72"),
    "senses": ("#5a6bd8", "#9aa6ff"),
}
FONT = 'Inter, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif'
SIDES = ("Recurrence", "Encoders", "Encoder and decoder", "Decoders", "Other senses")


def palette(theme: str) -> str:
    """Return a theme's colours as a block of CSS."""
    colours = " ".join(f"--{name}: {pair[theme == 'dark']};" for name, pair in PALETTE.items())
    return f"{{ {colours} }}"


def picture(tree: Tree, *, framed: bool = True) -> str:
    """Return the whole tree as an SVG document; without its frame, for a page that has a head and colours."""
    plan = layout(tree)
    top = 0 if framed else 44
    size = f'width="{plan.width:.0f}" height="{plan.height - top:.0f}"'
    size += f' viewBox="0 {top} {plan.width:.0f} {plan.height - top:.0f}"'
    style = (resources.files("etymon.lineage") / "picture.css").read_text(encoding="utf-8")
    if framed:
        dark = f"@media (prefers-color-scheme: dark) {{ svg {palette('dark')} }}"
        style = f"svg {palette('light')}\n{dark}\nsvg {{ font-family: {FONT} }}\n{style}"
    nodes = tree.nodes.values()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="The lineage of language models">',
        f"<style>\n{style}</style>",
        f'<rect class="paper" width="{plan.width:.0f}" height="{plan.height:.0f}"/>',
        *_bands(plan),
        *_years(plan),
        *(_head(tree) if framed else ()),
        *(_edge(tree, plan, node) for node in nodes if node.parents),
        *(_node(Facts(tree, node), plan) for node in nodes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _bands(plan: Layout) -> list[str]:
    found = []
    for (branches, top, bottom), side in zip(plan.bands, SIDES, strict=True):
        height = bottom - top + 16
        found.append(f'<rect class="band" y="{top - 8:.1f}" width="{plan.width:.0f}" height="{height:.1f}"/>')
        found.append(
            f'<text class="side {branches[-1] if len(branches) == 2 and "counts" in branches else branches[0]}" '
            f'x="{LEFT}" y="{bottom - 2:.1f}">{side.upper()}</text>'
        )
    return found


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
    known = sum(bool(node.specs or node.file) for node in tree.nodes.values())
    under = f"{len(tree.nodes)} models, {known} of them built here; every name stands in the month when it appeared."
    found = [
        f'<text class="title" x="{LEFT}" y="36">The lineage of language models</text>',
        f'<text class="under" x="{LEFT}" y="58">{under}</text>',
    ]
    dots = '<circle class="dot" cx="{x}" cy="{y}" r="4.8"/>', '<circle class="dot" cx="{x}" cy="{y}" r="3.2"/>'
    open_dot = '<circle class="dot open" cx="{x}" cy="{y}" r="4.8"/>'
    kinds = {"built here": dots[0], "not built here": open_dot, "checkpoint of a parent's form": dots[1]}
    kinds["way of training"] = _diamond(0, 0).replace("<path", '<path transform="translate({x} {y})"')
    rows: list[list[tuple[str, str, str]]] = [
        [(branch, name, dots[0]) for branch, name in NAMES.items()],
        [("counts", name, dot) for name, dot in kinds.items()],
    ]
    for y, row in zip((30, 54), rows, strict=True):
        x = 620.0
        for branch, name, dot in row:
            mark = dot.format(x=x, y=y)
            found.append(f'<g class="{branch}">{mark}<text class="key" x="{x + 11}" y="{y}">{escape(name)}</text></g>')
            x += 38 + text_width(name, 12, bold=False)
    return found


def _edge(tree: Tree, plan: Layout, node: Node) -> str:
    parent = tree.nodes[node.parents[0]]
    a, b = plan.places[parent.name], plan.places[node.name]
    near = _band(plan, a.y) == _band(plan, b.y)
    corner = min(7.0, abs(b.y - a.y) / 2, abs(b.x - a.x) / 2)
    if a.y == b.y:
        path = f"M{a.x + reach(parent) + 3:.1f} {a.y:.1f}H{b.x:.1f}"
    elif near and b.x == a.x:
        path = f"M{a.x:.1f} {a.y:.1f}V{b.y:.1f}"
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
        style = "dot" if node.file or node.specs or node.kind == "checkpoint" else "dot open"
        dot = f'<circle class="{style}" cx="{place.x:.1f}" cy="{place.y:.1f}" r="{radius}"/>'
    told = facts.news or node.brought
    return (
        f'<g class="node {facts.branch} {node.kind}" data-name="{escape(node.name)}">'
        f"<title>{escape(node.title)}, {node.published}: {escape(told)}</title>{dot}"
        f'<text x="{place.x + LEAD:.1f}" y="{place.y:.1f}">{escape(node.title)}</text></g>'
    )


def _diamond(x: float, y: float) -> str:
    return f'<path class="dot" d="M{x - 4:.1f} {y:.1f}L{x:.1f} {y - 4:.1f}L{x + 4:.1f} {y:.1f}L{x:.1f} {y + 4:.1f}Z"/>'
