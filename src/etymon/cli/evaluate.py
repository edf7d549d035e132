"""`etymon evaluate`: a run's evaluation, or a checkpoint on your files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from etymon.cli.options import Device, Settings

if TYPE_CHECKING:
    from etymon.engine import Engine


def evaluate(
    target: Annotated[str, typer.Argument(metavar="RECIPE|RUN|CHECKPOINT", help="What to evaluate.")],
    settings: Settings = None,
    documents: Annotated[
        list[str] | None, typer.Option(help="For a checkpoint: folders, globs or files to measure bits per byte on.")
    ] = None,
    conversations: Annotated[
        list[str] | None, typer.Option(help="For a checkpoint: conversations with an `answer`, or `builtin`.")
    ] = None,
    pairs: Annotated[
        list[str] | None, typer.Option(help="For an embedder: files of scored pairs, two texts and a number each.")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="For a checkpoint: at most so many of each kind.")] = 25,
    device: Device = "auto",
) -> None:
    """Measure bits per byte on held-out documents and accuracy on questions with one right answer.

    For a run, the models before and after fine-tuning and in int8 are compared, and the report is written anew.

      etymon evaluate runs/demo evaluate.questions=50

      etymon evaluate some/checkpoint --documents notes/ --conversations questions.jsonl

      etymon evaluate some/embedder --pairs sts.tsv
    """
    from etymon.errors import ConfigError
    from etymon.recipe.target import is_run

    if is_run(target) or Path(target).suffix in (".yaml", ".yml"):
        if documents or conversations or pairs:
            raise ConfigError("--documents, --conversations and --pairs are for a checkpoint; a run has its own.")
        _evaluate_run(target, settings or [])
    elif settings:
        raise ConfigError(f"{target} is a checkpoint, which takes no settings ({settings[0]}).")
    elif not documents and not conversations and not pairs:
        raise ConfigError(f"Evaluate {target} on what? Give --documents, --conversations or both; or --pairs.")
    else:
        _evaluate_checkpoint(target, documents or [], conversations or [], pairs or [], questions, device)


def _evaluate_run(target: str, settings: list[str]) -> None:
    from etymon.recipe.loading import load_recipe
    from etymon.recipe.run import open_run
    from etymon.recipe.stages import check, run_stages

    loaded = load_recipe(target, settings)
    check(loaded)
    with open_run(loaded) as run:
        run_stages(run, until="evaluate")
        if "report" in run.done:
            run_stages(run)


def _evaluate_checkpoint(
    target: str, documents: list[str], conversations: list[str], pairs: list[str], questions: int, device: str
) -> None:
    import etymon
    from etymon.cli.options import device_named
    from etymon.data import normalise, read_conversations, read_documents, sample
    from etymon.data.documents import Document
    from etymon.engine import Engine
    from etymon.errors import CheckpointError, DataError
    from etymon.evaluate import Task, bits_per_byte
    from etymon.spec import Embedding
    from etymon.text import Renderer

    model, tokenizer = etymon.load(target, device=device_named(device))
    if tokenizer is None:
        raise CheckpointError(f"{target} carries no tokenizer, so it cannot be evaluated on text.")
    if pairs or isinstance(model.spec.head, Embedding):
        _evaluate_embedder(target, Engine(model, tokenizer), pairs, alone=not documents and not conversations)
        return
    if model.encoder is not None:
        _evaluate_encoder(target, Engine(model, tokenizer), documents, conversations)
        return
    if documents:
        read = (Document(d.id, normalise(d.text), d.source) for d in read_documents(documents))
        scores = bits_per_byte(model, read, tokenizer).total
        error = f" ± {1.96 * scores.standard_error:.4f}" if scores.standard_error else ""
        print(f"bits per byte: {scores.bits_per_byte:.4f}{error}")
        print(f"perplexity per token: {scores.perplexity:.2f}")
        print(f"on {scores.documents:,} documents, {scores.bytes:,} bytes, {scores.tokens:,} tokens")
    if conversations:
        found = list(read_conversations(conversations))
        items = [item for split in ("train", "held_out") for item in sample(found, split, questions)]
        if not items:
            raise DataError(f"None of the conversations in {', '.join(conversations)} has an `answer` to check.")
        result = Task(items).run(Engine(model, tokenizer), Renderer(tokenizer))
        share = result.accuracy()
        low, high = share.interval
        print(f"questions: {share.correct} of {share.count} right, {share.accuracy:.1%} ({low:.1%} to {high:.1%})")


def _evaluate_encoder(target: str, engine: Engine, documents: list[str], conversations: list[str]) -> None:
    from etymon.data import normalise, read_documents
    from etymon.data.documents import Document
    from etymon.errors import ConfigError
    from etymon.evaluate import pseudo_perplexity

    if engine.model.decoder is not None:
        raise ConfigError(
            f"{target} writes behind an encoder: bits per byte and questions are for decoders alone. "
            "Score pairs with Engine.score_pairs."
        )
    if conversations:
        raise ConfigError(f"{target} is an encoder: it answers no questions. Give --documents only.")
    read = (Document(d.id, normalise(d.text), d.source) for d in read_documents(documents))
    found = pseudo_perplexity(engine, read)
    print(f"pseudo-perplexity per token: {found.perplexity:.2f} (each token given all others)")
    print(f"on {found.documents:,} documents, {found.tokens:,} tokens")


def _evaluate_embedder(target: str, engine: Engine, pairs: list[str], *, alone: bool) -> None:
    from etymon.data import read_records
    from etymon.errors import ConfigError
    from etymon.evaluate import similarity_of_pairs
    from etymon.spec import Embedding

    if not isinstance(engine.model.spec.head, Embedding):
        raise ConfigError(f"{target} gives no vector for a text: scored pairs are for embedders.")
    if not pairs or not alone:
        raise ConfigError(f"{target} is an embedder: give --pairs only, files of two texts and a score each.")
    for path in pairs:
        for found in similarity_of_pairs(engine, list(read_records([path]))):
            print(f"{path}: {found}, {found.count:,} pairs")
