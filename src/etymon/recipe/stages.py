"""The stages of a run, in order: each leaves its files in the run directory, and is skipped when they are there.

A stage is complete when the hash of everything that it depends on (its settings, the files it reads, the stages before
it) was recorded and its files exist. Training that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import etymon
from etymon.data import (
    Conversation,
    ConversationFiles,
    ConversationLoader,
    Counts,
    DocumentSet,
    Examples,
    Loader,
    TokenShards,
    prepare_documents,
    read_conversations,
    sample,
    write_conversations,
    write_shards,
)
from etymon.engine import Engine, EngineConfig
from etymon.errors import CheckpointError, ConfigError, DataError
from etymon.evaluate import (
    HeldOut,
    Measure,
    Task,
    bits_per_byte,
    drift,
    environment,
    measure,
    wording,
    write_report,
    write_samples,
)
from etymon.evaluate.model import describe, nbytes
from etymon.files import write_json
from etymon.hub import copy_future_heads, holds_future_heads, locate, read_future_heads
from etymon.nn import Model, with_head, with_visibility
from etymon.objectives import (
    CausalLM,
    Collated,
    MultiToken,
    MultiTokenConfig,
    Objective,
    Retrieval,
    choose_objective,
    trained_spec,
)
from etymon.quant import quantize_int8
from etymon.recipe import hooks, inputs, memory, records
from etymon.recipe.budget import budget_of
from etymon.recipe.progress import Working, heading, say
from etymon.recipe.run import Run, binding, fingerprint, now
from etymon.recipe.schema import (
    NOT_BY_MEZO,
    LoadModel,
    PretrainSection,
    Recipe,
    SftSection,
    TrainSection,
    TrainTokenizer,
    context_problems,
    perplexity_config,
)
from etymon.recipe.service import check_service
from etymon.text import Renderer, Tokenizer
from etymon.train import fit, held_out_loss, scale_output
from etymon.train.checkpoint import AVERAGE, load_companions, weights_of
from etymon.train.hardware import matmul_peak
from etymon.train.held_out import HELD_OUT_SEED

BASE, TUNED, SMALL = "pretrained", "fine-tuned", "int8"
DRIFT_SEQUENCES = 16


@dataclass(frozen=True)
class Stage:
    """One stage: the recipe's sections it depends on, the stages before it, the files it leaves, and its work."""

    name: str
    title: str
    sections: tuple[str, ...]
    after: tuple[str, ...]
    leaves: Callable[[Recipe], Sequence[str]]
    work: Callable[[Run], None]
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    files: Callable[[Recipe], list[Path]] = lambda recipe: []

    def fingerprint(self, run: Run) -> str:
        """Return the hash of everything that this stage depends on."""
        sections = {name: binding(run.recipe, name) for name in self.sections}
        before = {name: run.done[name].fingerprint for name in self.after if name in run.done}
        files = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in self.files(run.recipe)]
        return fingerprint(self.name, sections, before, files)


def run_stages(run: Run, *, until: str | None = None) -> None:
    """Do every stage that is wanted and not complete, up to the stage `until`.

    Raises ConfigError where the files of a complete stage have changed since, and whatever the stages raise.
    """
    if until not in ("data", "tokenizer"):
        refuse_sweep(run.recipe)
    prepare(run)
    for stage in STAGES:
        if stage.wanted(run.recipe):
            _do(stage, run)
        if stage.name == until:
            break


def refuse_sweep(recipe: Recipe) -> None:
    """Raise ConfigError for a recipe of many runs where one is meant."""
    if recipe.scaling is not None:
        with recipe.at("scaling"):
            raise ConfigError(
                f"{recipe.name} is a sweep of {len(recipe.scaling.sizes)} sizes, not one run. Run it with `etymon "
                "scaling run`, or set scaling=null and pretrain.budget."
            )


