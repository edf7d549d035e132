"""A model: embed, stack, head, and the calls that users make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon.errors import DataError
from etymon.nn.block import Stack, Sub
from etymon.nn.embed import Embed
from etymon.nn.head import IGNORE, LMHead
from etymon.nn.layout import Layout
from etymon.nn.linear import Linear
from etymon.nn.moe import Experts, MoE
from etymon.nn.norm import RMSNorm
from etymon.nn.state import State
from etymon.spec import ModelSpec


@dataclass
class Output:
    """What a call returns; `hidden_states` are the stream before every block, then the final normed one."""

    last_hidden_state: Tensor
    logits: Tensor | None = None
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class Model(nn.Module):
    """A decoder-only language model built from its spec."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = Embed(spec.embed, spec.vocab, spec.dim)
        self.decoder = Stack(spec.decoder, spec.dim)
        self.head = LMHead(spec.head, spec.vocab, spec.dim)
        self.tie()

    def tie(self) -> None:
        """Make a tied head share the embedding again, after something replaced either."""
        if self.head.tied and isinstance(self.head.linear, nn.Linear):
            self.head.linear.weight = self.embed.tokens.weight

    @property
    def device(self) -> torch.device:
        """Where the embedding lies."""
        return self.embed.tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self.embed.tokens.weight.dtype

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        documents: Tensor | None = None,
        state: State | None = None,
        output_hidden_states: bool = False,
        logits_to_keep: int = 0,
        logits: bool = True,
    ) -> Output:
        """Run the model on `input_ids` [batch, time] or `inputs_embeds` [batch, time, dim].

        attention_mask [batch, time] (with a state [batch, held + time]) is 1 for real tokens, 0 for padding on either
        side. position_ids [batch, time] default to 0, 1, … (with a state, to what follows the tokens held): for a
        left-padded batch of a model with learned positions, pass `attention_mask.cumsum(-1) - 1`, clamped at 0.
        documents [batch, time] confines attention to tokens of equal id (packing). A state gets the tokens appended.
        labels [batch, time] are ids aligned with input_ids (-100 is ignored): `loss` is the mean over predicted ones.
        logits_to_keep returns the logits of the last n positions only (0: all); logits=False none.

        Raises DataError for ids out of range, a mask of the wrong shape, or input beyond the learned positions.
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        if tokens is None or (input_ids is not None and inputs_embeds is not None):
            raise DataError("pass exactly one of input_ids and inputs_embeds")
        if input_ids is not None and input_ids.dim() != 2:
            raise DataError(f"input_ids must be [batch, time], got shape {tuple(input_ids.shape)}")
        layout = Layout(
            (tokens.shape[0], tokens.shape[1]),
            tokens.device,
            attention_mask=attention_mask,
            position_ids=position_ids,
            documents=documents,
            state=state,
        )
        trace: list[Tensor] | None = [] if output_hidden_states else None
        x = self.embed(input_ids, inputs_embeds, layout)
        x = self.decoder(x, layout, iter(state.cells) if state is not None else None, trace)
        if state is not None:
            state.lengths += layout.time
        result = Output(last_hidden_state=x, hidden_states=None if trace is None else tuple(trace))
        if logits:
            result.logits = self.head(x[:, -logits_to_keep:])
        if labels is not None:
            targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
            result.loss = self.head.loss(x, targets) / (targets != IGNORE).sum()
        return result

    def new_state(self, rows: int, capacity: int, dtype: torch.dtype | None = None) -> State:
        """Allocate an empty state for `rows` sequences of up to `capacity` tokens."""
        dtype = dtype or self.dtype
        cells = [mixer.new_state(rows, capacity, dtype, self.device) for mixer in self.decoder.mixers()]
        return State(cells, torch.zeros(rows, dtype=torch.int64), capacity)

    def mixtures(self) -> Iterator[tuple[str, MoE]]:
        """Yield the mixtures of experts with their names; their `load` and `logits` tell how the last call went."""
        for name, module in self.decoder.named_modules(prefix="decoder"):
            if isinstance(module, MoE):
                yield name, module

    def matrices(self) -> Iterator[tuple[str, Linear]]:
        """Yield the linear layers of the stack with their names: what quantisers, adapters and Muon work on."""
        for name, module in self.decoder.named_modules(prefix="decoder"):
            if isinstance(module, Linear):
                yield name, module


def build(
    spec: ModelSpec, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Model:
    """Build and initialise the model of `spec`; on device "meta" nothing is allocated, whatever its size."""
    with torch.device("meta"):
        model = Model(spec).to(dtype)
    if torch.device(device).type == "meta":
        return model
    model = model.to_empty(device=device)
    model.tie()
    initialise(model, seed)
    return model


@torch.no_grad()
def initialise(model: Model, seed: int) -> None:
    """Draw fresh weights: N(0, 0.02) for embeddings and head; N(0, 1/sqrt(3 * fan-in)) for matrices of the stack;
    those that write to the stream start at zero, so that every block starts as the identity (Fixup, arXiv:1901.09321).

    The values depend on the spec and the seed only, not on the device or dtype.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(weight: Tensor, std: float) -> None:
        weight.copy_(torch.empty(weight.shape).normal_(0.0, std, generator=generator))

    outputs: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            normal(module.weight, 0.02)
        elif isinstance(module, Linear):
            if module.bias is not None:
                module.bias.zero_()
            if module is model.head.linear:
                if not model.head.tied:
                    normal(module.weight, 0.02)
            else:
                normal(module.weight, (3 * module.in_features) ** -0.5)
        elif isinstance(module, nn.LayerNorm | RMSNorm):
            if module.weight is not None:
                module.weight.fill_(1.0 - module.offset if isinstance(module, RMSNorm) else 1.0)
            if isinstance(module, nn.LayerNorm) and module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, Experts):
            normal(module.up, (3 * module.up.shape[2]) ** -0.5)
        elif isinstance(module, Sub):
            outputs.extend(module.outputs)
    for output in outputs:
        output.zero_()
