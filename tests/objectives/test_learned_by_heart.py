"""A tiny model of a matching family learns a small real text by heart with each objective that reads documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import pytest
import torch

from etymon.data import PretrainLoader, Record, RecordLoader, TokenShards, write_shards
from etymon.data.documents import Document
from etymon.families import family_named
from etymon.nn import build
from etymon.objectives import (
    OBJECTIVES,
    CausalLMConfig,
    DenoisingConfig,
    DocumentRotation,
    FillInMiddleConfig,
    InfillingConfig,
    MaskedFragmentConfig,
    ObjectiveConfig,
    PermutationLMConfig,
    PrefixLMConfig,
    ReplacedTokensConfig,
    SentencePermutation,
    SpanCorruptionConfig,
    TextInfilling,
    TokenDeletion,
    TokenMasking,
    UL2Config,
    choose_objective,
    trained_spec,
)
from etymon.objectives.ul2 import MIXTURES
from etymon.text import DEFAULT_SPECIAL, Tokenizer
from etymon.train import AdamWConfig, Budget, Constant, MuonConfig, TrainConfig, fit, held_out_loss, read_metrics

# Lewis Carroll, Alice's Adventures in Wonderland (1865)
TEXT = "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do. "
EVERY_NOISE = (TokenMasking(), TokenDeletion(), TextInfilling(), SentencePermutation(), DocumentRotation())
RUNS: dict[str, tuple[str, ObjectiveConfig, int]] = {
    "clm-llama": ("llama", CausalLMConfig(), 20),
    "clm-lstm": ("lstm", CausalLMConfig(), 60),
    "plm-xlnet": ("xlnet", PermutationLMConfig(), 60),
    "rtd-electra": ("electra", ReplacedTokensConfig(), 200),
    "span-corruption-t5": ("t5", SpanCorruptionConfig(), 170),
    "mass": ("mass", MaskedFragmentConfig(), 60),
    "denoising-bart": ("bart", DenoisingConfig(noises=EVERY_NOISE), 30),
    "prefix-t5": ("t5", PrefixLMConfig(), 70),
    "prefix-llama": ("llama", PrefixLMConfig(sight="full"), 20),
    "prefix-mamba": ("mamba", PrefixLMConfig(sight="causal"), 25),
    "ul2-t5": ("t5", UL2Config(), 110),
    "ul2-llama": ("llama", UL2Config(sight="full"), 80),
    "fim-llama": ("llama", FillInMiddleConfig(), 50),
    "infilling-glm": ("glm", InfillingConfig(sentences=0.25, documents=0.25), 70),
    "ul2r-gpt2": ("gpt2", UL2Config(mixture=MIXTURES["ul2r"], modes="none", sight="causal"), 50),
}

RATES = {"rtd-electra": (0.02, 2e-3)}  # of Muon and AdamW: a judge of texts that get better and better


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    control = {token: None for _, config, _ in RUNS.values() for token in OBJECTIVES[config.kind].control(config)}
    return Tokenizer.train([TEXT] * 8, 480, special_tokens=(*DEFAULT_SPECIAL, *control))


@pytest.fixture(scope="module")
def shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    path = tmp_path_factory.mktemp("shards")
    write_shards((Document(str(i), TEXT, "test") for i in range(16)), tokenizer, path)
    return TokenShards(path, tokenizer=tokenizer)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("run", RUNS)
def test_a_text_is_learned_by_heart(run: str, shards: TokenShards, tokenizer: Tokenizer, tmp_path: Path) -> None:
    name, config, steps = RUNS[run]
    muon, adamw = RATES.get(run, (0.05, 2e-2))
    family = family_named(name)
    spec = family.spec(**(family.tiny | {"vocab": tokenizer.vocab_size}))
    spec = trained_spec(spec, config)
    objective = choose_objective(spec, tokenizer, config)
    train = TrainConfig(
        budget=Budget(steps=steps),
        optimizer=MuonConfig(lr=muon, adamw=AdamWConfig(lr=adamw, weight_decay=0.0)),
        schedule=Constant(warmup=5),
        precision="fp32",
        compile="off",
        log_every=1,
        checkpoint_every=steps,
    )
    loader = PretrainLoader(shards, batch_size=4, context=32)
    fit(build(spec, seed=1), loader, objective, train, tmp_path / "run", tokenizer=tokenizer)
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert mean(losses[-10:]) < 0.3 * losses[0], (losses[0], mean(losses[-10:]))


def test_translations_are_learned_by_heart(tokenizer: Tokenizer, tmp_path: Path) -> None:
    family = family_named("marian")
    spec = family.spec(**(family.tiny | {"vocab": tokenizer.vocab_size}))
    objective = choose_objective(spec, tokenizer)
    assert objective.name == "seq2seq"
    words = TEXT.split()
    rows = [Record(str(i), (words[i], words[-1 - i]), None, "train") for i in range(8)]
    loader = RecordLoader([objective.encode(tokenizer, row, 32) for row in rows], 8, 32)
    train = TrainConfig(
        budget=Budget(steps=60),
        optimizer=AdamWConfig(lr=1e-2, weight_decay=0.0),
        schedule=Constant(warmup=5),
        precision="fp32",
        compile="off",
    )
    model = build(spec, seed=1)
    before = held_out_loss(model, loader, 1, objective=objective)
    fit(model, loader, objective, train, tmp_path / "run", tokenizer=tokenizer)
    assert held_out_loss(model, loader, 1, objective=objective) < 0.3 * before