def prepare(run: Run) -> None:
    """Check what the recipe reads and whether it fits, before anything is computed; write `environment.json`."""
    device = device_of(run.recipe)
    check_inputs(run.recipe, device)
    path = run.path / "environment.json"
    if not path.exists():
        write_json(path, environment({"fp32": matmul_peak(device, "fp32")}).to_dict())


def check(recipe: Recipe) -> None:
    """Raise what can be known to be wrong with a run of the recipe, before anything is computed or written."""
    refuse_sweep(recipe)
    check_inputs(recipe, device_of(recipe))


def check_inputs(recipe: Recipe, device: str) -> None:
    """Raise an EtymonError for missing files, a model that the tokenizer or the context does not fit, or memory."""
    inputs.document_files(recipe)
    records.files(recipe)
    inputs.conversation_files(recipe)
    tokenizer = inputs.loaded_tokenizer(recipe)
    spec = inputs.model_spec(recipe, tokenizer)
    with recipe.at("model"):
        for problem in context_problems(recipe, spec):
            raise ConfigError(f"{problem}.")
        if tokenizer is not None and tokenizer.vocab_size > spec.vocab:
            raise ConfigError(
                f"The tokenizer has {tokenizer.vocab_size} tokens, but the model only {spec.vocab}: they do not belong "
                "together. Set model.vocab, or load another tokenizer."
            )
    inputs.check_objective(recipe, spec, tokenizer)
    inputs.check_groups(recipe, spec)
    for name, section in recipe.stages.items():
        with recipe.at(name):
            try:
                section.warmups(section.context or spec.context)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}.") from None
    if recipe.sft is not None and tokenizer is not None:
        Renderer(tokenizer)  # raises RenderError where there is no chat template
    memory.check_memory(recipe, spec, device)


def _do(stage: Stage, run: Run) -> None:
    now_depends = stage.fingerprint(run)
    recorded = run.done.get(stage.name)
    whole = all((run.path / name).exists() for name in stage.leaves(run.recipe))
    if recorded is not None and recorded.fingerprint == now_depends and whole:
        say(f"── {stage.title}: done before, kept")
        return
    if recorded is not None and recorded.fingerprint != now_depends and stage.files(run.recipe):
        raise ConfigError(
            f"The files that the stage {stage.name!r} of {run.path} read have changed since. Start over with --fresh, "
            "or give another directory: run=runs/other."
        )
    heading(stage.title)
    started = now()
    stage.work(run)
    run.finish(stage.name, now_depends, now() - started)
    gc.collect()


def device_of(recipe: Recipe) -> str:
    """Return the device that the recipe asks for. Raises ConfigError where there is none of that kind."""
    if recipe.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if recipe.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"device is {recipe.device}, but torch finds no CUDA device here. Use device=cpu or auto.")
    return recipe.device


# -- data and tokenizer -----------------------------------------------------------------------------------------------


def _data(run: Run) -> None:
    recipe, folder = run.recipe, run.path / "data"
    if recipe.data is not None:
        with Working("reading", "M characters", scale=1e6) as tick:
            documents = prepare_documents(recipe.data, folder, progress=tick)
        train, held_out = documents.count("train"), documents.count("held_out")
        size = documents.n_bytes("train") / 1e6
        say(f"{train:,} documents to train on ({size:,.1f} MB), {held_out:,} held out")
    if records.sources(recipe):
        say(f"{records.prepare(run, inputs.trained(recipe)):,} records of texts")
    if recipe.sft is not None:
        counts = Counts()
        number = write_conversations(read_conversations(recipe.sft.sources, counts), folder / "conversations.jsonl")
        write_json(folder / "conversations.json", {"conversations": number, **counts.to_dict()})
        say(f"{number:,} conversations")


