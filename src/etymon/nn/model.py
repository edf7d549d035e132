"""A model: embed, stack, head, and the calls that users make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon.errors import ConfigError, DataError
from etymon.nn.attention import CrossAttention
from etymon.nn.block import Stack, Sub
from etymon.nn.embed import Embed
from etymon.nn.head import IGNORE, Classify, Embedding, Pooler, build_head
from etymon.nn.infill import Infill
from etymon.nn.layout import Layout, Source, hiding
from etymon.nn.linear import Linear
from etymon.nn.memory import divide
from etymon.nn.moe import ExpertLinear, MoE, Router, mixtures, penalties, settle
from etymon.nn.norm import RMSNorm
from etymon.nn.permutation import Order
from etymon.nn.retrieval import Neighbours
from etymon.nn.scores import RelativeSinusoids
from etymon.nn.sliding import GlobalLocalAttention
from etymon.nn.state import Cell, Columns, Mixer, Pages, Slots, State
from etymon.spec import LM, Head, ModelSpec, Prefix, Visibility, Windows
from etymon.spec import Infill as InfillSpec


@dataclass
class Output:
    """What a call returns; `hidden_states` are the stream before every block, then the final normed one.

    Of a model with both stacks these are the decoder's, and the encoder's stand beside them.
    """

    last_hidden_state: Any  # Tensor; None only inside a call
    logits: Tensor | None = None
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    pooler_output: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None


class Model(nn.Module):
    """A language model built from its spec: a decoder, an encoder, or a decoder behind an encoder."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = Embed(spec.embed, spec.vocab, spec.dim)
        source = spec.encoder_embed
        self.encoder_embed = None if source is None else Embed(source, source.vocab, spec.dim)
        self.encoder = None if spec.encoder is None else Stack(spec.encoder, spec.dim)
        self.decoder = None if spec.decoder is None else Stack(spec.decoder, spec.dim)
        self.head = build_head(spec.head, spec.vocab, spec.width)
        self.compares_segments = any(isinstance(x, RelativeSinusoids) and x.s is not None for x in self.modules())
        rule = spec.trunk.visibility
        self.infill = Infill(rule) if isinstance(rule, InfillSpec) else None
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
        token_type_ids: Tensor | None = None,
        task_type_ids: Tensor | None = None,
        langs: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        retrieved: Tensor | None = None,
        perm_mask: Tensor | None = None,
        target_mapping: Tensor | None = None,
        prefix: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        decoder_langs: Tensor | None = None,
        encoder_outputs: Any = None,
        labels: Tensor | None = None,
        documents: Tensor | None = None,
        decoder_documents: Tensor | None = None,
        state: State | None = None,
        output_hidden_states: bool = False,
        logits_to_keep: int = 0,
        logits: bool = True,
    ) -> Output:
        """Run the model on `input_ids` [batch, time] or `inputs_embeds` [batch, time, dim].

        attention_mask [batch, time] (with a state [batch, held + time]) is 1 for real tokens, 0 for padding on either
        side; [batch, time, time] (or held + time) it says who sees whom, in the place of the stack's own rule.
        position_ids [batch, time] default to 0, 1, … (with a state, to what follows the tokens held): for a
        left-padded batch of a model with learned positions, pass `attention_mask.cumsum(-1) - 1`, clamped at 0.
        Models that fill in blanks take position_ids [batch, 2, time], the places within the blank second, and as
        attention_mask also the lengths [batch] of the texts with blanks; by default, both follow from the ids.
        token_type_ids [batch, time] say to which segment a token belongs (default: 0), task_type_ids to which task
        (default: 0), langs to which language (default: none).
        global_attention_mask [batch, time] is 1 for the tokens that see all and that all see (default: none).
        retrieved [batch, chunks, passages, length] are the ids of passages for every chunk that the call completes.
        perm_mask [batch, time, time] is 1 where a token does not see another; each row of target_mapping [batch,
        targets, time] has a 1 at a place to be predicted from what that place sees, and only these are returned.
        prefix [batch, time] is 1 for the tokens of a prefix, in each document, which see one another (default: none).
        documents [batch, time] confines attention to tokens of equal id (packing). A state gets the tokens appended.
        labels are [batch, time] ids (-100 is ignored); a decoder alone must predict each from those before it, other
        models at its own place (heads that judge texts or find spans want their targets). `loss` is the mean over those
        predicted.
        logits_to_keep returns the logits of the last n positions only (0: all); logits=False none.

        With an encoder and a decoder, these arguments are the source's; the decoder's begin with `decoder_`, and
        without decoder_input_ids the decoder reads the labels, shifted behind the spec's `start`. `encoder_outputs`
        (what `encode` or the reference returns, or [batch, time, dim]) saves encoding again; a state that has seen the
        source needs neither.

        Raises DataError for ids out of range, a mask of the wrong shape, or input beyond the learned positions.
        """
        kinds = {"token_type_ids": token_type_ids, "task_type_ids": task_type_ids, "langs": langs}
        if self.encoder is not None and self.decoder is not None:
            if encoder_outputs is None and (input_ids is not None or inputs_embeds is not None):
                encoded = self.encode(
                    input_ids, attention_mask, position_ids, **kinds, inputs_embeds=inputs_embeds, documents=documents,
                    output_hidden_states=output_hidden_states,
                )  # fmt: skip
            else:
                hidden = getattr(encoder_outputs, "last_hidden_state", encoder_outputs)
                encoded = Output(hidden[0] if isinstance(hidden, tuple | list) else hidden)
            if decoder_input_ids is None and decoder_inputs_embeds is None and labels is not None:
                decoder_input_ids = self._shifted(labels)
            layout = _layout(
                decoder_input_ids, decoder_inputs_embeds, decoder_attention_mask, decoder_position_ids,
                decoder_documents, state, "decoder_",
            )  # fmt: skip
            layout.source = _source(encoded, attention_mask, documents, decoder_documents, state, layout.device)
            layout.languages, kinds = decoder_langs, {"langs": decoder_langs}
            ids, embeds, trunk = decoder_input_ids, decoder_inputs_embeds, self.decoder
        else:
            encoded = Output(None)
            separators = None
            if self.infill is not None and attention_mask is not None and attention_mask.dim() == 1:
                separators, attention_mask = attention_mask, None
            layout = _layout(input_ids, inputs_embeds, attention_mask, position_ids, documents, state)
            if self.infill is not None:
                self.infill.arrange(layout, input_ids, separators, None if state is None else state.cells[-1])
            elif layout.blocks is not None:
                raise DataError("this model's position_ids are [batch, time], without places in a blank")
            ids, embeds, trunk = input_ids, inputs_embeds, self.trunk
            if any(x is not None for x in (decoder_input_ids, decoder_inputs_embeds, encoder_outputs)):
                raise DataError("this model has no decoder behind an encoder: pass input_ids")
            if state is not None and not self.remembers:
                raise DataError("an encoder sees its whole input at once: it cannot take a state")
        if prefix is not None:
            layout.show(prefix, self.prefixed)
        if isinstance(self.spec.trunk.visibility, Windows):
            divide(self.spec.trunk.visibility, layout, state)
        if global_attention_mask is not None:
            layout.choose(global_attention_mask, any(isinstance(x, GlobalLocalAttention) for x in trunk.mixers()))
        if retrieved is not None:
            if not any(isinstance(mixer, Neighbours) for mixer in trunk.mixers()):
                raise DataError("this model sees no passages: leave out retrieved")
            found = retrieved[:, :, None] if retrieved.dim() == 3 else retrieved  # one passage for each chunk
            if found.dim() != 4 or len(found) != layout.batch:
                expected = f"({layout.batch}, chunks, passages, length)"
                raise DataError(f"retrieved has shape {tuple(retrieved.shape)}, expected {expected}")
            layout.retrieved = (found, self.embed.vectors(found))
        if perm_mask is not None or target_mapping is not None:
            if trunk.query is None:
                raise DataError("this model has one order: leave out perm_mask and target_mapping")
            layout.order = Order.read(perm_mask, target_mapping, layout.batch, layout.time)
        trace: list[Tensor] | None = [] if output_hidden_states else None
        x = self._embedded(self.embed, ids, embeds, layout, kinds)
        x = trunk(x, layout, iter(state.cells) if state is not None else None, trace)
        if target_mapping is not None:  # hidden states of the tokens and of the queries take turns
            x = x[:, layout.time :]
            trace = trace and [part for h in trace for part in (h[:, : layout.time], h[:, layout.time :])]
        if state is not None:
            state.lengths += layout.time
        result = Output(
            last_hidden_state=x,
            hidden_states=None if trace is None else tuple(trace),
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
        )
        if isinstance(self.head, Pooler):
            result.pooler_output = self.head(x)
        elif isinstance(self.head, Classify | Embedding):
            mask = decoder_attention_mask if self.encoder is not None and self.decoder is not None else attention_mask
            mask = None if mask is None or mask.dim() == 3 else mask
            if isinstance(self.head, Embedding):
                result.pooler_output = self.head(x, mask)
                return result
            result.logits = self.head(x, mask) if logits else None
            if labels is not None:
                result.loss = self.head.loss(x, labels, mask) / (labels != IGNORE).sum()
            return result
        elif logits:
            result.logits = self.head(x[:, -logits_to_keep:])
        if labels is not None:
            targets = labels
            if self.encoder is None:
                targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
            result.loss = self.head.loss(x, targets) / (targets != IGNORE).sum()
        return result

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        task_type_ids: Tensor | None = None,
        langs: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        documents: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> Output:
        """Run the encoder alone; arguments as in `forward`. Raises DataError where there is none."""
        if self.encoder is None:
            raise DataError("this model has no encoder")
        layout = _layout(input_ids, inputs_embeds, attention_mask, position_ids, documents, None)
        trace: list[Tensor] | None = [] if output_hidden_states else None
        embed = self.embed if self.encoder_embed is None else self.encoder_embed
        kinds = {"token_type_ids": token_type_ids, "task_type_ids": task_type_ids, "langs": langs}
        x = self._embedded(embed, input_ids, inputs_embeds, layout, kinds)
        x = self.encoder(x, layout, None, trace)
        return Output(last_hidden_state=x, hidden_states=None if trace is None else tuple(trace))

    def _embedded(
        self, embed: Embed, ids: Tensor | None, embeds: Tensor | None, layout: Layout, kinds: dict[str, Tensor | None]
    ) -> Tensor:
        """Return the first stream of `embed`; where scores compare segments, they are told which token has which."""
        if self.compares_segments:
            layout.segments = kinds.pop("token_type_ids", None)
        return embed(ids, embeds, layout, kinds, getattr(embed, "tokens", self.embed.tokens))

    def _shifted(self, labels: Tensor) -> Tensor:
        """Return the labels one place later, behind the id with which the decoder begins."""
        if self.spec.start is None:
            raise DataError("this model's decoder begins with an id of your choice: pass decoder_input_ids")
        return F.pad(labels.masked_fill(labels == IGNORE, self.spec.start)[:, :-1], (1, 0), value=self.spec.start)

    @property
    def prefixed(self) -> bool:
        """Whether the tokens of a prefix see one another: a prompt is one, and is read in one piece."""
        return isinstance(self.spec.trunk.visibility, Prefix)

    @property
    def remembers(self) -> bool:
        """Whether a state can hold what the model read: a decoder's tokens, or the segments before a Permuted one."""
        return self.decoder is not None or self.trunk.query is not None

    @property
    def trunk(self) -> Stack:
        """The stack whose result the head reads: the decoder, or the encoder where there is none."""
        trunk = self.encoder if self.decoder is None else self.decoder
        assert trunk is not None
        return trunk

    def new_state(
        self,
        rows: int,
        capacity: int,
        dtype: torch.dtype | None = None,
        source_capacity: int | None = None,
        pools: Mapping[int | None, int] | None = None,
    ) -> State:
        """Allocate an empty state for `rows` sequences of up to `capacity` tokens, and where the decoder stands behind
        an encoder, for sources of up to `source_capacity` (default: the model's context). With `pools`, columns lie in
        Pages of so many slots, by the reach of the operators that share a table. Raises ConfigError for a model without
        a decoder."""
        if not self.remembers:
            raise ConfigError(f"{self.spec.name} is an encoder: it cannot generate, so it has no state")
        dtype = dtype or self.dtype
        source_capacity = source_capacity or self.spec.context
        tables = {
            reach: Slots(torch.zeros(rows, capacity, dtype=torch.int64, device=self.device)) for reach in pools or {}
        }
        cells: list[Cell] = []
        for mixer in self.trunk.mixers():
            columns = source_capacity if isinstance(mixer, CrossAttention) else capacity
            if pools is not None and type(mixer.new_state(0, 0, dtype, self.device)) is Columns:
                held = mixer.new_state(1, pools[mixer.reach], dtype, self.device).tensors
                cells.append(Pages(tables[mixer.reach], *(tensor[0] for tensor in held)))
            else:
                cells.append(mixer.new_state(rows, columns, dtype, self.device))
        if self.infill is not None:
            cells.append(self.infill.new_state(rows, self.device))
        behind = self.encoder is not None and self.decoder is not None
        source = torch.zeros(rows, source_capacity, dtype=torch.bool) if behind else None
        lengths = torch.zeros(rows, dtype=torch.int64)
        windows = lengths.clone() if isinstance(self.spec.trunk.visibility, Windows) else None
        return State(cells, lengths, capacity, source, windows, list(tables.values()))

    def mixtures(self) -> Iterator[tuple[str, MoE]]:
        """Yield the mixtures of experts with their names."""
        return mixtures(self)

    def penalties(self) -> dict[str, Tensor]:
        """Return by name what training may add to its loss (see `etymon.nn.moe.penalties`)."""
        return penalties(self)

    def settle(self, rate: float) -> None:
        """After an update: move what no gradient trains (see `etymon.nn.moe.settle`)."""
        settle(self, rate)

    def matrices(self) -> Iterator[tuple[str, Linear | ExpertLinear]]:
        """Yield the linear layers of the stacks with their names, those of experts stacked: what Muon works on."""
        for prefix, stack in (("encoder", self.encoder), ("decoder", self.decoder)):
            if stack is not None:
                for name, module in stack.named_modules(prefix=prefix):
                    if isinstance(module, Linear | ExpertLinear):
                        yield name, module


