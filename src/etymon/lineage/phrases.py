"""A difference in a few words: "rotary positions, RMSNorm, gated silu, no biases"."""

from __future__ import annotations

import re
from collections.abc import Callable

from etymon.lineage.differences import ABSENT, Change

POSITIONAL = {
    "ALiBi": "ALiBi",
    "BucketBias": "relative positions in buckets",
    "RelativeSinusoids": "relative positions",
    "Disentangled": "positions apart from contents",
}
VIEWS = {"Permuted": "words in any order", "Infill": "blanks filled", "Prefix": "prefixes that see themselves"}
FIRST = (
    *("stacks", "visibility", "attention", "recurrence", "ssm", "time_mix", "channel_mix", "ffn"),
    *("norm", "norm place", "wiring", "attention.keys", "attention.qk_norm", "attention.window"),
)
POSITIONS = ("embed.position", "attention.rope", "attention.scores", "relative")
MINOR = re.compile(
    r"eps$|offset$|\.scale$|^final norm|^relative\.|^head\.(projection|bias)"
    r"|^embed\.(position\.|segments|tasks|languages)"
)
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
    "wiring": lambda old, new: {
        "parallel": "sublayers side by side",
        "sequential": "sublayers in sequence",
    }.get(new, ""),
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
    "attention.scores": lambda old, new: "" if _type(new) in (*POSITIONAL, ABSENT) else _kind(new),
    "attention.alpha": lambda old, new: "a weighted stream (DeepNorm)" if "layers" in new else "",
    "ffn.alpha": lambda old, new: "",
    "visibility": lambda old, new: VIEWS.get(_type(new), ""),
    "attention": lambda old, new: _attention(new) if new != ABSENT else "",
    "ffn": lambda old, new: _feed_forward(new) if new != ABSENT else "",
    "ffn.activation": lambda old, new: new,
    "ffn.experts": lambda old, new: f"{new} experts",
    "ffn.router.k": lambda old, new: f"{new} experts for each token",
    "ffn.router.renormalise": lambda old, new: "",
}  # fmt: skip


def phrase(changes: list[Change], most: int = 6) -> str:
    """Return what changed in a few words, what matters most first; "the same design" where nothing did, and the fields
    where it was nothing that a person would name."""
    ordered = sorted(changes, key=lambda change: FIRST.index(change.where) if change.where in FIRST else len(FIRST))
    found = [_words(change) for change in ordered]
    at = sum(change.where in FIRST[:1] for change in ordered)
    found = [*found[:at], _positions(changes), *found[at:], _biases(changes)]
    said = list(dict.fromkeys(filter(None, found)))
    if not said:
        return "only " + ", ".join(change.where for change in changes[:3]) if changes else "the same design"
    return ", ".join(said[:most]) + (" …" if len(said) > most else "")


def _words(change: Change) -> str:
    if (
        change.where in ("embed.position", "attention.rope", "relative")
        or change.where.endswith("bias")
        or MINOR.search(change.where)
    ):
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
            kind = _type(new[where])
            if where == "embed.position" or kind in POSITIONAL:
                return POSITIONAL.get(kind, f"{_kind(kind)} positions")
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


def _attention(new: str) -> str:
    some = re.search(r"; in (\d+ of \d+ layers) (\w+)", new)
    return f"{_kind(some[2])} in {some[1]}" if some else _kind(new)


def _type(text: str) -> str:
    return re.sub(r"\(.*", "", text)


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