def _tokenizer(run: Run) -> None:
    recipe, folder = run.recipe, run.path
    tokenizer = inputs.loaded_tokenizer(recipe)
    documents = DocumentSet(folder / "data") if recipe.data is not None else None
    if tokenizer is None:
        assert isinstance(recipe.tokenizer, TrainTokenizer)
        size = recipe.tokenizer.vocab_size
        tokenizer = Tokenizer.train(
            _training_texts(run, documents),
            size,
            special_tokens=inputs.control_tokens(recipe),
            max_bytes=recipe.tokenizer.sample_bytes,
        )
        say(f"learned {tokenizer.vocab_size:,} tokens")
    tokenizer.save(folder / "tokenizer")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    if documents is None:
        return
    for split in ("train", "held_out"):
        if not documents.count(split):
            continue
        with Working(f"encoding {split}", "MB", scale=1e6, total=documents.n_bytes(split)) as tick:
            shards = write_shards(documents.documents(split), tokenizer, shards_path(run, split), progress=tick)
        rate = shards.n_bytes / max(1, shards.n_tokens)
        say(f"{split.replace('_', '-')}: {shards.n_tokens:,} tokens, {rate:.2f} bytes each")


def _training_texts(run: Run, documents: DocumentSet | None) -> Iterator[str]:
    if documents is not None:
        yield from (document.text for document in documents.train())
    if records.sources(run.recipe):
        yield from (text for record in records.of(run, "train") for text in record.texts)


def shards_path(run: Run, split: str) -> Path:
    """Return where the token shards of a split lie."""
    return run.path / "data" / "shards" / split


def conversations(run: Run) -> list[Conversation]:
    """Return the conversations of this run, none where it does not fine-tune."""
    path = run.path / "data" / "conversations.jsonl"
    return list(read_conversations([ConversationFiles(path=str(path))])) if path.exists() else []


# -- training ---------------------------------------------------------------------------------------------------------


def _base_model(run: Run, section: TrainSection, tokenizer: Tokenizer) -> Model:
    """Return the model that the run starts from, in fp32 on the device."""
    device = device_of(run.recipe)
    if isinstance(run.recipe.model, LoadModel):
        return etymon.load(run.recipe.model.load, device=device, dtype=torch.float32)[0]
    spec = inputs.model_spec(run.recipe, tokenizer)
    model = etymon.build(spec, device=device, dtype=torch.float32, seed=run.recipe.seed)
    if section.optimizer.base_width is not None:
        scale_output(model, section.optimizer.base_width)
    return model


def _pretrained_model(run: Run, tokenizer: Tokenizer, section: PretrainSection) -> Model:
    """Return the model that pretraining starts from, with the head and the visibility that its objective trains."""
    model = _base_model(run, section, tokenizer)
    spec = trained_spec(model.spec, section.objective)
    if spec.head != model.spec.head:
        model = with_head(model, spec.head, run.recipe.seed)
    same = spec.trunk.visibility == model.spec.trunk.visibility
    return model if same else with_visibility(model, spec.trunk.visibility)


def trained_model(run: Run, stage: str) -> Path:
    """Return the model directory that a completed training stage ended with: its last checkpoint, or the average of the
    weights inside it."""
    try:
        name = json.loads((run.path / stage / "COMPLETE").read_text(encoding="utf-8"))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{run.path / stage} is not complete. Train it: etymon train {run.path}") from None
    return weights_of(run.path / stage / "checkpoints" / Path(str(name)).name)


def _pretrain(run: Run) -> None:
    section = run.recipe.pretrain
    assert section is not None
    tokenizer = Tokenizer.load(run.path / "tokenizer")
    model = _pretrained_model(run, tokenizer, section)
    context = section.context or model.spec.context
    objective = choose_objective(model.spec, tokenizer, section.objective)
    if isinstance(run.recipe.model, LoadModel) and holds_future_heads(locate(run.recipe.model.load)):
        drawn = "draws new ones" if isinstance(objective, MultiToken) else "does not train them"
        say(f"{run.recipe.model.load} has heads that look ahead, which are left behind: {objective.name} {drawn}")
    plain = isinstance(objective, CausalLM | MultiToken | Retrieval)
    if objective.reads == "documents":
        loader, callbacks = _document_loader(run, section, tokenizer, context, objective, plain)
    else:
        loader, said = records.loader(run, "train", objective, tokenizer, context)
        say(said)
        held_out, _ = records.loader(run, "held_out", objective, tokenizer, context)
        callbacks = [_held_out_hook(section, held_out, objective)] if held_out is not None else []
    prompts = hooks.text_prompts(tokenizer, sample_texts(run), context)
    if prompts and plain:
        callbacks.append(hooks.Sampler(tokenizer, prompts, section.sample_every))
    _fit(run, "pretrain", section, model, loader, callbacks, tokenizer, objective)


