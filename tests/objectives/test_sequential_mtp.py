"""Sequential heads are trained as DeepSeek-V3's report says, and read from its published layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from etymon.data import IGNORED, PretrainLoader, TokenShards
from etymon.errors import ConfigError
from etymon.families import families, family_named
from etymon.hub import holds_future_heads, read_future_heads
from etymon.nn import Model, build
from etymon.nn.future import FutureHeads
from etymon.nn.layout import Layout
from etymon.nn.mtp import SequentialHeads, build_sequential_heads
from etymon.objectives import MultiToken, MultiTokenConfig, Residual, Sequential, choose_objective
from etymon.recipe.loading import load_recipe
from etymon.recipe.run import open_run
from etymon.recipe.stages import run_stages
from etymon.text import Tokenizer
from etymon.train import AdamWConfig, Budget, Constant, TrainConfig, fit, read_metrics


def noisy(module: torch.nn.Module, seed: int = 2) -> None:
    """Move all weights: what starts at zero would hide gradients."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)


def small(family: str, vocab: int) -> Model:
    named = family_named(family)
    model = build(named.spec(**named.tiny | {"vocab": vocab}), seed=1)
    noisy(model)
    return model


def objective_for(model: Model, **settings: object) -> tuple[MultiToken, SequentialHeads]:
    objective = MultiToken(MultiTokenConfig.model_validate({"heads": {"kind": "sequential", **settings}}))
    heads = objective.companions(model)["future_heads"]
    assert isinstance(heads, SequentialHeads)
    noisy(heads)
    return objective, heads


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("family", ["llama", "gpt2", "deepseek_v3", "mamba", "bloom", "gemma3"])
def test_every_document_of_a_row_is_as_if_it_stood_alone(
    family: str, tokenizer: Tokenizer, shards: TokenShards
) -> None:
    """Loss and gradients against the formula, one document after the other: h' = M [rms(Emb(t)); rms(h)], a block on
    the positions of h, and -log p of the token k + 1 places ahead; nothing of another document is read or predicted."""
    model = small(family, tokenizer.vocab_size)
    objective, heads = objective_for(model, depth=2, weight=0.3)
    batch = PretrainLoader(shards, 2, 40).batch(0)
    assert int(batch.documents.max()) > 0, "documents end within rows"
    parameters = [*model.parameters(), *heads.parameters()]
    losses = objective.losses(model, batch)
    found = torch.autograd.grad(objective.loss(model, batch), parameters)

    own, future, counted = torch.zeros(()), torch.zeros(()), [0, 0]
    for ids, targets, documents in zip(batch.input_ids, batch.targets, batch.documents, strict=True):
        for document in documents.unique().tolist():
            text, wanted = ids[documents == document][None], targets[documents == document]
            hidden = model(text).last_hidden_state
            own = own + F.cross_entropy(model.head(hidden)[0], wanted, ignore_index=IGNORED, reduction="sum")
            layout = Layout((1, text.shape[1]), text.device)
            embedded = model.embed(text, None, layout, {})
            for k, head in enumerate(heads.heads, 1):
                places = text.shape[1] - k
                if places < 1:
                    break
                norms = (head.embedding_norm, head.hidden_norm)
                eps, shift = norms[0].eps, norms[0].offset
                a, b = (
                    rms(x, n.weight + shift, eps)
                    for x, n in zip((embedded[:, k:], hidden[:, :places]), norms, strict=True)
                )
                left, right = head.projection.weight.split((model.spec.dim, model.spec.width), 1)
                x = a @ left.T + b @ right.T
                hidden = head.stack(x, Layout((1, places), text.device), None, None)
                said = model.head(hidden)[0].log_softmax(-1)
                for i in range(places):
                    if wanted[i + k] != IGNORED:
                        counted[k - 1] += 1
                        future = future - 0.3 / 2 * said[i, wanted[i + k]]
    assert torch.allclose(losses["loss"], own, rtol=1e-4) and torch.allclose(losses["future_loss"], future, rtol=1e-4)
    trained, ends = batch.trained, int((batch.documents[:, 1:] != batch.documents[:, :-1]).sum()) + len(batch.documents)
    assert trained - ends <= counted[0] < trained and counted[1] < counted[0]
    expected = torch.autograd.grad(own + future, parameters)
    for ours, naive in zip(found, expected, strict=True):
        assert torch.allclose(ours, naive, rtol=2e-3, atol=2e-4 * float(naive.abs().max()) + 1e-6)


def test_every_decoder_has_them_or_says_why_not() -> None:
    """Their losses are finite and reach all of their matrices; the rest is refused before anything is built."""
    refused = set()
    for name in families():
        model = build(family_named(name).spec(**family_named(name).tiny))
        if model.encoder is not None:
            continue
        try:
            heads = build_sequential_heads(model, 2)
        except ConfigError:
            refused.add(name)
            continue
        noisy(heads)
        ids = torch.randint(model.spec.vocab, (1, 9), generator=torch.Generator().manual_seed(0))
        loss = heads.loss(model, model(ids, logits=False).last_hidden_state, ids, ids.roll(-1, 1))
        loss.sum().backward()
        assert loss.isfinite().all() and all(bool(linear.weight.grad.any()) for _, linear in heads.matrices()), name
    assert refused == {"chatglm", "glm", "glm130b", "longllama", "retro"}


