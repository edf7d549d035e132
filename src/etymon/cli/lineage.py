"""`etymon lineage`: the family tree, one of its nodes, and what differs between two models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.console import Console

    from etymon.lineage import Change, Facts, Node, Tree
    from etymon.spec import ModelSpec

COLOURS = {
    "counts": "white",
    "recurrent": "green",
    "encoder": "magenta",
    "encoder-decoder": "yellow",
    "decoder": "cyan",
    "mixture": "red",
    "senses": "blue",
}


class Named(TyperGroup):
    """A group of commands whose first argument may also be the name of a model, which `show` then takes."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Send what is no command to `show`."""
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])


app = typer.Typer(cls=Named, invoke_without_command=True)


@app.callback()
def lineage(
    ctx: typer.Context,
    html: Annotated[Path | None, typer.Option(help="Write the tree as a page to look around in.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the tree as a picture.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table of families, between its marks.")] = None,
) -> None:
    """Show the family tree of language models; what changed is computed from their specs.

    etymon lineage                      the whole tree

    etymon lineage llama                one node: where it came from, what came of it

    etymon lineage diff gpt3 llama      the fields that differ
    """
    if ctx.invoked_subcommand is not None:
        return
    from etymon.files import write_text
    from etymon.lineage import tree
    from etymon.lineage.page import page
    from etymon.lineage.picture import picture
    from etymon.lineage.table import filled

    if html is None and svg is None and markdown is None:
        _print_tree(tree())
    for path, written in ((html, page), (svg, picture)):
        if path is not None:
            write_text(path, written(tree()))
            print(f"wrote {path}")
    if markdown is not None:
        write_text(markdown, filled(tree(), markdown))
        print(f"wrote {markdown}")


@app.command()
def diff(
    one: Annotated[str, typer.Argument(help="A node of the tree, a published size, a recipe, a run or a checkpoint.")],
    other: Annotated[str, typer.Argument(help="Likewise.")],
    sizes: Annotated[bool, typer.Option("--sizes", help="Compare numbers too, not only the design.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the fields in which two models differ.

    Families are compared as designs, at their two published sizes that are closest; two sizes, runs or checkpoints
    with their numbers too.

    etymon lineage diff gpt3 llama

    etymon lineage diff llama-7b llama2-70b
    """
    from rich.console import Console

    from etymon.lineage import changes, phrase

    a, b, exact = _pair(one, other)
    found = changes(a, b, sizes=sizes or exact)
    if as_json:
        told = [{"field": c.where, "before": c.before, "after": c.after} for c in found]
        print(json.dumps({"before": a.name, "after": b.name, "changes": told}, ensure_ascii=False, indent=2))
        return
    console = Console(highlight=False)
    print_changes(console, found, a, b)
    if found and not exact:
        console.print(f"[dim]in short:[/] {phrase(found)}")


@app.command(hidden=True)
def show(name: Annotated[str, typer.Argument(help="A node of the tree, or a published size.")]) -> None:
    """Show one node of the tree: where it came from, what changed, what came of it."""
    from rich.console import Console
    from rich.table import Table

    from etymon.lineage import Facts, tree
    from etymon.lineage.facts import checked, parameters, status

    nodes = tree()
    facts = Facts(nodes, nodes[name])
    node = facts.node
    console = Console(highlight=False)
    console.print(f"[bold {COLOURS[facts.branch]}]{node.title}[/]  {node.published}  {node.kind}, {facts.branch}")
    console.print(f"{node.brought}\n[dim]{node.paper}[/]\n")
    line = " → ".join(f"{each.title} [dim]{each.published[:4]}[/]" for each in nodes.ancestors(node))
    sizes = ", ".join(f"{size} [dim]{parameters(total)}[/]" for size, total in facts.sizes)
    told = f"{status(node.reference)}: {checked(node.reference)}" if node.reference else ""
    rows = {"line": line, "also of": _titles(facts.parents[1:]), "children": _titles(facts.children)}
    grid = Table.grid(padding=(0, 2, 0, 0))
    for row in (rows | {"sizes": sizes, "checked": told}).items():
        if row[1]:
            grid.add_row(*row)
    console.print(grid)
    if facts.compared is not None:
        console.print()
        print_changes(console, facts.changes, *facts.compared)
    elif facts.relative is not None:
        told = "nothing is published about its form" if node.kind == "closed" else "it has no spec of its own here"
        console.print(f"\n{told}; the nearest before it that has one is {facts.relative.title}")


def _titles(nodes: list[Node]) -> str:
    return ", ".join(f"{node.title} [dim]{node.published[:4]}[/]" for node in nodes)


def _print_tree(nodes: Tree) -> None:
    from rich.console import Console

    from etymon.lineage import Facts

    console = Console(highlight=False)
    for root in nodes.roots:
        _print_below(console, Facts(nodes, root), "", "")
    hint = "`etymon lineage NAME` shows one; `etymon lineage diff A B` compares two."
    console.print(f"\n[dim]{len(nodes.nodes)} nodes. {hint}[/]")


def _print_below(console: Console, facts: Facts, first: str, rest: str) -> None:
    """Print a node and its children; `first` stands before its own line, `rest` before those of its children."""
    from etymon.lineage import Facts

    console.print(
        f"[dim]{first}[/]{_line(facts)}", no_wrap=True, overflow="ellipsis", soft_wrap=not console.is_terminal
    )
    children = facts.tree.children[facts.node.name]
    for child in children:
        last = child is children[-1]
        _print_below(
            console, Facts(facts.tree, child), rest + ("╰ " if last else "├ "), rest + ("  " if last else "│ ")
        )


def _line(facts: Facts) -> str:
    """Return one node in a line: what changed, computed from specs, and what it brought."""
    node = facts.node
    title = f"[bold]{node.title}[/]" if node.kind == "architecture" else node.title
    said = f"  [{COLOURS[facts.branch]}]{facts.news}[/][dim] – " if facts.news else "[dim]  "
    return f"[dim]{node.published}[/]  {title}{said}{node.brought}[/]"


def print_changes(console: Console, found: list[Change], a: ModelSpec, b: ModelSpec) -> None:
    """Print the fields that differ between two specs side by side."""
    from rich.markup import escape
    from rich.table import Table

    if not found:
        console.print(f"{a.name} and {b.name} have the same design.")
        return
    table = Table("field", a.name, b.name, header_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for change in found:
        table.add_row(change.where, f"[dim]{escape(change.before)}[/]", escape(change.after))
    console.print(table)


def _pair(one: str, other: str) -> tuple[ModelSpec, ModelSpec, bool]:
    """Return the two specs that two names mean, and whether both mean one exactly."""
    from etymon.lineage import nearest, tree

    nodes = tree().nodes
    designs = [name in nodes and not _is_size(name) for name in (one, other)]
    if one in nodes and other in nodes:
        designs = [True, True]
    a, b = (_specs(name, design) for name, design in zip((one, other), designs, strict=True))
    return *nearest(a, b), not any(designs)


def _is_size(name: str) -> bool:
    from etymon.families import families

    return any(name in family.sizes for family in families().values())


def _specs(name: str, design: bool) -> list[ModelSpec]:
    """Return the specs of a node, or of the nearest before it that has one; or the one spec of anything else."""
    from etymon.cli.models import spec_of
    from etymon.errors import ConfigError
    from etymon.lineage import tree

    if not design:
        return [spec_of(name)]
    nodes = tree()
    node = nodes.nodes[name]
    found = node if node.specs or node.kind == "closed" else nodes.relative(node)
    if found is None or not found.specs:
        raise ConfigError(f"{node.title} has no spec: nothing to compare.")
    return found.specs