def _document_loader(
    run: Run, section: PretrainSection, tokenizer: Tokenizer, context: int, objective: Objective, plain: bool
) -> tuple[Any, list[Any]]:
    """Return the loader of the documents, and the hook that measures the held-out ones, where there are some."""
    shards = TokenShards(shards_path(run, "train"), tokenizer=tokenizer)
    loader = objective.loader(shards, section.batch_size, context, section.seed)
    if not shards_path(run, "held_out").exists():
        return loader, []
    held_out = TokenShards(shards_path(run, "held_out"), tokenizer=tokenizer)
    windows = hooks.held_out_windows(objective, held_out, section.batch_size, context, shards)
    # the loader never asks for a document's first token, so bits are per byte of what it does ask for
    per_token = held_out.n_bytes / max(1, held_out.n_tokens - held_out.n_documents)
    return loader, [_held_out_hook(section, windows, objective, per_token if plain else None)]


def _held_out_hook(
    section: PretrainSection, loader: Loader, objective: Objective, bytes_per_token: float | None = None
) -> hooks.HeldOut:
    return hooks.HeldOut(loader, section.evaluate_every, bytes_per_token, section.micro_batch, objective)


def _sft(run: Run) -> None:
    section = run.recipe.sft
    assert section is not None
    tokenizer = Tokenizer.load(run.path / "tokenizer")
    checkpoint: Path | None = None
    if run.recipe.pretrain is not None:
        checkpoint = trained_model(run, "pretrain")
        model = etymon.load(checkpoint, device=device_of(run.recipe), dtype=torch.float32)[0]
    else:
        model = _base_model(run, section, tokenizer)
        if isinstance(run.recipe.model, LoadModel):
            checkpoint = locate(run.recipe.model.load)
    objective = _tuned_objective(run, section, checkpoint)
    context = section.context or model.spec.context
    renderer, found = Renderer(tokenizer), conversations(run)
    training = [c for c in found if c.split == "train"]
    with Working("rendering", "conversations", total=len(training)) as tick:
        samples = _rendered(renderer, training, section.train_on, tick)
        loader = ConversationLoader(samples, section.batch_size, context, section.seed, section.overlength)
    write_json(run.path / "sft" / "packing.json", loader.report.to_dict())
    say(_packing(loader))
    callbacks: list[Any] = []
    held_out = hooks.held_out_conversations(found, renderer, section.batch_size, context)
    if held_out is not None:
        callbacks.append(hooks.HeldOut(held_out, section.evaluate_every, micro_batch=section.micro_batch))
    prompts = hooks.chat_prompts(renderer, sample_chats(run, found), context)
    if prompts:
        callbacks.append(hooks.Sampler(tokenizer, prompts, section.sample_every))
    _fit(run, "sft", section, model, loader, callbacks, tokenizer, objective)


