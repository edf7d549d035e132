"""A model whose prefixes see themselves: against a reference, in pieces, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import etymon
from etymon.errors import ConfigError, DataError
from etymon.families import family_named
from etymon.hub import gguf_models
from etymon.nn import Model, build, with_visibility
from etymon.spec import Causal, ModelSpec, Prefix

CUTS = (7, 3, 11)  # how long the prefix of each row is
TIME = 14


def random_model(family: str = "llama", visibility: Causal | None = None) -> Model:
    named = family_named(family)
    model = build(named.spec(**named.tiny))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.dim() == 1))
    return with_visibility(model, visibility or Prefix())


def ids(rows: int = 3) -> Tensor:
    return torch.randint(3, 90, (rows, TIME), generator=torch.Generator().manual_seed(1))


def prefix() -> Tensor:
    return torch.tensor([[place < cut for place in range(TIME)] for cut in CUTS])


def sight() -> Tensor:
    """Who sees whom, in the papers' words: all that is before, and the prefix."""
    return torch.tensor([[[j <= i or j < cut for j in range(TIME)] for i in range(TIME)] for cut in CUTS])


def test_logits_and_gradients_are_those_of_the_reference_under_the_papers_mask(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = with_visibility(etymon.load(tmp_path)[0], Prefix())
    mask = torch.zeros(3, 1, TIME, TIME).masked_fill(~sight()[:, None], torch.finfo(torch.float32).min)
    expected = theirs(ids(), attention_mask=mask).logits
    got = ours(ids(), prefix=prefix()).logits
    assert torch.allclose(got, expected, atol=1e-4)
    assert not torch.allclose(ours(ids()).logits, expected, atol=1e-2)
    for logits in (got, expected):
        logits.logsumexp(-1).sum().backward()
    pairs = (
        (ours.embed.tokens.weight, theirs.model.embed_tokens.weight),
        (ours.head.linear.weight, theirs.lm_head.weight),
    )
    for mine, reference in pairs:
        assert torch.allclose(mine.grad, reference.grad, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "mistral", "deepseek_v2"])
@torch.no_grad()
def test_a_prefix_and_then_token_after_token_is_one_full_pass(family: str) -> None:
    model = random_model(family)
    full = model(ids(), prefix=prefix()).logits
    assert torch.allclose(full, with_visibility(model, Causal())(ids(), sight()).logits, atol=1e-5)
    state = model.new_state(3, 32)
    for row, cut in enumerate(CUTS):  # rows of their own lengths
        view = state.rows(row, row + 1)
        read = model(ids()[row : row + 1, :cut], state=view, prefix=torch.ones(1, cut)).logits
        assert torch.allclose(read, full[row : row + 1, :cut], atol=1e-5)
    for step in range(TIME - max(CUTS)):
        fed = torch.stack([ids()[row, cut + step] for row, cut in enumerate(CUTS)])[:, None]
        behind = torch.stack([full[row, cut + step] for row, cut in enumerate(CUTS)])
        assert torch.allclose(model(fed, state=state).logits[:, 0], behind, atol=1e-5)


@torch.no_grad()
def test_the_end_of_a_prefix_sees_itself_behind_what_was_kept_of_it() -> None:
    """Rows that hold different lengths of a prefix that was read whole once read the rest of it, and more, together."""
    model = random_model()
    full = model(ids(), prefix=prefix()).logits
    state, held = model.new_state(3, 32), (4, 1, 6)
    for row, cut in enumerate(CUTS):
        model(ids()[row : row + 1, :cut], state=state.rows(row, row + 1), prefix=torch.ones(1, cut))
        state.truncate(row, held[row])
    fed = torch.stack([ids()[row, start : start + 8] for row, start in enumerate(held)])
    shown = torch.tensor([[start + place < cut for place in range(8)] for start, cut in zip(held, CUTS, strict=True)])
    got = model(fed, state=state, prefix=shown).logits
    for row, start in enumerate(held):
        assert torch.allclose(got[row], full[row, start : start + 8], atol=1e-5)


def test_who_sees_whom_is_part_of_the_model(tmp_path: Path) -> None:
    model = random_model()
    assert ModelSpec.from_dict(model.spec.to_dict()) == model.spec
    etymon.save(model, None, tmp_path / "ours", format="etymon")
    again, _ = etymon.load(tmp_path / "ours")
    assert again.prefixed and torch.equal(again(ids(), prefix=prefix()).logits, model(ids(), prefix=prefix()).logits)
    with pytest.raises(
        ConfigError, match=r"visibility: Prefix\(\) -> Causal\(\)\): save the model in the etymon format"
    ):
        etymon.save(model, None, tmp_path / "theirs", format="hf")
    with pytest.raises(ConfigError, match=r"visibility: Prefix\(\) -> Causal\(\)\): use the etymon format"):
        gguf_models.write(model, tmp_path / "model.gguf", {}, "f32")


def test_what_cannot_be_is_refused() -> None:
    model = random_model()
    with pytest.raises(DataError, match=r"reads from left to right.*leave out prefix"):
        random_model(visibility=Causal())(ids(), prefix=prefix())
    with pytest.raises(DataError, match=r"prefix has shape \(3, 13\), expected \(3, 14\)"):
        model(ids(), prefix=prefix()[:, 1:])
    with pytest.raises(DataError, match="says who sees whom"):
        model(ids(), sight(), prefix=prefix())
    for family, message in (
        ("mamba", "token after token"),
        ("rwkv", "token after token"),
        ("bert", "a decoder alone"),
    ):
        named = family_named(family)
        spec = named.spec(**named.tiny)
        with pytest.raises(ConfigError, match=message):
            with_visibility(build(spec, "meta"), Prefix())
    t5 = family_named("t5").spec(**family_named("t5").tiny)
    assert t5.decoder is not None
    with pytest.raises(ConfigError, match=r"token after token|a decoder alone"):
        dataclasses.replace(t5, decoder=dataclasses.replace(t5.decoder, visibility=Prefix()))
