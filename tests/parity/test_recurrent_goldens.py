"""Recurrent and feed-forward language models against torch's own modules, and against the outputs of other people's
implementations: https://github.com/pytorch/examples (word_language_model), https://github.com/karpathy/makemore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import etymon
from etymon.families import family_named
from etymon.nn import Model, build

GOLDENS = Path(__file__).parent / "goldens"
TOLERANCE = 1e-5


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a golden under their published names, and what goes in and comes out."""
    tensors = load_file(GOLDENS / f"{name}.safetensors")
    weights = {key.split(".", 2)[2]: t for key, t in tensors.items() if key.startswith("weights.")}
    return weights, {key: t for key, t in tensors.items() if not key.startswith("weights.")}


def filled(spec: Any, weights: dict[str, Tensor]) -> Model:
    model = build(spec)
    rules = list(family_named(spec.family).tensors.weights(spec))
    used = {name for rule in rules for name in rule.published}
    state = {rule.ours: rule.read([weights[name] for name in rule.published]) for rule in rules}
    model.load_state_dict(state, strict=False)
    model.tie()
    left_over = weights.keys() - used - ({"decoder.weight"} if spec.head.tied else set())
    assert not left_over
    return model


@pytest.mark.parametrize(
    ("name", "family", "dimensions"),
    [
        ("LSTM_LM", "lstm", {"layers": 2, "tied": True}),
        ("GRU_LM", "gru", {"layers": 2}),
        ("RNNLM_Elman", "rnnlm", {"layers": 1, "activation": "tanh"}),
    ],
)
def test_word_language_model(name: str, family: str, dimensions: dict[str, Any]) -> None:
    weights, io = golden(name)
    model = filled(family_named(family).spec(vocab=96, dim=32, **dimensions), weights)
    ids = io["call0.args.0"].T
    state = model.new_state(2, 64)
    given = [io.get("call0.args.1.0", io.get("call0.args.1")), io.get("call0.args.1.1")]
    after = [io.get("call0.out.1.0", io.get("call0.out.1")), io.get("call0.out.1.1")]
    for layer, cell in enumerate(state.cells):
        cell.write(*(t[layer] for t in given if t is not None))
    logits = model(ids, state=state).logits
    expected = io["call0.out.0"].view(12, 2, 96).transpose(0, 1)
    assert relative(logits.log_softmax(-1), expected) < TOLERANCE
    for layer, cell in enumerate(state.cells):
        for held, end in zip(cell.tensors, (t for t in after if t is not None), strict=True):
            assert relative(held, end[layer]) < TOLERANCE


def test_bengio() -> None:
    weights, io = golden("Bengio_NNLM")
    table = weights["wte.weight"]  # its last row stands before the first word
    named = {"C": table[:-1], "start": table[-1], "H": weights["mlp.0.weight"], "d": weights["mlp.0.bias"]}
    named |= {"U": weights["mlp.2.weight"], "b": weights["mlp.2.bias"]}
    model = filled(family_named("nnlm").spec(vocab=96, dim=32, hidden=64, order=4), named)
    assert relative(model(io["call0.args.0"]).logits, io["call0.out.0"]) < TOLERANCE


class Theirs(nn.Module):
    """torch's own modules in the published arrangement."""

    def __init__(self, rnn: nn.Module, vocab: int, dim: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Embedding(vocab, dim)
        self.rnn = rnn
        self.decoder = nn.Linear(width, vocab)

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(self.rnn(self.encoder(ids))[0])


class Sigmoid(nn.RNN):
    """Mikolov's network, step by step: torch has no sigmoid recurrence."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        for layer in range(self.num_layers):
            wi, wh, bi, bh = (getattr(self, f"{n}_l{layer}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            h, outputs = x.new_zeros(x.shape[0], self.hidden_size), []
            for t in range(x.shape[1]):
                h = torch.sigmoid(wi @ x[:, t, :, None] + bi[:, None] + wh @ h[..., None] + bh[:, None])[..., 0]
                outputs.append(h)
            x = torch.stack(outputs, 1)
        return (x,)


KINDS = {
    "lstm": (lambda **k: nn.LSTM(**k), "lstm", {}),
    "lstm-no-bias": (lambda **k: nn.LSTM(bias=False, **k), "lstm", {"bias": False}),
    "gru": (lambda **k: nn.GRU(**k), "gru", {}),
    "gru-no-bias": (lambda **k: nn.GRU(bias=False, **k), "gru", {"bias": False}),
    "elman-tanh": (lambda **k: nn.RNN(**k), "rnnlm", {"activation": "tanh"}),
    "elman-relu": (lambda **k: nn.RNN(nonlinearity="relu", **k), "rnnlm", {"activation": "relu"}),
    "elman-sigmoid": (lambda **k: Sigmoid(**k), "rnnlm", {"activation": "sigmoid"}),
}


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[Theirs, Model]:
    make, family, changes = KINDS[request.param]
    torch.manual_seed(0)
    theirs = Theirs(make(input_size=24, hidden_size=40, num_layers=2, batch_first=True), 97, 24, 40)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape) * 0.3)
    spec = family_named(family).spec(vocab=97, dim=24, width=40, layers=2, **changes)
    return theirs, filled(spec, theirs.state_dict())


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(1))


def test_logits_and_gradients_are_torch_s(pair: tuple[Theirs, Model]) -> None:
    theirs, ours = pair
    ids = tokens(3, 20)
    expected, got = theirs(ids), ours(ids).logits
    assert relative(got, expected) < TOLERANCE
    expected.square().mean().backward()
    got.square().mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    own = {name: p.grad for name, p in ours.named_parameters()}
    rules = list(family_named(ours.spec.family).tensors.weights(ours.spec))
    assert {rule.ours for rule in rules} == set(own)
    for rule in rules:
        assert relative(own[rule.ours], rule.read([gradients[n] for n in rule.published])) < TOLERANCE, rule.ours


def test_saved_under_published_names(pair: tuple[Theirs, Model], tmp_path: Path) -> None:
    theirs, ours = pair
    etymon.save(ours, None, tmp_path / "hf", format="hf")
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    theirs.load_state_dict(stored)
    again, _ = etymon.load(tmp_path / "hf")
    assert again.spec.decoder == ours.spec.decoder
    assert torch.equal(again(tokens(2, 9)).logits, ours(tokens(2, 9)).logits)