def _tuned_objective(run: Run, section: SftSection, checkpoint: Path | None) -> Objective:
    """Return what fine-tuning minimises: the next token's loss, and with heads beside the checkpoint theirs."""
    if checkpoint is None or not holds_future_heads(checkpoint):
        return CausalLM()
    if section.future_heads == "dropped":
        say("the heads that look ahead are left behind, as sft.future_heads says")
        return CausalLM()
    if section.optimizer.kind == "mezo":
        raise ConfigError(f"sft: {checkpoint} has heads that look ahead, {NOT_BY_MEZO}")
    asked = None if run.recipe.pretrain is None else run.recipe.pretrain.objective
    config = asked if isinstance(asked, MultiTokenConfig) else MultiTokenConfig()
    say("the heads that look ahead are trained along, so that they fit the tuned model")
    return MultiToken.going_on(read_future_heads(checkpoint, dtype=torch.float32), config)


def _rendered(
    renderer: Renderer, found: Sequence[Conversation], train_on: Any, tick: Callable[[float], None]
) -> Iterator[Any]:
    for conversation in found:
        tick(1)
        yield renderer.render(conversation.messages, train_on=train_on)


def _packing(loader: ConversationLoader) -> str:
    report = loader.report
    cut = [f"{n:,} {what}" for what in ("dropped", "truncated", "split") if (n := getattr(report, what))]
    return (
        f"{report.samples:,} conversations in {report.rows:,} rows, {report.trained_tokens:,} of {report.tokens:,} "
        f"tokens trained, rows {report.efficiency:.0%} full" + (f"; over-long: {', '.join(cut)}" if cut else "")
    )


def _fit(
    run: Run,
    name: str,
    section: TrainSection,
    model: Model,
    loader: Any,
    callbacks: list[Any],
    tokenizer: Tokenizer,
    objective: Objective | None = None,
) -> None:
    objective = objective or CausalLM()
    config = section.train_config(budget_of(run, name, section))
    result = fit(model, loader, objective, config, run.path / name, resume=True, hooks=callbacks, tokenizer=tokenizer)
    loss = "" if result.loss is None else f", loss {result.loss:.3f}"
    say(f"{result.steps:,} steps, {result.tokens:,} tokens in {result.seconds:,.0f} s{loss}")


# -- after training ---------------------------------------------------------------------------------------------------


def final_model(run: Run) -> Path | str:
    """Return the checkpoint of the last training stage, or the loaded one where nothing trains."""
    trained = list(run.recipe.stages)
    if trained:
        return trained_model(run, trained[-1])
    assert isinstance(run.recipe.model, LoadModel)
    return run.recipe.model.load


def _model(run: Run) -> None:
    source = final_model(run)
    model = etymon.load(source, dtype=torch.float32)[0]
    tokenizer = Tokenizer.load(run.path / "tokenizer")
    etymon.save(model, tokenizer, run.path / "model", format="etymon")
    copy_future_heads(locate(source), run.path / "model")
    if inputs.published(run.recipe):
        etymon.save(model, tokenizer, run.path / "hf", format="hf")
    write_json(run.path / "evaluate" / "model.json", {**describe(model), "name": run.recipe.name})
    published = f"{run.path / 'hf'} (Hugging Face)" if inputs.published(run.recipe) else "no published format has it"
    say(f"{run.path / 'model'} (etymon), {published}")


def _quantize(run: Run) -> None:
    model, tokenizer = etymon.load(run.path / "model")
    before = nbytes(model)
    quantize_int8(model)
    etymon.save(model, tokenizer, run.path / "int8", format="etymon")
    copy_future_heads(run.path / "model", run.path / "int8")
    write_json(run.path / "evaluate" / "int8.json", {"bytes_before": before, "bytes_after": nbytes(model)})
    say(f"{run.path / 'int8'}: {wording.size(before)} → {wording.size(nbytes(model))}")


def _evaluate(run: Run) -> None:
    items = _items(run)
    for name, path in evaluated_models(run).items():
        _evaluate_model(run, name, path, items)
    if run.recipe.quantize is not None and run.recipe.data is not None and inputs.decodes(run.recipe):
        _measure_drift(run)


