"""`etymon models`: the families that etymon knows, and what a model is made of."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from etymon.cli.options import Target

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

    from etymon.evaluate.divergence import Divergence
    from etymon.spec import ModelSpec, Stack

app = typer.Typer(no_args_is_help=True, help="Families, published sizes, and what a model is made of.")
DTYPES = (("fp32", 4), ("bf16", 2), ("int8", 1))


@app.command("list")
def list_models(
    having: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Only models that have this: moe, rope, gqa, encoder … (again: and)"),
    ] = None,
    after: Annotated[str | None, typer.Option(help="Only models published in this year or month, or later.")] = None,
    before: Annotated[str | None, typer.Option(help="Only models published earlier than this year or month.")] = None,
    sort: Annotated[str, typer.Option(help="By family, date, parameters, context or name.")] = "family",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List families and their published sizes; what a model has is computed from its spec.

    etymon models list --filter moe --after 2022

    etymon models list --filter encoder --filter tied --before 2020 --sort parameters
    """
    rows = _rows(having or [], after, before, sort)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    from etymon.lineage.facts import parameters

    table = Table("family", "size", "published", "parameters", "active", "context", "layers", "width")
    last = ""
    for row in rows:
        active = parameters(row["active"]) if row["active"] != row["parameters"] else ""
        shape = (f"{row['context']:,}", str(row["layers"]), f"{row['width']:,}")
        title = row["family"] if row["family"] != last else ""
        table.add_row(title, row["size"], row["published"], parameters(row["parameters"]), active, *shape)
        last = row["family"]
    console = Console(highlight=False)
    console.print(table)
    console.print(f"[dim]{len(rows)} models")


def _rows(having: list[str], after: str | None, before: str | None, sort: str) -> list[dict[str, Any]]:
    from etymon.errors import ConfigError
    from etymon.lineage import tree
    from etymon.lineage.features import check_features, features
    from etymon.nn import count

    for name, month in (("--after", after), ("--before", before)):
        if month is not None and not re.fullmatch(r"\d{4}(-\d\d)?", month):
            raise ConfigError(f"{name} {month}: expected a year or a month, such as 2022 or 2022-06.")
    keys = {"family": None, "date": "published", "parameters": "parameters", "context": "context", "name": "size"}
    if sort not in keys:
        raise ConfigError(f"--sort {sort}: expected one of {', '.join(keys)}.")
    found: list[dict[str, Any]] = []
    known: set[str] = set()
    for node in tree().nodes.values():
        for (_, size), spec in zip(node.sizes, node.specs, strict=False):
            has = features(spec)
            known |= has
            late_enough = after is None or node.published >= after
            if late_enough and (before is None or node.published < before) and has.issuperset(having):
                numbers = count(spec)
                row = {"family": node.title, "size": size, "published": node.published, "parameters": numbers.total}
                shape = {"context": spec.context, "layers": sum(s.depth for s in spec.stacks), "width": spec.dim}
                found.append(row | {"active": numbers.active} | shape | {"features": sorted(has)})
    check_features(having, known)
    key = keys[sort]
    return sorted(found, key=lambda row: row[key]) if key else found


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A published size, a family, a recipe, a run, or a checkpoint.")],
    context: Annotated[int | None, typer.Option(help="Show the memory of the state at this context.")] = None,
) -> None:
    """Print what a model is: its spec as a tree, its numbers beside the published ones, memory, what is new in it.

    etymon models show llama2-7b

    etymon models show runs/demo
    """
    from rich.console import Console
    from rich.table import Table

    from etymon.evaluate import wording
    from etymon.nn import count

    spec = spec_of(name)
    console = Console(highlight=False)
    console.print(_tree(spec))
    counts = count(spec)
    table = Table("dtype", "weights", "state per token", f"state at {context or spec.context:,} tokens")
    per_token, fixed = _state_numbers(spec)
    for dtype, size in DTYPES:
        state = max(size, 2)  # which is not quantised
        sizes = (size * counts.total, state * per_token, state * (per_token * (context or spec.context) + fixed))
        table.add_row(dtype, *(wording.size(n) for n in sizes))
    facts = Table.grid(padding=(0, 2, 0, 0))
    active = "" if counts.active == counts.total else f", {counts.active:,} active for each token"
    facts.add_row(
        "parameters", f"{counts.total:,} in all, {counts.non_embedding:,} outside embeddings and head{active}"
    )
    for row in _published(name, counts.total):
        facts.add_row(*row)
    console.print()
    console.print(facts)
    console.print()
    console.print(table)
    _print_descent(console, name, spec)


