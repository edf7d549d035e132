"""Checkpoints in the Hugging Face format: `config.json` and published tensor names."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etymon.errors import CheckpointError, ConfigError
from etymon.families import ConfigReader, Family, family_named, family_of_model_type
from etymon.families.weights import Rule
from etymon.files import write_json
from etymon.hub.packed import Tensors, Unpacked, take_packing
from etymon.hub.tensors import open_tensors, read_json, write_tensors
from etymon.nn import Model
from etymon.spec import Embedding, ModelSpec, diff

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def read_spec(directory: Path) -> tuple[ModelSpec, Family]:
    """Read `config.json`. Raises ConfigError for an unknown family or a key that nobody reads."""
    path = directory / "config.json"
    values = read_json(path)
    take_packing(values, str(path))
    read = family_of_model_type(str(values.get("model_type") or ""), str(path), values.keys()).format.read
    assert read is not None
    reader = ConfigReader(values, str(path))
    spec = read(reader)
    reader.finish()
    return spec, family_named(spec.family)  # which may be a relative that publishes under the same model type


def stored_dtype(directory: Path) -> torch.dtype | None:
    """Return the dtype that `config.json` names, if it does."""
    values = read_json(directory / "config.json")
    return DTYPES.get(str(values.get("dtype") or values.get("torch_dtype")))


def read_weights(directory: Path, spec: ModelSpec, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Yield our tensors by name, made from the published ones.

    Raises CheckpointError naming every tensor that is missing or that nobody consumes.
    """
    path = directory / "config.json"
    packing = take_packing(read_json(path), str(path))
    with open_tensors(directory) as files:
        yield from consume(files if packing is None else Unpacked(files, packing), spec, family, directory)


