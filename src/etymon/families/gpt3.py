"""GPT-3 (Brown et al. 2020, arXiv:2005.14165). Codex (Chen et al. 2021, arXiv:2107.03374) has the same form.

What was new over GPT-2: size, a context of 2048, and locally banded attention on every second layer. The paper gives no
width of the band; 256, that of GPT-Neo, stands here. The 13B row of its table prints a width of 5140, which is not a
multiple of its 40 heads; 5120 is.
"""

from __future__ import annotations

from typing import Any

from etymon.families import gpt2
from etymon.families.descent import with_windows
from etymon.families.family import Family, extends
from etymon.families.origin import Origin, Paper
from etymon.spec import ModelSpec


@extends(gpt2.build)
def build(*, name: str = "gpt3", layers: int, context: int = 2048, window: int | None = 256, **rest: Any) -> ModelSpec:
    """Return the spec of a GPT-3; `window` is that of the second, fourth, … layer."""
    spec = gpt2.build(name=name, layers=layers, context=context, **rest)
    return with_windows(spec, "gpt3", [window if i % 2 else None for i in range(layers)])


_CODEX = {"vocab": 50281}
FAMILY = Family(
    name="gpt3",
    title="GPT-3",
    paper="https://arxiv.org/abs/2005.14165",
    origin=Origin(
        published="2020-05",
        parents=("gpt2",),
        brought="a hundred times larger: tasks learned from examples in the prompt",
        reference=Paper(),
        counts={
            "gpt3-small": "125M",
            "gpt3-medium": "355.9M",
            "gpt3-large": "760M",
            "gpt3-xl": "1.3B",
            "gpt3-2.7b": "2.7B",
            "gpt3-6.7b": "6.7B",
            "gpt3-13b": "13B",
            "gpt3-175b": "175B",
            "codex-85m": "125.2M",
            "codex-300m": "355.9M",
            "codex-679m": "760.3M",
            "codex-2.5b": "2.652B",
            "codex-12b": "12.854B",
        },
        claims={"gpt3-medium": "350M, rounded down"},
    ),
    build=build,
    sizes={
        "gpt3-small": {"dim": 768, "layers": 12, "heads": 12},
        "gpt3-medium": {"dim": 1024, "layers": 24, "heads": 16},
        "gpt3-large": {"dim": 1536, "layers": 24, "heads": 16},
        "gpt3-xl": {"dim": 2048, "layers": 24, "heads": 16},
        "gpt3-2.7b": {"dim": 2560, "layers": 32, "heads": 32},
        "gpt3-6.7b": {"dim": 4096, "layers": 32, "heads": 32},
        "gpt3-13b": {"dim": 5120, "layers": 40, "heads": 40},
        "gpt3-175b": {"dim": 12288, "layers": 96, "heads": 96},
        # Codex is named by its parameters outside the embeddings, and has 24 tokens more, for runs of blanks
        "codex-85m": _CODEX | {"dim": 768, "layers": 12, "heads": 12},
        "codex-300m": _CODEX | {"dim": 1024, "layers": 24, "heads": 16},
        "codex-679m": _CODEX | {"dim": 1536, "layers": 24, "heads": 16},
        "codex-2.5b": _CODEX | {"dim": 2560, "layers": 32, "heads": 32},
        "codex-12b": _CODEX | {"dim": 5120, "layers": 40, "heads": 40},
    },
    tiny=gpt2.FAMILY.tiny | {"window": 16},
)
