"""What follows a prefix is trained, and the prefix is seen as the settings say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from etymon.data import IGNORED, Batch, ConversationLoader, PairBatch
from etymon.data.batch import make_batch
from etymon.errors import ConfigError
from etymon.families import family_named
from etymon.nn import Model, build, with_visibility
from etymon.objectives import MultiToken, MultiTokenConfig, PrefixLM, PrefixLMConfig, choose_objective, trained_spec
from etymon.objectives.choice import objective_config
from etymon.objectives.clm import prefixes
from etymon.objectives.prefix_lm import suffix_length
from etymon.spec import Prefix
from etymon.text import Renderer, Tokenizer

START, END = 0, 1


def dice(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def packed(rows: int, time: int) -> Batch:
    """Rows of several documents; the last one goes on behind the row."""
    random = dice(1)
    ids = random.integers(4, 90, size=(rows, time))
    starts = random.random(ids.shape) < 0.08
    starts[:, 0] = True
    targets = np.concatenate([np.where(starts[:, 1:], IGNORED, ids[:, 1:]), np.full((rows, 1), 5)], 1)
    return make_batch(ids, targets, starts)


def test_any_split_of_a_text_is_as_likely_as_another() -> None:
    """T5's code splits at a place drawn evenly; UL2's S-denoiser predicts a quarter on average."""
    for rate, longest in ((0.5, 9), (0.25, 5)):
        lengths = [suffix_length(10, rate, random) for random in [dice()] for _ in range(9000)]
        counts = np.bincount(lengths, minlength=longest + 1)[1:]
        assert len(counts) == longest and np.all(np.abs(counts / 9000 - 1 / longest) < 4 * (1 / longest / 9000) ** 0.5)
    assert [suffix_length(n, 0.5, dice()) for n in (1, 2)] == [1, 1]


def test_an_encoder_reads_the_prefix_and_the_decoder_writes_the_rest() -> None:
    batch = packed(300, 40)
    got = PrefixLM(START, END).collate(batch, dice())
    assert isinstance(got, PairBatch) and got.input_ids.shape[1] <= 40 and got.targets.shape[1] <= 40
    written = 0
    for row, ids, mask, read, target in zip(
        batch.input_ids, got.input_ids, got.attention_mask.bool(), got.decoder_input_ids, got.targets, strict=True
    ):
        prefix, rest = ids[mask].tolist(), target[target != IGNORED].tolist()
        assert prefix.pop() == END and rest.pop() == END and prefix and rest
        assert prefix + rest == row.tolist() and read[: len(rest) + 1].tolist() == [START, *rest]
        written += len(rest)
    assert abs(written / 300 / 40 - 0.5) < 0.06


def test_a_decoder_alone_is_trained_behind_the_prefix_of_each_document() -> None:
    batch = packed(64, 60)
    got = PrefixLM(None, None).collate(batch, dice())
    assert type(got) is Batch and torch.equal(got.input_ids, batch.input_ids)
    trained, prefix = got.targets != IGNORED, prefixes(got)
    assert torch.equal(got.targets[trained], batch.targets[trained])
    shares = []
    for row in range(64):
        for document in range(int(batch.documents[row, -1]) + 1):
            places = (batch.documents[row] == document).nonzero()[:, 0].tolist()
            asked = [p for p in places if batch.targets[row, p] != IGNORED]
            taken = [p for p in places if trained[row, p]]
            if not asked:
                continue
            assert taken and taken == asked[len(asked) - len(taken) :]  # the end of it, without a gap
            cut = taken[0] + 1  # the first token that is predicted
            assert prefix[row, places].tolist() == [place < cut for place in places]
            if len(places) > 10:
                shares.append(len(taken) / len(places))
    assert abs(np.mean(shares) - 0.5) < 0.1
    whole = prefixes(replace(batch, targets=batch.input_ids))  # all is trained: a token that only sees itself is left
    assert torch.equal(whole[:, 1:], batch.documents.diff() > 0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "deepseek_v2"])
def test_only_a_full_prefix_sees_itself(family: str) -> None:
    """What a token of the prefix becomes depends on later ones of the prefix, but not on what is to be predicted."""
    named = family_named(family)
    model = build(named.spec(**named.tiny), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    ids = dice(2).integers(4, 90, size=(2, 24))
    batch = make_batch(ids, ids, np.zeros(ids.shape, dtype=np.bool_))
    for sight in ("full", "causal"):
        config = PrefixLMConfig(sight=sight)
        model = with_visibility(model, PrefixLM.trains(model.spec, config).trunk.visibility)
        got = PrefixLM(None, None, config).collate(batch, dice(3))
        first = int((got.targets[0] != IGNORED).nonzero()[0])  # the last token of the prefix
        assert 3 < first < 20

        def seen(place: int, got: Batch = got, model: Model = model) -> torch.Tensor:
            prefix = prefixes(got) if model.prefixed else None
            embedded = model.embed.tokens(got.input_ids).detach().requires_grad_()
            told = {"inputs_embeds": embedded, "documents": got.documents, "prefix": prefix}
            out = model(None, None, got.position_ids, **told, logits=False)
            out.last_hidden_state[0, place].pow(3).sum().backward()
            assert embedded.grad is not None
            return embedded.grad[0].abs().sum(-1) > 1e-9

        expected = range(first + 1) if sight == "full" else range(2)
        assert seen(1).nonzero()[:, 0].tolist() == list(expected)
        behind = seen(first + 2).nonzero()[:, 0].tolist()
        assert behind == list(range(first + 3))  # what is predicted sees all before it, and nothing behind


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("bert", "writes no text behind a prefix"),
        ("mamba", "Set `sight: causal`"),
        ("llama", r"etymon.nn.with_visibility\(model, Prefix\(\)\)"),
        ("glm", "take {kind: infilling, documents: 1}"),
    ],
)
def test_what_does_not_fit_is_refused(family: str, message: str, tokenizer: Tokenizer) -> None:
    named = family_named(family)
    spec = named.spec(**named.tiny)
    with pytest.raises(ConfigError, match=message):
        choose_objective(spec, tokenizer, PrefixLMConfig(sight="full"))
    if family == "mamba":
        choose_objective(spec, tokenizer, PrefixLMConfig(sight="causal"))


def test_a_batch_trains_by_the_mask_that_it_always_did(tokenizer: Tokenizer) -> None:
    """Bit for bit: the loss and gradients of the papers' mask, passed as [batch, time, time], over packed documents."""
    named = family_named("llama")
    model = build(named.spec(**named.tiny), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    config = PrefixLMConfig(sight="full")
    seeing = with_visibility(model, Prefix())
    objective = choose_objective(seeing.spec, tokenizer, config)
    assert trained_spec(model.spec, config) == seeing.spec and objective_config(seeing.spec).kind == "prefix_lm"
    batch = packed(4, 60)
    got = objective.collate(batch, dice())
    objective.loss(seeing, got).backward()

    time, first = 60, np.zeros((4, 60), dtype=np.int64)  # the last place of each token's prefix
    for row in range(4):
        for document in set(batch.documents[row].tolist()):
            places = (batch.documents[row] == document).nonzero()[:, 0]
            trained = [int(place) for place in places if got.targets[row, place] != IGNORED]
            first[row, places] = trained[0] if trained else -1
    mask = np.tri(time, dtype=np.bool_) | (np.arange(time) <= first)[:, None, :]
    hidden = model(got.input_ids, torch.from_numpy(mask), got.position_ids, documents=got.documents, logits=False)
    loss = model.head.loss(hidden.last_hidden_state, got.targets)
    loss.backward()
    assert torch.equal(loss, objective.loss(seeing, got))
    assert torch.equal(loss, MultiToken.of(seeing.spec, tokenizer, MultiTokenConfig()).losses(seeing, got)["loss"])
    for ours, theirs in zip(seeing.parameters(), model.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None and torch.equal(ours.grad, theirs.grad)
    causal = model(got.input_ids, None, got.position_ids, documents=got.documents, logits=False)
    assert not torch.equal(model.head.loss(causal.last_hidden_state, got.targets), loss)


def test_of_a_conversation_the_first_prompt_is_the_prefix(tokenizer: Tokenizer) -> None:
    """What the loader trains is what serving reads: later turns from left to right."""
    turns = [{"role": role, "content": text} for role, text in (("user", "a cat?"), ("assistant", "yes"))] * 2
    renderer = Renderer(tokenizer)
    whole = renderer.render(turns)
    asked = [renderer.render(turns[:n], add_generation_prompt=True) for n in (1, 3)]
    assert [prompt.prefix for prompt in asked] == [len(asked[0].ids)] * 2 and whole.prefix == len(asked[0].ids)
    batch = ConversationLoader([whole, whole], 1, 2 * len(whole.ids) + 3).batch(0)
    starts = [0, len(whole.ids) - 1]
    shown = [at for start in starts for at in range(start, start + whole.prefix)]
    padding = range(2 * len(whole.ids) - 2, batch.input_ids.shape[1])
    assert prefixes(batch)[0].nonzero()[:, 0].tolist() == [*shown, *padding]
