"""PaLM (Chowdhery et al. 2022, arXiv:2204.02311) and U-PaLM (Tay et al. 2022, arXiv:2210.11399).

What was new over GPT-3: attention and a gated feed-forward layer side by side after one norm, one head of keys and
values, rotary positions, no biases at all, a tied head whose logits are divided by sqrt(dim). U-PaLM is a PaLM trained
a little further to fill in spans.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etymon.families import llama
from etymon.families.descent import side_by_side, with_blocks
from etymon.families.family import Family, extends
from etymon.families.origin import Origin, Recorded
from etymon.spec import LM, LayerNorm, ModelSpec


@extends(llama.build)
def build(
    *,
    name: str = "palm",
    vocab: int = 256000,
    dim: int,
    context: int = 2048,
    kv_heads: int = 1,
    head_dim: int = 256,
    hidden: int | None = None,
    eps: float = 1e-5,
    tied: bool = True,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a PaLM; heads are of width `head_dim` whatever `dim` is."""
    sizes = {"vocab": vocab, "dim": dim, "context": context, "hidden": hidden or 4 * dim, "eps": eps}
    spec = llama.build(name=name, kv_heads=kv_heads, head_dim=head_dim, **sizes, **dimensions)  # type: ignore[arg-type]
    norm = LayerNorm(eps=eps, bias=False)
    spec = with_blocks(spec, "palm", lambda block: side_by_side(norm, *(sub.op for sub in block.subs)))
    head = LM(tied=tied, scale=dim**-0.5)
    return dataclasses.replace(spec, head=head, decoder=dataclasses.replace(spec.trunk, final_norm=norm))


_SIZES: dict[str, dict[str, Any]] = {
    "palm-8b": {"dim": 4096, "layers": 32, "heads": 16},
    "palm-62b": {"dim": 8192, "layers": 64, "heads": 32},
    "palm-540b": {"dim": 18432, "layers": 118, "heads": 48},
}
FAMILY = Family(
    name="palm",
    title="PaLM",
    paper="https://arxiv.org/abs/2204.02311",
    origin=Origin(
        published="2022-04",
        parents=("gpt3", "gptj"),
        brought="540 billion parameters on 6144 chips; steps of reasoning in the prompt",
        reference=Recorded("lucidrains' PaLM-pytorch"),
        counts={
            "palm-8b": "8.63B",
            "palm-62b": "62.50B",
            "palm-540b": "540.36B",
            "u-palm-8b": "8.63B",
            "u-palm-62b": "62.50B",
            "u-palm-540b": "540.36B",
        },
    ),
    build=build,
    sizes=_SIZES | {f"u-{name}": size for name, size in _SIZES.items()},
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "head_dim": 8, "context": 64},
)