def test_a_model_overfits_with_them_and_balances_their_experts(
    tokenizer: Tokenizer, shards: TokenShards, tmp_path: Path
) -> None:
    """A mixture: the correction of the heads' own router moves with the model's."""
    model = small("deepseek_v3", tokenizer.vocab_size)
    objective = choose_objective(model.spec, tokenizer, MultiTokenConfig(heads=Sequential()))
    settings = TrainConfig(
        budget=Budget(steps=50), optimizer=AdamWConfig(lr=1e-2), schedule=Constant(warmup=1), precision="fp32",
        compile="off", log_every=1, checkpoint_every=50,
    )  # fmt: skip
    fit(model, PretrainLoader(shards, 2, 32), objective, settings, tmp_path, tokenizer=tokenizer)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"] and rows[-1]["future_loss"] < 0.5 * rows[0]["future_loss"]
    assert isinstance(objective, MultiToken) and isinstance(objective.heads, SequentialHeads)
    corrections = [value for name, value in objective.heads.state_dict().items() if name.endswith("correction")]
    assert len(corrections) == 1 and bool(corrections[0].any())


def test_going_on_keeps_the_heads_and_what_was_said_of_their_kind() -> None:
    heads = FutureHeads(8, 2, 9)
    said = MultiTokenConfig(heads=Residual(count=5, weight=0.5, decay=0.8), trunk="frozen")
    objective = MultiToken.going_on(heads, said)
    assert objective.config == MultiTokenConfig(heads=Residual(count=2, weight=0.5, decay=0.8))
    assert MultiToken.going_on(heads, MultiTokenConfig(heads=Sequential())).config.heads == Residual(count=2)
    assert objective.companions(small("llama", 9))["future_heads"] is heads


@pytest.mark.parametrize("fate", ["trained", "dropped"])
def test_fine_tuning_trains_them_along_or_says_that_it_does_not(
    fate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    for i in range(6):
        (tmp_path / "docs" / f"{i}.txt").write_text("The cat sat on the mat, and then the dog ran home. " * (i + 4))
    chats = ({"messages": [{"role": r, "content": f"{r} {i}"} for r in ("user", "assistant")]} for i in range(8))
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    stage = {"context": 32, "batch_size": 4, "budget": {"steps": 2}}
    values: dict[str, object] = {
        "name": "tuned",
        "run": str(tmp_path / "run"),
        "data": {"sources": [str(tmp_path / "docs")], "held_out": 0.2},
        "tokenizer": {"vocab_size": 280},
        "model": {"family": "llama", "dim": 16, "layers": 1, "heads": 1, "hidden": 16},
        "pretrain": stage | {"objective": {"kind": "mtp", "heads": {"kind": "sequential", "weight": 0.2}}},
        "sft": stage | {"sources": [str(tmp_path / "chats.jsonl")], "future_heads": fate},
        "quantize": None,
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(values))
    with open_run(load_recipe(path)) as opened:
        run_stages(opened, until="model")
    said = capsys.readouterr()
    row = read_metrics(tmp_path / "run" / "sft" / "metrics.jsonl")[-1]
    if fate == "dropped":
        assert "future_loss" not in row and not holds_future_heads(tmp_path / "run" / "model")
        assert "heads that look ahead are left behind" in said.out + said.err
        return
    assert "trained along" in said.out + said.err and "future_loss" in row
    before = read_future_heads(tmp_path / "run" / "pretrain" / "checkpoints" / "step-000002")
    after = read_future_heads(tmp_path / "run" / "model")
    assert not any(
        torch.equal(p, q) for p, q in zip(before.parameters(), after.parameters(), strict=True) if p.dim() > 1
    )
    settings = json.loads((tmp_path / "run" / "sft" / "checkpoints" / "step-000002" / "trainer.json").read_text())
    assert settings["run"]["settings"]["objective"]["heads"]["weight"] == 0.2


def test_mezo_cannot_train_them_along(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\nmodel: {family: llama, dim: 32, layers: 2, heads: 2, hidden: 48}\n"
        "pretrain:\n  objective: mtp\n  budget: {steps: 1}\nsft:\n  budget: {steps: 1}\n  optimizer: {kind: mezo}\n"
    )
    with pytest.raises(ConfigError, match=r"sft: pretraining leaves heads.*future_heads: dropped"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{kind: mtp, heads: {kind: sequential, count: 2}}", r"r.yaml:4: .*objective.heads.count' for.*kind residual"),
        ("{kind: mtp, heads: {kind: residual, depth: 2}}", r"r.yaml:4: .*objective.heads.depth' for.*kind sequential"),
        ("{kind: mtp, heads: {kind: sequential, depth: 0}}", r"r.yaml:4: pretrain.objective.heads.*depth"),
        ("{kind: mtp, heads: parallel}", r"r.yaml:4: pretrain.objective.heads"),
    ],
)
def test_settings_of_the_other_kind_are_refused_with_their_line(settings: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\nmodel: {family: llama, dim: 32, layers: 2, heads: 2, hidden: 48}\n"
        f"pretrain:\n  objective: {settings}\n  budget: {{steps: 1}}\n"
    )
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_what_has_no_block_of_its_own_is_refused(tokenizer: Tokenizer) -> None:
    for family, reason in (("longllama", "Windows"), ("retro", "passages|more than its own tokens"), ("bert", "mtp")):
        with pytest.raises(ConfigError, match=reason):
            choose_objective(
                family_named(family).spec(**family_named(family).tiny), tokenizer, MultiTokenConfig(heads=Sequential())
            )