def _published(name: str, total: int) -> Iterator[tuple[str, str]]:
    """Yield what is known of a published size: its numbers beside ours, when it came, from whom."""
    from etymon.families import families
    from etymon.families.origin import parsed_count
    from etymon.lineage import tree

    origin = next((family.origin for family in families().values() if name in family.sizes), None)
    if origin is None:
        return
    if name in origin.counts:
        count = origin.counts[name]
        same = parsed_count(count) == total
        yield "published", f"{count:,}" if same else f"{count} (ours {total / parsed_count(count) - 1:+.1%})"
    if name in origin.claims:
        claim = origin.claims[name]
        yield "the paper says", f"{claim} (ours {total / parsed_count(claim) - 1:+.1%})"
    node = tree()[name]
    parents = ", ".join(tree().nodes[parent].title for parent in node.parents)
    yield "lineage", f"{node.title}, {node.published}, from {parents}"
    yield "paper", node.paper


def _print_descent(console: Console, name: str, spec: ModelSpec) -> None:
    """Print what differs from the parent of a published size."""
    from etymon.cli.lineage import print_changes
    from etymon.families import families
    from etymon.lineage import changes, nearest, tree

    if not any(name in family.sizes for family in families().values()):
        return
    relative = tree().relative(tree()[name])
    if relative is not None:
        before, after = nearest(relative.specs, [spec])
        console.print(f"\n[bold]What differs from {relative.title}[/]")
        print_changes(console, changes(before, after), before, after)