def consume(files: Tensors, spec: ModelSpec, family: Family, where: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield our tensors by name, made from published ones wherever they lie. Raises as `read_weights`."""
    assert family.tensors.weights is not None
    published = by_published_name(files.names(), family, where)
    rules = list(family.tensors.weights(spec))
    wanted = {name for rule in rules for name in rule.published}
    missing = sorted(wanted - published.keys())
    if missing:
        raise CheckpointError(f"{where}: {len(missing)} tensors are missing: {listing(missing)}")
    unwanted = published.keys() - wanted
    if unwanted and (heads := rules_ahead(published.keys(), spec, family)):
        unwanted -= {name for rule in heads for name in rule.published}
        log.warning(
            "%s: layers behind the last one, which predict further ahead, are no part of the model; "
            "speculation heads:%s guesses by them",
            *(where, where),
        )
    surplus = sorted(n for n in unwanted if not any(re.search(pattern, n) for pattern in family.tensors.skipped))
    for copy in (*((family.tensors.head_name,) if spec.tied else ()), *family.tensors.copies):
        if copy not in surplus:
            continue
        embedding = next(rule for rule in rules if rule.ours == "embed.tokens.weight").published[0]
        if not torch.equal(files.read(published[copy]), files.read(published[embedding])):
            advice = (
                "; set tie_word_embeddings to false if the head is meant" if copy == family.tensors.head_name else ""
            )
            raise CheckpointError(
                f"{where}: config.json ties the head to the embedding, but {copy!r} differs from {embedding!r}{advice}"
            )
        surplus.remove(copy)
    if surplus:
        raise CheckpointError(f"{where}: nobody consumes {len(surplus)} tensors: {listing(surplus)}")
    for rule in rules:
        yield rule.ours, rule.read([files.read(published[name]) for name in rule.published])


def rules_ahead(published: Set[str], spec: ModelSpec, family: Family) -> list[Rule]:
    """Return the rules of the layers behind the last one all of whose tensors are there; none where there is none."""
    rules: list[Rule] = []
    while family.tensors.ahead is not None:
        more = list(family.tensors.ahead(spec, 1 + _depth(rules)))
        if not {name for rule in more for name in rule.published} <= published:
            break
        rules = more
    return rules


def _depth(rules: Iterable[Rule]) -> int:
    return len({rule.ours.split(".")[1] for rule in rules})


def depth_ahead(directory: Path) -> int:
    """Return how many whole layers of a checkpoint in this format stand behind its last one, and predict ahead."""
    path = directory / "config.json"
    if not path.exists() or not read_json(path).get("num_nextn_predict_layers"):
        return 0
    spec, family = read_spec(directory)
    with open_tensors(directory) as files:
        return _depth(rules_ahead(by_published_name(files.names(), family, directory).keys(), spec, family))


def read_ahead(directory: Path, depth: int) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Return the model's spec and the tensors of so many layers behind the last one, by the names of SequentialHeads.

    Raises CheckpointError where such a layer has an embedding or a head of its own.
    """
    spec, family = read_spec(directory)
    assert family.tensors.ahead is not None and family.tensors.weights is not None
    path = directory / "config.json"
    packing = take_packing(read_json(path), str(path))
    with open_tensors(directory) as opened:
        files = opened if packing is None else Unpacked(opened, packing)
        published = by_published_name(files.names(), family, directory)
        own = {"embed_tokens.weight": "embed.tokens.weight", "shared_head.head.weight": "head.linear.weight"}
        for end, ours in own.items():
            shared = [rule.published[0] for rule in family.tensors.weights(spec) if rule.ours == ours]
            for copy in [name for name in published if re.search(rf"\.layers\.\d+\.{re.escape(end)}$", name)]:
                if shared and not torch.equal(files.read(published[copy]), files.read(published[shared[0]])):
                    raise CheckpointError(f"{directory}: {copy!r} differs from {shared[0]!r}, which these heads share")
        rules = family.tensors.ahead(spec, depth)
        return spec, {rule.ours: rule.read([files.read(published[n]) for n in rule.published]) for rule in rules}


def by_published_name(stored_names: Iterable[str], family: Family, where: Path) -> dict[str, str]:
    """Map full published names to names in the files, which may be old ones or lack the family's prefix."""
    names: dict[str, str] = {}
    for stored in stored_names:
        name = stored
        for pattern, replacement in family.tensors.renamed.items():
            name = re.sub(pattern, replacement, name)
        if name in names:
            both = " and ".join(repr(n) for n in sorted((names[name], stored)))
            raise CheckpointError(f"{where}: there are both {both}, which are names of one tensor")
        names[name] = stored
    if any(name.startswith(family.tensors.prefix) for name in names):
        return names
    return {
        name if name == family.tensors.head_name else family.tensors.prefix + name: stored
        for name, stored in names.items()
    }


def publishes(spec: ModelSpec) -> bool:
    """Return whether the family of `spec` has a published format that says all of it."""
    family = family_named(spec.family)
    if family.tensors.weights is None or family.format.write is None or isinstance(spec.head, Embedding):
        return False
    try:
        return not lost(spec, family.format.write(spec))
    except ConfigError:
        return False


def lost(spec: ModelSpec, config: dict[str, Any]) -> list[str]:
    """Return what `spec` says and its published `config`, read again, does not: `key: ours -> theirs`.

    The name and the longest input are no part of what a model computes, who sees a blank follows from its ids, and a
    pooler whose tensors are missing is missed aloud.
    """
    read = family_named(spec.family).format.read
    if read is None:
        return []
    try:
        found = read(ConfigReader(json.loads(json.dumps(config)), "config.json"))
    except ConfigError as error:
        return [str(error)]
    free = ("name", "family", "context", "decoder.visibility.begin", "decoder.visibility.blanks", "head.pooler")
    return [f"{key}: {ours} -> {theirs}" for key, ours, theirs in diff(spec, found) if key not in free]


def listing(names: list[str]) -> str:
    """Return the first of some names in words."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def write(model: Model, directory: Path, token_ids: dict[str, Any], max_shard_bytes: int) -> None:
    """Write `config.json`, `generation_config.json` and the tensors under their published names into `directory`.

    `token_ids` are the tokenizer's bos, eos and pad ids, as the config names them.
    """
    family = family_named(model.spec.family)
    rules, config_of = family.tensors.weights, family.format.write
    if rules is None or config_of is None:
        raise ConfigError(f"{family.title} has no published format: save the model in the etymon format")
    config = {
        "architectures": [family.format.architecture],
        "model_type": family.format.model_type,
        **({} if isinstance(model.spec.head, Embedding) else config_of(model.spec)),
    }
    if isinstance(model.spec.head, Embedding):
        raise ConfigError(
            f"{family.title}'s published format has no {model.spec.head}: save the model in the etymon format"
        )
    if missing := lost(model.spec, config):
        raise ConfigError(
            f"{family.title}'s published format does not say all that this model is, and would be read as another "
            f"({listing(missing)}): save the model in the etymon format"
        )
    dtype = {v: k for k, v in DTYPES.items()}.get(model.dtype, "float32")
    write_json(directory / "config.json", config | token_ids | {"dtype": dtype, "use_cache": True})
    if token_ids:
        write_json(directory / "generation_config.json", token_ids)
    state = model.state_dict()

    def published() -> Iterator[tuple[str, Tensor]]:
        for rule in rules(model.spec):
            yield from rule.write(state[rule.ours]).items()

    write_tensors(published(), directory, max_shard_bytes)