def evaluated_models(run: Run) -> dict[str, Path | str]:
    """Return the checkpoints to compare, by the names that the report uses."""
    recipe = run.recipe
    found: dict[str, Path | str] = {}
    if recipe.pretrain is not None:
        found[BASE] = trained_model(run, "pretrain")
    elif isinstance(recipe.model, LoadModel):
        found[BASE] = recipe.model.load
    if recipe.sft is not None:
        found[TUNED] = run.path / "model"
    if recipe.quantize is not None:
        found[SMALL] = run.path / "int8"
    return found


def _items(run: Run) -> list[Conversation]:
    """Return the questions to ask, memorised and held out, that fit the context with their answers."""
    recipe = run.recipe
    found = conversations(run)
    if not found or not recipe.evaluate.questions:
        return []
    per_kind, seed = recipe.evaluate.questions, recipe.evaluate.seed
    chosen = [*sample(found, "train", per_kind, seed), *sample(found, "held_out", per_kind, seed)]
    tokenizer = Tokenizer.load(run.path / "tokenizer")
    renderer, context = Renderer(tokenizer), _engine_context(run)
    fitting = [c for c in chosen if len(renderer.render(c.messages).ids) < context]
    if len(fitting) < len(chosen):
        say(f"{len(chosen) - len(fitting)} questions are longer than the context of {context} and are not asked")
    return fitting


def _engine_context(run: Run) -> int:
    return run.recipe.engine.context or inputs.read_spec(str(run.path / "model")).context


def _evaluate_model(run: Run, name: str, path: Path | str, items: list[Conversation]) -> None:
    recipe = run.recipe
    device = "cpu" if name == SMALL else device_of(recipe)
    model = etymon.load(path, device=device)[0]
    tokenizer = Tokenizer.load(run.path / "tokenizer")
    if not inputs.decodes(recipe):
        found = _held_out(run, name, model, tokenizer)
        found.save(run.path)
        say(f"{name}: {found}")
        return
    said = []
    if recipe.data is not None and DocumentSet(run.path / "data").count("held_out"):
        documents = DocumentSet(run.path / "data").held_out()
        config = perplexity_config(recipe, model.spec)
        bits = bits_per_byte(model, _spread(run, documents), tokenizer, config, name=name)
        bits.save(run.path)
        said.append(f"{bits.total.bits_per_byte:.4f} bits per byte")
    engine = Engine(model, tokenizer, EngineConfig(slots=32, context=_engine_context(run)))
    renderer = Renderer(tokenizer) if tokenizer.chat_template is not None else None
    if items and renderer is not None:
        result = Task(items, max_tokens=recipe.evaluate.max_tokens).run(engine, renderer, name=name)
        result.save(run.path)
        for split, words in (("memorised", "memorised"), ("held_out", "held-out")):
            share = result.accuracy(split)
            if share.count:
                said.append(f"{words} questions {share.correct}/{share.count} ({share.accuracy:.0%})")
    if renderer is not None:
        prompts = _sample_prompts(run, renderer)
        if prompts:
            tokens = recipe.evaluate.sample_tokens
            write_samples(engine, renderer, prompts, name=name, max_tokens=tokens).save(run.path)
    say(f"{name}: {', '.join(said) or 'samples only'}")