def _layout(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    documents: Tensor | None,
    state: State | None,
    prefix: str = "",
) -> Layout:
    tokens = input_ids if input_ids is not None else inputs_embeds
    if tokens is None or (input_ids is not None and inputs_embeds is not None):
        raise DataError(f"pass exactly one of {prefix}input_ids and {prefix}inputs_embeds")
    if input_ids is not None and input_ids.dim() != 2:
        raise DataError(f"{prefix}input_ids must be [batch, time], got shape {tuple(input_ids.shape)}")
    return Layout(
        (tokens.shape[0], tokens.shape[1]),
        tokens.device,
        attention_mask=attention_mask,
        position_ids=position_ids,
        documents=documents,
        state=state,
    )


def _source(
    encoded: Output,
    attention_mask: Tensor | None,
    documents: Tensor | None,
    decoder_documents: Tensor | None,
    state: State | None,
    device: torch.device,
) -> Source:
    """Return what cross-attention sees: the `encoded` source, which a state keeps, or the one that it has kept."""
    hidden = encoded.last_hidden_state
    if hidden is None:
        if state is None or state.source is None or not state.source.any():
            raise DataError("the decoder has no source: pass input_ids or encoder_outputs")
        keys = int(state.source.any(0).nonzero().max()) + 1
        real = state.source[:, :keys]
        mask = None if bool(real.all()) else real[:, None, None, :].to(device)
        return Source(None, keys, mask)
    batch, keys = hidden.shape[:2]
    real = torch.ones(batch, keys, dtype=torch.bool, device=hidden.device)
    if attention_mask is not None:
        if attention_mask.shape != real.shape:
            raise DataError(f"attention_mask has shape {tuple(attention_mask.shape)}, expected {tuple(real.shape)}")
        real = attention_mask.bool()
    if state is not None:
        if state.source is None or state.source.shape[1] < keys:
            room = 0 if state.source is None else state.source.shape[1]
            raise DataError(f"a source of {keys} tokens does not fit a state made for {room}")
        state.source.zero_()
        state.source[:, :keys] = real.cpu()
    mask = None if hiding(real) is None else real[:, None, None, :]
    if (documents is None) != (decoder_documents is None):
        raise DataError("packing needs both documents and decoder_documents")
    if documents is not None and decoder_documents is not None:
        mask = (decoder_documents[:, None, :, None] == documents[:, None, None, :]) & real[:, None, None, :]
    return Source(hidden, keys, mask)


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


