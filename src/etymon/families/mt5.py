"""mT5 (Xue et al. 2020, arXiv:2010.11934).

What was new over T5 v1.1: text of 101 languages and a vocabulary of 250,112. Heads are untied, whatever newer
configurations say.
"""

from __future__ import annotations

from functools import partial

from etymon.families import t5
from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Running

_MT5 = {"vocab": 250112, "feed_forward": "gated-gelu", "tied": False}
FAMILY = Family(
    name="mt5",
    title="mT5",
    paper="https://arxiv.org/abs/2010.11934",
    origin=Origin(
        published="2020-10",
        parents=("t5",),
        brought="T5 in a hundred and one languages",
        reference=Running(),
        counts={
            "mt5-small": 300_176_768,
            "mt5-base": 582_401_280,
            "mt5-large": 1_229_581_312,
            "mt5-xl": 3_742_619_648,
            "mt5-xxl": 12_921_057_280,
        },
    ),
    build=partial(t5.build, family="mt5"),
    sizes={f"mt5-{size}": _MT5 | dimensions for size, dimensions in t5.V1_1.items()},
    tiny=t5.FAMILY.tiny | {"feed_forward": "gated-gelu", "tied": False},
    objective="span_corruption",
    format=Format(
        model_type="mt5",
        architecture="MT5ForConditionalGeneration",
        read=partial(t5.read, family="mt5", tied=False),
        write=t5.write,
    ),
    tensors=Tensors(
        weights=t5.weights,
        skipped=t5.SKIPPED,
        copies=t5.COPIES,
    ),
)