def _held_out(run: Run, name: str, model: Model, tokenizer: Tokenizer) -> HeldOut:
    """Return what a model that does not write is measured by: its objective on what was held out, and its vectors on
    the recipe's scored pairs."""
    pairs = tuple(records.similarities(run.recipe, model, tokenizer))
    section = run.recipe.pretrain
    if section is None:
        note = "nothing to measure: it neither writes nor was trained here, and there are no scored pairs"
        return HeldOut(name, None, pairs, None if pairs else note)
    objective = choose_objective(model.spec, tokenizer, section.objective)
    context = section.context or model.spec.context
    found: Any
    if objective.reads != "documents":
        found, _ = records.loader(run, "held_out", objective, tokenizer, context)
    else:
        found = _held_out_documents(run, section, tokenizer, context, objective)
    if found is None:
        what = "document" if objective.reads == "documents" else "record"
        return HeldOut(name, objective.name, pairs, None if pairs else f"nothing to measure: no {what} was held out")
    _restore_companions(run, objective, model.device)
    unit = "nats per token" if objective.reads == "documents" else "nats"
    with torch.random.fork_rng(devices=[]):  # what a generator samples is the same at every measurement
        torch.manual_seed(HELD_OUT_SEED)
        loss = held_out_loss(model, found, found.steps_per_epoch, objective=objective)
        batches: Iterator[Examples]
        if objective.reads != "documents":
            batches = records.held_out_batches(found, objective)
        else:
            collated = Collated(found, objective, HELD_OUT_SEED)
            batches = (collated.batch(step) for step in range(found.steps_per_epoch))
        count = found.steps_per_epoch * found.batch_size if objective.reads == "documents" else len(found.records)
        measures = [Measure("loss", loss, unit, None, count), *measure(model, objective, batches)]
    return HeldOut(name, objective.name, (*measures, *pairs))


def _held_out_documents(
    run: Run, section: PretrainSection, tokenizer: Tokenizer, context: int, objective: Objective
) -> Loader | None:
    """Return the objective's batches of held-out documents, None where there are none."""
    path = shards_path(run, "held_out")
    if not path.exists():
        return None
    shards, database = (TokenShards(each, tokenizer=tokenizer) for each in (path, shards_path(run, "train")))
    return hooks.held_out_windows(objective, shards, section.batch_size, context, database)


def _restore_companions(run: Run, objective: Objective, device: torch.device) -> None:
    """Let the objective have what was trained beside the model, as the last checkpoint keeps it."""
    if type(objective).companions is Objective.companions:
        return
    path = trained_model(run, "pretrain")
    checkpoint = path.parent if path.name == AVERAGE else path
    companions = objective.companions(etymon.load(checkpoint, device=device, dtype=torch.float32)[0])
    load_companions(checkpoint, companions)
    for companion in companions.values():
        companion.eval()


def _spread(run: Run, documents: Iterator[Any]) -> Iterator[Any]:
    """Yield at most `evaluate.documents` of the held-out documents, evenly over all of them."""
    total, wanted = DocumentSet(run.path / "data").count("held_out"), run.recipe.evaluate.documents
    step = max(1.0, total / wanted) if wanted else 1.0
    following = 0.0
    for number, document in enumerate(documents):
        if number >= following:
            following += step
            yield document


def _sample_prompts(run: Run, renderer: Renderer) -> list[Any]:
    context = _engine_context(run)
    texts = [text for text, _ in hooks.text_prompts(renderer.tokenizer, sample_texts(run), context)]
    chats = [question for question, _ in hooks.chat_prompts(renderer, sample_chats(run, conversations(run)), context)]
    return [*texts, *([{"role": "user", "content": question}] for question in chats)]


def sample_texts(run: Run) -> list[str]:
    """Return the texts to continue: the recipe's, or the beginnings of two held-out documents."""
    if run.recipe.evaluate.prompts or run.recipe.data is None:
        return list(run.recipe.evaluate.prompts)
    texts = []
    for document in DocumentSet(run.path / "data").held_out():
        line = document.text.strip()[:48]
        if len(line) >= 8:
            texts.append(line)
        if len(texts) == 2:
            break
    return texts


def sample_chats(run: Run, found: Sequence[Conversation]) -> list[str]:
    """Return the questions to answer: the recipe's, or those of three held-out conversations."""
    if run.recipe.evaluate.chats:
        return list(run.recipe.evaluate.chats)
    held_out = [c for c in found if c.split == "held_out"] or list(found)
    return [str(c.messages[0]["content"]) for c in held_out if c.messages[0]["role"] == "user"][:3]