def with_head(model: Model, head: Head, seed: int = 0) -> Model:
    """Return a copy of `model` that ends in another `head`, drawn anew; all other weights are those of `model`, and
    where both heads have logits over the vocabulary, those of that part too.

    Raises ConfigError where the head does not fit the model, or the model is quantised or has adapters.
    """
    changed = build(replace(model.spec, head=head), model.device, model.dtype, seed)
    state, fresh = model.state_dict(), changed.state_dict()
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    if kept.keys() != {name for name in fresh if not name.startswith("head.")}:
        raise ConfigError(f"{model.spec.name}: only a plain model gets another head: not a quantised one, or adapters")
    if isinstance(model.spec.head, LM) and isinstance(head, LM):
        kept |= {name: state[name] for name in state.keys() & fresh.keys() if state[name].shape == fresh[name].shape}
    changed.load_state_dict(kept, strict=False)
    changed.tie()
    return changed.train(model.training)


def with_visibility(model: Model, visibility: Visibility) -> Model:
    """Return a copy of `model`, whose weights are the same, in whose last stack tokens see one another as `visibility`
    says. Raises ConfigError where that does not fit the model, or the model is quantised or has adapters."""
    spec, stack = model.spec, replace(model.spec.trunk, visibility=visibility)
    spec = replace(spec, encoder=stack) if spec.decoder is None else replace(spec, decoder=stack)
    changed = build(spec, model.device, model.dtype)
    state = model.state_dict()
    if state.keys() != changed.state_dict().keys():
        raise ConfigError(f"{spec.name}: only a plain model gets another visibility: not a quantised one, or adapters")
    changed.load_state_dict(state)
    changed.tie()
    return changed.train(model.training)


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Draw fresh weights of a model or of what stands beside one: N(0, 0.02) for embeddings and head; N(0, 1/sqrt(3 *
    fan-in)) for matrices of the stack; those that add to the stream start at zero, so that every block starts as the
    identity (Fixup, arXiv:1901.09321).

    The values depend on the spec and the seed only, not on the device or dtype.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(weight: Tensor, std: float) -> None:
        weight.copy_(torch.empty(weight.shape).normal_(0.0, std, generator=generator))

    outputs: list[Tensor] = []
    head = model.head if isinstance(model, Model) else None
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            normal(module.weight, 0.02)
        elif isinstance(module, Linear):
            if module.bias is not None:
                module.bias.zero_()
            if head is not None and module is head.linear:
                if not head.tied:
                    normal(module.weight, 0.02)
            else:
                normal(module.weight, (3 * module.in_features) ** -0.5)
        elif isinstance(module, nn.LayerNorm | RMSNorm):
            if module.weight is not None:
                module.weight.fill_(1.0 - module.offset if isinstance(module, RMSNorm) else 1.0)
            if isinstance(module, nn.LayerNorm) and module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, ExpertLinear | Router):
            normal(module.weight, (3 * module.weight.shape[-1]) ** -0.5)
            for offsets in (module.bias, getattr(module, "correction", None)):
                if offsets is not None:
                    offsets.zero_()
        elif isinstance(module, Sub):
            outputs.extend(module.outputs)
    for output in outputs:
        output.zero_()
    for module in model.modules():
        if isinstance(module, Mixer):
            module.initialise(generator)
