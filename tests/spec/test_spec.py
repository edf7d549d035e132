"""Specs as values: counts without torch, JSON in both directions, differences, errors."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time

import pytest

from etymon.errors import ConfigError
from etymon.families import families, family_named
from etymon.nn import build, count
from etymon.spec import ModelSpec, RMSNorm, diff

SIZES = [(family.name, size) for family in families().values() for size in family.sizes]


@pytest.mark.parametrize(("family", "size"), SIZES)
def test_published_counts(family: str, size: str) -> None:
    spec, counts = family_named(family).spec(size), family_named(family).origin.counts
    assert size in counts, 'origin.counts: the published number of parameters, exact or rounded ("6.74B")'
    total, published = count(spec).total, counts[size]
    if isinstance(published, str):
        number, unit = float(published[:-1]), {"M": 1e6, "B": 1e9, "T": 1e12}[published[-1]]
        assert abs(total / unit - number) <= 0.51 * 10 ** -len(published[:-1].partition(".")[2])
    else:
        assert total == published
    assert sum(p.numel() for p in build(spec, device="meta").parameters()) == total


def test_a_540b_model_is_counted_and_built_on_meta_in_about_a_second() -> None:
    start = time.perf_counter()
    spec = family_named("llama").spec(
        vocab=256000, dim=18432, layers=118, heads=48, head_dim=256, hidden=73728, context=2048, kv_heads=1
    )
    model = build(spec, device="meta")
    elapsed = time.perf_counter() - start
    assert 4e11 < count(spec).total == sum(p.numel() for p in model.parameters())
    assert elapsed < 20, "it takes well under a second on an idle machine; this only catches real allocation"


@pytest.mark.parametrize("family", families().values(), ids=lambda f: f.name)
def test_json_in_both_directions(family: object) -> None:
    spec = family.spec(**family.tiny)  # type: ignore[attr-defined]
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    assert list(diff(spec, spec)) == []


def test_json_errors_name_the_field() -> None:
    value = family_named("llama").spec("llama-7b").to_dict()
    with pytest.raises(ConfigError, match=r"ModelSpec has no field 'contxt'.*Did you mean 'context'"):
        ModelSpec.from_dict(value | {"contxt": 1})
    with pytest.raises(ConfigError, match="unknown type 'Embedd'"):
        ModelSpec.from_dict(value | {"embed": {"type": "Embedd"}})
    with pytest.raises(ConfigError, match="missing"):
        ModelSpec.from_dict({k: v for k, v in value.items() if k != "dim"})


def test_diff_is_the_whole_difference() -> None:
    a, b = family_named("llama").spec("llama-7b"), family_named("llama").spec("llama2-7b")
    changed = {path: (x, y) for path, x, y in diff(a, b)}
    assert changed["name"] == ("llama-7b", "llama2-7b")
    assert changed["context"] == (2048, 4096)
    assert changed["decoder.final_norm.eps"] == (1e-6, 1e-5)
    assert all(path == "name" or path == "context" or path.endswith("eps") for path in changed)
    deeper = dataclasses.replace(a, decoder=dataclasses.replace(a.decoder, final_norm=RMSNorm(eps=1.0)))
    assert [path for path, _, _ in diff(a, deeper)] == ["decoder.final_norm.eps"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: family_named("lama"), "Did you mean 'llama'"),
        (lambda: family_named("llama").spec("llama2-7B"), "Did you mean 'llama2-7b'"),
        (lambda: family_named("llama").spec("llama-7b", hiden=3), "Did you mean 'hidden'"),
        (lambda: family_named("llama").spec(dim=3), "give a number for each"),
        (lambda: family_named("llama").spec("llama-7b", kv_heads=5), "multiple of kv_heads"),
        (lambda: family_named("llama").spec("llama-7b", activation="gelus"), "Did you mean 'gelu'"),
        (lambda: family_named("gpt2").spec(dim=30, heads=4, layers=1), "multiple of heads"),
        (lambda: family_named("gpt2").spec("gpt2", vocab=0), "vocab=0"),
    ],
)
def test_impossible_specs_are_refused(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()  # type: ignore[operator]


def test_spec_needs_no_torch() -> None:
    code = "import etymon.spec, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
