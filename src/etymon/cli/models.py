"""`etymon models`: the families that etymon knows, and what a model is made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.tree import Tree

    from etymon.spec import ModelSpec, Stack

app = typer.Typer(no_args_is_help=True, help="Families, published sizes, and what a model is made of.")
DTYPES = (("fp32", 4), ("bf16", 2), ("int8", 1))


@app.command("list")
def list_models() -> None:
    """List families and their published sizes with parameter counts.

    etymon models list
    """
    from rich.console import Console
    from rich.table import Table

    from etymon.evaluate import wording
    from etymon.families import families
    from etymon.nn import count

    table = Table("family", "size", "parameters", "context", "layers", "width")
    for family in families().values():
        for i, size in enumerate(family.sizes):
            spec = family.spec(size)
            shape = (f"{spec.context:,}", str(len(spec.trunk.blocks)), str(spec.dim))
            table.add_row("" if i else family.title, size, wording.count(count(spec).total), *shape)
    Console(highlight=False).print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A published size, a family, a recipe, a run, or a checkpoint.")],
    context: Annotated[int | None, typer.Option(help="Show the memory of the state at this context.")] = None,
) -> None:
    """Print what a model is: its spec as a tree, parameter counts, memory.

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
    console.print(f"\nparameters  {counts.total:,} in all, {counts.non_embedding:,} outside embeddings and head")
    table = Table("dtype", "weights", "state per token", f"state at {context or spec.context:,} tokens")
    per_token, fixed = _state_numbers(spec)
    for dtype, size in DTYPES:
        state = max(size, 2)  # which is not quantised
        sizes = (size * counts.total, state * per_token, state * (per_token * (context or spec.context) + fixed))
        table.add_row(dtype, *(wording.size(n) for n in sizes))
    console.print(table)


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
    start = 0
    while start < len(blocks):
        stop = start
        while stop < len(blocks) and blocks[stop] == blocks[start]:
            stop += 1
        own, _ = count_block(blocks[start], widths[start], stack.visibility)
        repeated = shown.add(f"{stop - start} × block, {own:,} parameters each")
        for sub in blocks[start].subs:
            branch = repeated.add(f"{sub.op.name}  {_value(sub.op)}")
            for place in ("pre", "branch", "post"):
                if (norm := getattr(sub, place)) is not None:
                    branch.add(f"{place}  {_value(norm)}")
        start = stop
    if stack.final_norm is not None:
        shown.add(f"final norm  {_value(stack.final_norm)}")


def _value(value: Any) -> str:
    """Write a dataclass on one line, without the fields that are absent."""
    if not dataclasses.is_dataclass(value):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    shown = ", ".join(f"{name}={_value(item)}" for name, item in fields if item not in (None, ""))
    return f"{type(value).__name__}({shown})" if shown else type(value).__name__
