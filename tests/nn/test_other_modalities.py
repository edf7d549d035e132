"""Images and sounds enter through vectors: nothing of the core knows what made them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from etymon.families import family_named
from etymon.nn import Model, build
from etymon.spec import Bidirectional, Hidden, ModelSpec

PATCHES, PIXELS = 6, 12


def randomised(spec: ModelSpec) -> Model:
    model = build(spec)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (p.dim() == 1))
    return model


def vision_encoder() -> Model:
    """A stack of the core over patches instead of tokens, with no head."""
    family = family_named("bert")
    spec = family.spec(**family.tiny)
    assert spec.encoder is not None and isinstance(spec.encoder.visibility, Bidirectional)
    return randomised(dataclasses.replace(spec, name="patches", head=Hidden()))


class Seeing(nn.Module):
    """Patches → encoder → vectors in the place of some tokens of a decoder (as in LLaVA or PaLM-E)."""

    def __init__(self) -> None:
        super().__init__()
        family = family_named("llama")
        self.decoder = randomised(family.spec(**family.tiny))
        self.vision = vision_encoder()
        self.patch = nn.Linear(PIXELS, self.vision.spec.dim)
        self.bridge = nn.Linear(self.vision.spec.dim, self.decoder.spec.dim)

    def embeds(self, patches: Tensor, ids: Tensor) -> Tensor:
        seen = self.bridge(self.vision(inputs_embeds=self.patch(patches)).last_hidden_state)
        return torch.cat((seen, self.decoder.embed.tokens(ids)), 1)


def test_patches_before_the_tokens_of_a_decoder() -> None:
    torch.manual_seed(0)
    model = Seeing()
    patches, ids = torch.randn(2, PATCHES, PIXELS), torch.randint(0, 97, (2, 5))
    labels = torch.cat((torch.full((2, PATCHES), -100), ids), 1)
    output = model.decoder(inputs_embeds=model.embeds(patches, ids), labels=labels)
    assert output.logits is not None and output.logits.shape == (2, PATCHES + 5, 97)
    output.loss.backward()
    for part in (model.patch, model.bridge, model.vision.trunk, model.decoder):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters()), part
    # decoding goes on in token ids, from a state that begins with an image
    with torch.no_grad():
        embeds, state = model.embeds(patches, ids), model.decoder.new_state(2, 16)
        model.decoder(inputs_embeds=embeds[:, :-1], state=state)
        step = model.decoder(ids[:, -1:], state=state).logits
        assert torch.allclose(step, model.decoder(inputs_embeds=embeds).logits[:, -1:], atol=1e-5)
        other = model.decoder(inputs_embeds=model.embeds(patches + 1, ids)).logits
    assert not torch.allclose(step, other[:, -1:], atol=1e-3)  # the image matters


def test_frames_behind_the_cross_attention_of_a_decoder() -> None:
    """What Whisper does: the encoder's input are frames of sound, and the decoder is one of text."""
    family = family_named("bart")
    model = randomised(family.spec(**family.tiny))
    stem = nn.Conv1d(PIXELS, model.spec.dim, 3, stride=2, padding=1)
    sound, ids = torch.randn(2, PIXELS, 20), torch.randint(0, 97, (2, 5))
    frames = stem(sound).transpose(1, 2)
    output = model(inputs_embeds=frames, decoder_input_ids=ids, labels=ids)
    assert output.loss is not None
    output.loss.backward()
    assert stem.weight.grad is not None and stem.weight.grad.abs().sum() > 0
    # any other encoder may stand in its place
    elsewhere = vision_encoder()(inputs_embeds=frames).last_hidden_state
    got = model(encoder_outputs=elsewhere, decoder_input_ids=ids).logits
    assert got is not None and not torch.allclose(got, output.logits, atol=1e-3)
