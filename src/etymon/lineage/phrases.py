"""A difference in a few words: "rotary positions, RMSNorm, gated silu, no biases"."""

from __future__ import annotations

import re
from collections.abc import Callable

from etymon.lineage.differences import ABSENT, Change

POSITIONS = ("embed.position", "attention.rope", "attention.scores", "relative")
MINOR = re.compile(r"eps$|embed\.(position\.|segments|scale)|final norm|\.scale$|head\.(projection|bias|scale)|offset$")
WORDS: dict[str, Callable[[str, str], str]] = {
    "stacks": lambda old, new: new if " and " in new else f"{new} alone",
    "norm": lambda old, new: re.sub(r"\(.*\)", "", new),
    "norm.bias": lambda old, new: "norms with biases" if new == "yes" else "norms without biases",
    "norm.scale": lambda old, new: "norms without weights" if new == "no" else "norms with weights",
    "norm place": lambda old, new: {
        "before": "norms before sublayers",
        "behind": "norms behind sublayers",
        "after the sum": "norms after the sum",
        "before and behind": "norms on both sides",
    }.get(new, ""),
    "wiring": lambda old, new: "sublayers side by side" if new == "parallel" else "sublayers in sequence",
    "shared weights": lambda old, new: "one block for all layers" if new == "yes" else "blocks of their own",
    "embed.norm": lambda old, new: "embeddings normalised" if old == ABSENT else "",
    "embed.projection": lambda old, new: "embeddings factorised" if old == ABSENT else "",
    "head.tied": lambda old, new: "tied head" if new == "yes" else "untied head",
    "head.softcap": lambda old, new: f"logits capped at {new}" if new != ABSENT else "logits uncapped",
    "head": lambda old, new: "no head" if new.startswith("Hidden") else f"{_kind(new)} head",
    "recurrence": lambda old, new: re.sub(r"\(.*\)", "", new) if new != ABSENT else "",
    "attention.keys": lambda old, new: {
        "one for all heads": "multi-query attention",
        "shared by groups of heads": "grouped queries",
        "one for each head": "keys for every head",
    }.get(new, ""),
    "attention.window": lambda old, new: _window(new),
    "attention.qk_norm": lambda old, new: "queries and keys normalised" if old == ABSENT else "",
    "attention.softcap": lambda old, new: f"scores capped at {new}" if new != ABSENT else "scores uncapped",
    "attention.clip": lambda old, new: "queries, keys and values clipped" if new != ABSENT else "",
    "attention.head width": lambda old, new: "heads of their own width" if new == "its own" else "",
    "attention.rope.base": lambda old, new: "rotary bases in turn" if "turn" in new else f"rotary base {new}",
    "attention.rope.scaling": lambda old, new: _scaling(new),
    "attention.rope.part": lambda old, new: f"rotary on {new} of each head",
    "attention": lambda old, new: _kind(new) if new != ABSENT else "",
    "ffn": lambda old, new: _feed_forward(new) if new != ABSENT else "",
    "ffn.activation": lambda old, new: new,
    "ffn.experts": lambda old, new: f"{new} experts",
    "ffn.router.k": lambda old, new: f"{new} experts for each token",
    "ffn.router.renormalise": lambda old, new: "",
}  # fmt: skip


def phrase(changes: list[Change], most: int = 6) -> str:
    """Return what changed in a few words; "the same design" where nothing did, and the fields where it was nothing
    that a person would name."""
    found = [_positions(changes), *map(_words, changes), _biases(changes)]
    said = list(dict.fromkeys(filter(None, found)))
    if not said:
        return "only " + ", ".join(change.where for change in changes[:3]) if changes else "the same design"
    return ", ".join(said[:most]) + (" …" if len(said) > most else "")


def _words(change: Change) -> str:
    if change.where in POSITIONS or change.where.endswith("bias") or MINOR.search(change.where):
        return WORDS[change.where](change.before, change.after) if change.where in WORDS else ""
    if change.where in WORDS:
        return WORDS[change.where](change.before, change.after)
    stack, _, rest = change.where.partition(".")
    if stack in ("encoder", "decoder") and rest:
        return ""  # what an encoder and its decoder do differently is a detail
    if "." not in change.where:
        return _kind(change.after) if change.after != ABSENT else ""
    if change.where.count(".") > 1:
        return ""
    where = change.where.replace(".", " ").replace("_", " ")
    return f"no {where}" if change.after == ABSENT else f"{where} {change.after}"


def _positions(changes: list[Change]) -> str:
    """Say where positions are told now, whatever they were before."""
    new = {change.where: change.after for change in changes if change.where in POSITIONS and change.after != ABSENT}
    if rope := new.get("attention.rope"):
        part = re.search(r"\d+% of each head", rope)
        return f"rotary positions on {part[0]}" if part else "rotary positions"
    for where in ("attention.scores", "relative", "embed.position"):
        if where in new:
            kind = re.sub(r"\(.*", "", new[where])
            plain = {"ALiBi": "ALiBi", "BucketBias": "relative positions in buckets"}
            return plain.get(kind, "relative positions" if "Relative" in kind else f"{_kind(kind)} positions")
    return ""


def _biases(changes: list[Change]) -> str:
    found = {c.where: c.after for c in changes if c.where in ("attention.bias", "ffn.bias")}
    ffn = next((c for c in changes if c.where == "ffn"), None)
    gone = {name for name, after in found.items() if after in (ABSENT, "no")}
    if found and gone == found.keys():
        plain = ffn is not None and ffn.after.startswith(("Gated", "MoE")) and "bias" not in ffn.after
        return (
            "no biases"
            if len(found) == 2 or plain
            else f"no biases in {'attention' if 'attention.bias' in gone else 'ffn'}"
        )
    attention = found.get("attention.bias")
    return {"qkv": "biases on q, k, v", "o": "no biases on q, k, v", "qkvo": "biases"}.get(attention or "", "")


def _window(new: str) -> str:
    if new == "all":
        return "no windows"
    return "windows in some layers" if "all" in new else f"window of {new}"


def _scaling(new: str) -> str:
    if "turn" in new:
        return ""
    return f"rotary {_kind(new)}" if new != ABSENT else "rotary unscaled"


def _feed_forward(new: str) -> str:
    experts = re.search(r"experts (\d+(?:,\d+)*)", new)
    if experts:
        each = re.search(r"\bk (\d+)", new)
        return f"{experts[1]} experts" + (f", {each[1]} for each token" if each else "")
    kind, _, inside = new.partition("(")
    activation = inside.rstrip(")").split(",")[0]
    return {"Gated": f"gated {activation}", "Dense": f"ungated {activation}"}.get(kind, _kind(new))


def _kind(text: str) -> str:
    """Write a type's name as words: SelectiveSSM as "selective SSM"."""
    name = re.sub(r"\(.*\)", "", text)
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+|[^\sA-Za-z]+", name)
    return " ".join(word if word.isupper() and len(word) > 1 else word.lower() for word in words) or name
