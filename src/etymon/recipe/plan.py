"""What a run would do, without doing it: `--dry-run`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from etymon.data import BuiltinConversations, DocumentSet, TokenShards, builtin_conversations, read_conversations
from etymon.errors import DataError
from etymon.evaluate import wording
from etymon.nn import build, count
from etymon.objectives import objective_config
from etymon.recipe import budget, inputs, memory, records, scale, stages
from etymon.recipe.loading import load_recipe
from etymon.recipe.run import STATE, Run, changed_keys
from etymon.recipe.schema import LoadModel, LoadTokenizer, PretrainSection, Recipe, TrainSection
from etymon.spec import ModelSpec
from etymon.text import Rendered, Renderer, Tokenizer
from etymon.train import Cosine, InverseSquareRoot, Linear, OneCycle, Tokens, WarmupStableDecay
from etymon.train.optimizers import plan_groups
from etymon.train.schedules import steps_of
from etymon.train.warmup import Warmups

BUILTIN_BYTES = 11_000_000  # of Python 3.11; other versions differ by a few per cent


@dataclass(frozen=True)
class Corpus:
    """What is known of the documents: files and bytes before they are prepared, tokens once they are."""

    files: int
    bytes: int
    builtin: bool
    documents: int | None = None
    tokens: int | None = None

    def __str__(self) -> str:
        parts = [f"{self.files:,} files, {wording.size(self.bytes)}"] if self.files else []
        parts += [f"the built-in corpus, about {wording.size(BUILTIN_BYTES)}"] if self.builtin else []
        if self.documents is not None:
            parts = [f"{self.documents:,} documents to train on, {wording.size(self.bytes)}"]
        return " and ".join(parts) + (f", {self.tokens:,} tokens" if self.tokens is not None else "")


def print_plan(recipe: Recipe, console: Console) -> None:
    """Check the recipe as a run would, and print what the run would do. Raises what `check_inputs` raises."""
    stages.refuse_sweep(recipe)
    device = stages.device_of(recipe)
    stages.check_inputs(recipe, device)
    run = Run(recipe.directory, recipe)
    tokenizer = _tokenizer(run)
    spec = inputs.model_spec(recipe, tokenizer)
    corpus = _corpus(run)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _rows(recipe, spec, corpus, device):
        table.add_row(label, value)
    console.print(table)
    if recipe.published is not None:
        console.print(_scale(recipe))
    if recipe.sft is not None:
        console.print(_sample(run, tokenizer))


def _rows(recipe: Recipe, spec: ModelSpec, corpus: Corpus | None, device: str) -> Iterator[tuple[str, RenderableType]]:
    yield "run", f"{recipe.directory}{_existing(recipe)}"
    if recipe.minutes is not None:
        yield "time", f"{recipe.minutes:g} minutes for everything"
    if corpus is not None:
        yield "documents", str(corpus)
    if records.sources(recipe):
        yield "records", records.plan(recipe)
    if isinstance(recipe.tokenizer, LoadTokenizer):
        yield "tokenizer", f"from {recipe.tokenizer.load}"
    else:
        yield (
            "tokenizer",
            f"byte-level BPE of at most {recipe.tokenizer.vocab_size:,} tokens, learned from what is trained on",
        )
    counts = count(spec)
    origin = f"from {recipe.model.load}" if isinstance(recipe.model, LoadModel) else "new"
    yield (
        "model",
        f"{spec.name}, {origin}: {counts.total:,} parameters, {counts.non_embedding:,} outside embeddings and head; "
        f"{spec.trunk.depth} blocks of width {spec.dim}, vocabulary {spec.vocab:,}, context {spec.context:,}",
    )
    for name, section in recipe.stages.items():
        yield name, Group(*_stage(recipe, name, section, spec, corpus, device))
    yield "writes", _files(recipe)


def _scale(recipe: Recipe) -> Table:
    table = Table("", "published", f"scale {recipe.scaled_by:g}", box=None, padding=(0, 2))
    for row in scale.compared(recipe):
        table.add_row(*row)
    return table


def _existing(recipe: Recipe) -> str:
    if not (recipe.directory / STATE).exists():
        return ""
    changed = changed_keys(load_recipe(recipe.directory), recipe)
    if changed:
        return f" (exists with another recipe, and would be refused without --fresh: {'; '.join(changed[:4])})"
    return " (exists: would go on)"


def _stage(
    recipe: Recipe, name: str, section: TrainSection, spec: ModelSpec, corpus: Corpus | None, device: str
) -> Iterator[str]:
    context = section.context or spec.context
    if isinstance(section, PretrainSection):
        settings = objective_config(spec, section.objective).model_dump(mode="json")
        yield f"objective {settings.pop('kind')}" + "".join(f", {key} {_words(each)}" for key, each in settings.items())
    batch = section.batch_size * context
    warmups = section.warmups(context)
    steps, words = _length(recipe, name, section, warmups, corpus)
    yield f"{words}; batches of {section.batch_size} rows of {context:,} tokens = {batch:,} tokens" + (
        f", {section.micro_batch} rows at a time" if section.micro_batch else ""
    )
    if warmups.some:
        yield _growth(warmups, steps)
    yield _learning_rate(section, steps)
    yield from (f"  {group}" for group in plan_groups(build(spec, device="meta"), section.optimizer))
    need = memory.training_memory(spec, section, context)
    yield (
        f"memory about {wording.size(need.total)}: weights {wording.size(need.weights)}, gradients "
        f"{wording.size(need.gradients)}, optimizer {wording.size(need.optimizer)}, activations "
        f"{wording.size(need.activations)}; {wording.size(memory.available_memory(device))} free on {device}"
    )


def _length(
    recipe: Recipe, name: str, section: TrainSection, warmups: Warmups, corpus: Corpus | None
) -> tuple[int | None, str]:
    """Return the number of steps, where it is known already, and the budget in words."""
    if section.budget is None:
        assert recipe.minutes is not None
        others = [s for other, s in recipe.stages.items() if other != name] if name == "pretrain" else []
        spent = 0.0
        if name == "sft" and recipe.pretrain is not None:
            spent = budget.share_of(recipe.minutes * 60, 0.0, "pretrain", [section])
        seconds = budget.share_of(recipe.minutes * 60, spent, name, others)
        return None, f"about {seconds / 60:.1f} minutes (its share of {recipe.minutes:g})"
    limits = section.budget
    steps = [n for n in (limits.steps, warmups.total(limits.tokens) if limits.tokens else None) if n is not None]
    epochs_known = limits.epochs is None
    if limits.epochs is not None and name == "pretrain" and corpus is not None and corpus.tokens is not None:
        steps.append(warmups.total(round(limits.epochs * corpus.tokens)))
        epochs_known = True
    given = ", ".join(f"{value:,g} {key}" for key, value in limits.model_dump().items() if value is not None)
    if not steps or not epochs_known or limits.minutes is not None:
        return None, given
    total = min(steps)
    return total, f"{total:,} steps, {warmups.sizes(total).positions(total):,} tokens ({given})"


def _growth(warmups: Warmups, steps: int | None) -> str:
    words = []
    if warmups.batch is not None:
        words.append(f"from {warmups.batch.start} rows on over {_span(warmups.batch.length, steps)}")
    if warmups.contexts is not None:
        shorter = ", ".join(map(str, warmups.contexts.contexts))
        words.append(f"rows of {shorter} tokens over {_span(warmups.contexts.length, steps)}")
    return f"batches grow: {'; '.join(words)}"


def _span(length: int | float | Tokens, steps: int | None) -> str:
    if isinstance(length, Tokens):
        return f"{length.tokens:,} tokens"
    if isinstance(length, int):
        return f"{length:,} steps"
    return f"{steps_of(length, steps):,} steps" if steps is not None else f"{100 * length:.3g}%"


def _learning_rate(section: TrainSection, steps: int | None) -> str:
    rate, schedule = section.optimizer.words, section.schedule

    length = partial(_span, steps=steps)
    if isinstance(schedule, OneCycle):
        return f"{rate}: up over {length(schedule.rise)} from {schedule.start:g}x, then down to {schedule.final:g}x"
    words = [f"warm-up {length(schedule.warmup)}"]
    match schedule:
        case WarmupStableDecay():
            words.append(f"stable, then decay over {length(schedule.decay)} to {schedule.final:g}x")
        case Cosine() | Linear():
            over = "" if schedule.length is None else f" at {length(schedule.length)}"
            words.append(f"{schedule.kind} to {schedule.final:g}x{over}")
        case InverseSquareRoot():
            held = "" if schedule.hold is None else f" from {length(schedule.hold)} on"
            words.append(f"falling as 1/√step{held}")
    return f"{rate}: {', '.join(words)}"


def _corpus(run: Run) -> Corpus | None:
    recipe = run.recipe
    if recipe.data is None:
        return None
    files = inputs.document_files(recipe)
    builtin = any(source.kind == "builtin" for source in recipe.data.sources)
    size = sum(file.stat().st_size for file in files)
    try:
        documents = DocumentSet(run.path / "data")
    except DataError:
        return Corpus(len(files), size, builtin)
    try:
        tokens: int | None = TokenShards(stages.shards_path(run, "train")).n_tokens
    except DataError:
        tokens = None
    return Corpus(len(files), documents.n_bytes("train"), builtin, documents.count("train"), tokens)


def _tokenizer(run: Run) -> Tokenizer | None:
    trained = run.path / "tokenizer"
    return Tokenizer.load(trained) if trained.exists() else inputs.loaded_tokenizer(run.recipe)


def _sample(run: Run, tokenizer: Tokenizer | None) -> RenderableType:
    """Render the first conversation; what the model is trained to write is green and between ⟦ ⟧."""
    section = run.recipe.sft
    assert section is not None
    source = section.sources[0]
    if isinstance(source, BuiltinConversations):
        found = builtin_conversations(source.model_copy(update={"tasks": 20, "functions": 1}))
        first = found[0]
    else:
        first = next(iter(read_conversations([source])))
    note = ""
    if tokenizer is None:
        texts = [str(message["content"]) for message in first.messages]
        tokenizer = Tokenizer.train(texts, 300)
        note = " (cut into bytes: the tokenizer is not trained yet)"
    rendered = Renderer(tokenizer).render(first.messages, train_on=section.train_on)
    head = Text.assemble(
        ("\nfine-tuning sample", "bold"),
        f" {first.id}: {sum(rendered.trained)} of {len(rendered.ids)} tokens are trained, shown as ",
        ("⟦green⟧", "green"),
        note,
    )
    return Group(head, marked(rendered, tokenizer))


def marked(rendered: Rendered, tokenizer: Tokenizer) -> Text:
    """Return the text of a rendered conversation with its trained spans in green brackets."""
    text, piece, trained = Text(), bytearray(), False
    for id, flag in zip([*rendered.ids, None], [*rendered.trained, False], strict=True):
        if (flag != trained or id is None) and piece:
            shown = piece.decode("utf-8", errors="replace")
            text.append(f"⟦{shown}⟧" if trained else shown, style="green" if trained else "dim")
            piece = bytearray()
        trained = flag
        if id is not None:
            piece += tokenizer.token_bytes(id)
    return text


def _files(recipe: Recipe) -> str:
    names = ["recipe.yaml", "environment.json", "data/", "tokenizer/", *(f"{name}/" for name in recipe.stages)]
    names += [
        "model/",
        *(["hf/"] if inputs.published(recipe) else []),
        *(["int8/"] if recipe.quantize else []),
        "evaluate/",
        "report.html",
        "report.md",
    ]
    return f"below {recipe.directory}: {', '.join(names)}"


def _words(setting: object) -> object:
    """Return a setting as the plan says it: a mapping by its kind, with the rest behind."""
    if not isinstance(setting, dict) or "kind" not in setting:
        return setting
    rest = ", ".join(f"{key} {value}" for key, value in setting.items() if key != "kind")
    return f"{setting['kind']} ({rest})" if rest else setting["kind"]