def _measure_drift(run: Run) -> None:
    tokenizer = Tokenizer.load(run.path / "tokenizer")
    model, small = (etymon.load(run.path / name)[0] for name in ("model", "int8"))
    sequences = [
        tokenizer.encode(document.text)[: min(256, model.spec.context)]
        for _, document in zip(range(DRIFT_SEQUENCES), DocumentSet(run.path / "data").held_out(), strict=False)
    ]
    sequences = [ids for ids in sequences if ids]
    if not sequences:
        return
    path = run.path / "evaluate" / "int8.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, known | {"drift": drift(model, small, sequences).to_dict()})


def _service(run: Run) -> None:
    questions = sample_chats(run, conversations(run)) or ["Hello"]
    result = check_service(run.path / "model", run.recipe.engine, run.recipe.serve, questions[0])
    write_json(run.path / "evaluate" / "service.json", result)
    if not result["ok"]:
        raise DataError(f"The service did not answer: {result['error']}. See {run.path / 'evaluate' / 'service.json'}.")
    say(f"{questions[0]} → {str(result['answer']).strip()}")


def _report(run: Run) -> None:
    paths = write_report(run.path)
    say(" ".join(map(str, paths)))


# -- the order --------------------------------------------------------------------------------------------------------


def _data_leaves(recipe: Recipe) -> list[str]:
    documents = ["data/manifest.json"] if recipe.data is not None else []
    pairs = ["data/records.jsonl"] if records.sources(recipe) else []
    return documents + pairs + (["data/conversations.jsonl"] if recipe.sft is not None else [])


def _tokenizer_leaves(recipe: Recipe) -> list[str]:
    shards = ["data/shards/train/manifest.json"] if recipe.data is not None else []
    return ["tokenizer/tokenizer.json", *shards]


def _evaluate_leaves(recipe: Recipe) -> list[str]:
    small = ["evaluate/int8.json"] if recipe.quantize else []
    return small + ([] if inputs.decodes(recipe) else ["evaluate/held_out.json"])


def _data_files(recipe: Recipe) -> list[Path]:
    return [*inputs.document_files(recipe), *records.files(recipe), *inputs.conversation_files(recipe)]


STAGES = (
    Stage("data", "data", ("data",), (), _data_leaves, _data, files=_data_files),
    Stage("tokenizer", "tokenizer", ("tokenizer",), ("data",), _tokenizer_leaves, _tokenizer),
    Stage(
        "pretrain",
        "pretraining",
        ("model", "pretrain", "seed", "minutes"),
        ("data", "tokenizer"),
        lambda recipe: ["pretrain/COMPLETE"],
        _pretrain,
        wanted=lambda recipe: recipe.pretrain is not None,
    ),
    Stage(
        "sft",
        "supervised fine-tuning",
        ("model", "sft", "seed", "minutes"),
        ("data", "tokenizer", "pretrain"),
        lambda recipe: ["sft/COMPLETE"],
        _sft,
        wanted=lambda recipe: recipe.sft is not None,
    ),
    Stage(
        "model",
        "model",
        ("model",),
        ("tokenizer", "pretrain", "sft"),
        lambda recipe: ["model/spec.json", *(["hf/config.json"] if inputs.published(recipe) else [])],
        _model,
    ),
    Stage(
        "quantize",
        "int8",
        ("quantize",),
        ("model",),
        lambda recipe: ["int8/spec.json"],
        _quantize,
        wanted=lambda recipe: recipe.quantize is not None,
    ),
    Stage(
        "evaluate",
        "evaluation",
        ("evaluate", "engine"),
        ("data", "model", "quantize"),
        _evaluate_leaves,
        _evaluate,
    ),
    Stage(
        "service",
        "service",
        ("serve", "engine"),
        ("model",),
        lambda recipe: ["evaluate/service.json"],
        _service,
        wanted=inputs.decodes,
    ),
    Stage("report", "report", (), ("evaluate", "service"), lambda recipe: ["report.html", "report.md"], _report),
)
NAMES = tuple(stage.name for stage in STAGES)