@app.command()
def compare(
    checkpoint: Target,
    reference: Annotated[
        str | None,
        typer.Argument(help="Another run or checkpoint, or a recording (.safetensors); without one, transformers."),
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens of the input, which are drawn at random.", min=1)] = 64,
    tolerance: Annotated[float, typer.Option(help="The largest relative difference that is none.")] = 1e-4,
    record: Annotated[Path | None, typer.Option(help="Write what every layer did to this file, too.")] = None,
) -> None:
    """Find the first layer in which two models that should be the same differ; exit code 1 if there is one.

    etymon models compare some/checkpoint

    etymon models compare runs/demo runs/demo/int8 --tolerance 0.05
    """
    import torch

    import etymon
    from etymon.evaluate import divergence
    from etymon.hub import locate
    from etymon.recipe.target import checkpoint_of

    model, _ = etymon.load(checkpoint_of(checkpoint), dtype=torch.float32)
    recorded = None
    if reference is not None and reference.endswith(".safetensors"):
        recorded, ids = divergence.read_recording(Path(reference))
    else:
        length = min(length, model.spec.context)
        ids = torch.randint(model.spec.vocab, (1, length), generator=torch.Generator().manual_seed(0))
    stream = recorded is not None and any(name.startswith(divergence.STREAM) for name in recorded)
    ours = divergence.trace(model, ids, stream=stream)
    if record is not None:
        divergence.write_recording(ours, ids, record)
        print(f"{record}: {len(ours)} places of {ids.shape[1]} tokens")
        if reference is None:
            return
    if recorded is None and reference is not None:
        other, _ = etymon.load(checkpoint_of(reference), dtype=torch.float32)
        recorded = divergence.trace(other, ids)
    elif recorded is None:
        recorded = divergence.trace_transformers(locate(checkpoint_of(checkpoint)), model, ids)
    found = divergence.compare_traces(ours, recorded, tolerance)
    _print_divergence(found, reference or "transformers")
    if found.first is not None:
        raise typer.Exit(1)


def _print_divergence(found: Divergence, reference: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("part", "places", "largest relative difference", "")
    for part, places in found.parts():
        worst = max(place.error for place in places)
        table.add_row(part, str(len(places)), f"{worst:.1e}", "same" if worst <= found.tolerance else "differs")
    console.print(table)
    first = found.first
    if first is None:
        console.print(f"The same as {reference} at all {len(found.places)} places that were compared.")
        return
    inside = Table("in this part", "relative difference", "")
    for place in next(places for part, places in found.parts() if part == first.part and first in places):
        verdict = "same" if place.error <= found.tolerance else "first" if place == first else "differs"
        inside.add_row(place.name, f"{place.error:.1e}", verdict)
    console.print(inside)
    console.print(f"It differs from {reference} first at {first.name}.")


def _state_numbers(spec: ModelSpec) -> tuple[int, int]:
    """Return the numbers that a state holds of every token, and those that it holds whatever the length."""
    from etymon.spec import (
        GRU,
        LSTM,
        Attention,
        ChannelMix,
        DualSSM,
        Elman,
        LatentAttention,
        SelectiveSSM,
        TimeMix,
        Window,
    )

    per_token = fixed = 0
    for sub in spec.decoder.subs() if spec.decoder else ():
        op = sub.op
        match op:
            case Attention():
                per_token += 2 * op.kv_width
            case LatentAttention():
                per_token += op.rank + op.rope.dim
            case Elman() | GRU() | LSTM():
                fixed += op.width * (2 if isinstance(op, LSTM) else 1)
            case Window():
                fixed += (op.size - 1) * spec.dim
            case SelectiveSSM():
                fixed += op.inner * (op.kernel - 1 + op.state)
            case DualSSM():
                fixed += op.conv_width * (op.kernel - 1) + op.inner * op.state
            case TimeMix():
                fixed += spec.dim + 3 * op.hidden
            case ChannelMix():
                fixed += spec.dim
    return per_token, fixed


def spec_of(name: str) -> ModelSpec:
    """Return the spec that a name means: a published size, a recipe, a run, or a checkpoint."""
    from etymon.errors import ConfigError, suggest
    from etymon.families import families
    from etymon.hub.gguf import open_gguf
    from etymon.hub.gguf_models import read_spec as read_gguf_spec
    from etymon.recipe.inputs import loaded_tokenizer, model_spec, read_spec
    from etymon.recipe.loading import load_recipe
    from etymon.recipe.target import checkpoint_of, is_run

    sizes = {size: family for family in families().values() for size in family.sizes}
    if name in sizes:
        return sizes[name].spec(name)
    if name in families():
        raise ConfigError(f"{name} is a family; its sizes are: {', '.join(families()[name].sizes)}.")
    if Path(name).suffix in (".yaml", ".yml"):
        recipe = load_recipe(name)
        return model_spec(recipe, loaded_tokenizer(recipe))
    if Path(name).suffix == ".gguf" and Path(name).is_file():
        with open_gguf(Path(name)) as file:
            return read_gguf_spec(file)[0]
    if is_run(name):
        return read_spec(checkpoint_of(name))
    if Path(name).exists() or "/" in name:
        return read_spec(name)
    raise ConfigError(f"There is no model {name!r}.{suggest(name, sizes)} `etymon models list` shows them.")


def _tree(spec: ModelSpec) -> Tree:
    from rich.tree import Tree

    tree = Tree(f"[bold]{spec.name}[/bold]  {spec.family}, vocabulary {spec.vocab:,}, width {spec.dim:,}, "
                f"context {spec.context:,}")  # fmt: skip
    tree.add(f"embed  {_value(spec.embed)}")
    if spec.encoder_embed is not None:
        tree.add(f"encoder embed  {_value(spec.encoder_embed)}")
    for name, stack in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        if stack is not None:
            _add_stack(tree, name, stack, spec.dim)
    tree.add(f"head  {_value(spec.head)}")
    return tree


def _add_stack(tree: Tree, name: str, stack: Stack, dim: int) -> None:
    from etymon.nn.counting import count_block

    again = "" if stack.repeats == 1 else f", {stack.repeats} times with the same weights"
    shown = tree.add(f"{name}  {_value(stack.visibility)}{again}")
    if stack.relative is not None:
        shown.add(f"relative  {_value(stack.relative)}")
    blocks, widths = stack.blocks, stack.widths(dim)
    period = _period(blocks)
    inside = shown if period == len(blocks) else shown.add(f"{len(blocks)} blocks: these {period} in turn")
    start = 0
    while start < period:
        stop = start
        while stop < period and blocks[stop] == blocks[start]:
            stop += 1
        own, _ = count_block(blocks[start], widths[start], stack.visibility)
        repeated = inside.add(f"{stop - start} × block, {own:,} parameters each")
        for sub in blocks[start].subs:
            branch = repeated.add(f"{sub.op.name}  {_value(sub.op)}")
            for field in dataclasses.fields(sub.op):
                if hasattr(inner := getattr(sub.op, field.name), "blocks"):
                    _add_stack(branch, field.name, inner, getattr(sub.op, "dim", dim))
            for place in ("pre", "branch", "post"):
                if (norm := getattr(sub, place)) is not None:
                    branch.add(f"{place}  {_value(norm)}")
        start = stop
    if stack.final_norm is not None:
        shown.add(f"final norm  {_value(stack.final_norm)}")


def _period(blocks: tuple[Any, ...]) -> int:
    """Return after how many blocks the row begins again; their number, where it does not or all are equal."""
    if len(set(blocks)) > 1:
        for n in range(2, len(blocks) // 2 + 1):
            if all(block == blocks[i % n] for i, block in enumerate(blocks)):
                return n
    return len(blocks)


def _value(value: Any) -> str:
    """Write a dataclass on one line, without the fields that change nothing."""
    if not dataclasses.is_dataclass(value):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    fields = [(f, getattr(value, f.name)) for f in dataclasses.fields(value) if f.name != "encoder"]
    told = ((f, item) for f, item in fields if item not in (None, "") and not (item == f.default and item in (0, 1)))
    shown = ", ".join(f"{f.name}={_value(item)}" for f, item in told)
    return f"{type(value).__name__}({shown})" if shown else type(value).__name__
