"""The picture of the tree: nothing overlaps, nothing is lost, nothing is fetched from elsewhere."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import combinations

from etymon.lineage import tree
from etymon.lineage.layout import LEAD, label_size, layout, text_width
from etymon.lineage.picture import picture


def test_no_name_covers_another_and_none_leaves_the_picture() -> None:
    nodes = tree()
    plan = layout(nodes)
    boxes = {}
    for node in nodes.nodes.values():
        place, size = plan.places[node.name], label_size(node)
        right = place.x + LEAD + text_width(node.title, size, node.kind == "architecture")
        boxes[node.name] = (place.x - 5, place.y - size / 2, right, place.y + size / 2)
    for (a, one), (b, two) in combinations(boxes.items(), 2):
        apart = one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
        assert apart, f"{a} covers {b}"
    assert all(x0 > 0 and x1 < plan.width and y0 > 0 and y1 < plan.height for x0, y0, x1, y1 in boxes.values())


def test_time_runs_to_the_right() -> None:
    nodes = tree()
    plan = layout(nodes)
    ordered = sorted(nodes.nodes.values(), key=lambda node: node.time)
    assert [plan.places[node.name].x for node in ordered] == sorted(plan.places[node.name].x for node in ordered)


def test_every_node_is_drawn_once_with_a_line_from_its_parent() -> None:
    nodes = tree()
    root = ElementTree.fromstring(picture(nodes))
    drawn = [element.get("data-name") for element in root.iter() if element.get("data-name")]
    lines = [element.get("data-to") for element in root.iter() if element.get("data-to")]
    assert sorted(drawn) == sorted(nodes.nodes)
    assert sorted(lines) == sorted(node.name for node in nodes.nodes.values() if node.parents)
