"""The benchmarks' own machinery: samples, curves and reports are what they say. No speed is asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_rounds_interleave_and_ratios_are_within_a_round() -> None:
    from measure import Rounds, Span, interleave

    order: list[str] = []

    def contestant(name: str):
        def work() -> float:
            order.append(name)
            return 1.0

        return work

    result = interleave("x/s", {"a": contestant("a"), "b": contestant("b")}, rounds=2)
    assert order == ["a", "b"] * 3  # the first round does not count
    assert len(result.values("a")) == len(result.values("b")) == 2
    assert result.foreign >= 0

    rounds = Rounds("x/s")
    for ours, theirs in ((4.0, 2.0), (30.0, 10.0)):
        rounds.add("a", ours, Span(1.0, 0.0))
        rounds.add("b", theirs, Span(3.0, 1.0))
    assert rounds.ratios("a", "b") == [2.0, 3.0]
    assert rounds.foreign == pytest.approx(0.75)


def test_time_to_a_goal_is_interpolated() -> None:
    from measure import Span
    from to_loss import Curve

    curve = Curve()
    for seconds, loss in ((0.0, 8.0), (10.0, 5.0), (10.0, 4.0), (10.0, 4.5)):
        curve.add(Span(seconds, 0.5), 1, loss)
    assert curve.time_to(4.5) == pytest.approx(15.0)
    assert curve.time_to(8.0) == 0.0
    assert curve.time_to(3.9) is None
    assert curve.best == 4.0
    assert curve.foreign == pytest.approx(0.5)


def test_recipe_changes_by_dotted_keys() -> None:
    from etymon.errors import ConfigError
    from to_loss import read_recipe

    recipe = read_recipe(["optimizer.adamw.lr=0.002", "schedule.decay=0.4", "activation=gelu"])
    assert recipe.optimizer.adamw.lr == 0.002
    assert (recipe.schedule.decay, recipe.activation) == (0.4, "gelu")
    with pytest.raises(ConfigError, match="lrr"):
        read_recipe(["optimizer.lrr=0.1"])
    with pytest.raises(ConfigError, match="optimiser"):
        read_recipe(["optimiser.lr=0.1"])


def test_held_out_windows_are_held_out(tmp_path: Path) -> None:
    import corpus
    from etymon.data import PretrainLoader

    file = tmp_path / "text.txt"
    file.write_text("".join(f"行 {i} is a line of its own.\n" for i in range(60_000)), encoding="utf-8")
    made = corpus.prepare(tmp_path / "data", text=file, vocab=400, context=32, windows=5)
    assert made.held_out.shape == (5, 33)
    stream = made.stream().astype("<i4").tobytes()
    window = made.held_out[2].numpy().astype("<i4").tobytes()
    assert window not in stream
    assert PretrainLoader(made.shards, 2, 32).batch(0).input_ids.shape == (2, 32)


def test_fit_gives_its_turns_away(tmp_path: Path) -> None:
    import corpus
    import etymon
    from etymon.data import PretrainLoader
    from etymon.families.gpt2 import FAMILY
    from etymon.train import AdamWConfig
    from turns import fit_in_turns

    made = corpus.prepare(tmp_path, text=None, vocab=400, context=16, windows=1, limit=100_000)
    model = etymon.build(FAMILY.spec(dim=16, layers=1, heads=2, vocab=400, context=16))
    turns = []
    fit_in_turns(
        model,
        PretrainLoader(made.shards, 2, 16),
        steps=5,
        every=2,
        turn=lambda model, step, span: turns.append((step, span)),
        optimizer=AdamWConfig(),
    )
    assert [step for step, _ in turns] == [0, 2, 4, 5]
    assert turns[0][1] is None
    assert all(span.seconds > 0 for _, span in turns[1:])


def test_missing_nanogpt_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pretrain
    from publish import command

    with pytest.raises(SystemExit) as stop:
        command(lambda: pretrain.main(["--nanogpt", str(tmp_path), "--quick", "--threads", "1"]))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "git clone" in error and error.count("\n") == 1


def test_quick_decode_writes_its_result(tmp_path: Path) -> None:
    import decode

    decode.main(["--quick", "--threads", "1", "--rows", "1", "2", "--results", str(tmp_path)])
    page = next(tmp_path.glob("decode-*.md")).read_text(encoding="utf-8")
    data = json.loads(next(tmp_path.glob("decode-*.json")).read_text(encoding="utf-8"))
    assert "tiny, batch 2: transformers generate" in page
    assert all(case["agreed"] == 1.0 for case in data["cases"])
    assert {"cpu", "commit", "transformers"} <= data["machine"].keys()


def test_quick_prefix_finds_the_prefix(tmp_path: Path) -> None:
    import prefix

    prefix.main(["--quick", "--threads", "1", "--results", str(tmp_path)])
    data = json.loads(next(tmp_path.glob("prefix-*.json")).read_text(encoding="utf-8"))
    assert set(data["agreed"].values()) == {1.0}
    # of 56 tokens, whole blocks of 16: those of the prefix of 40, of three requests; or, once all were read,
    # those of the prompts
    expected = {"without the cache": 0.0, "with the cache, cold": 3 * 32 / (4 * 56), "with the cache, warm": 48 / 56}
    assert data["hits"] == pytest.approx(expected)


def test_quick_speculation_changes_no_token(tmp_path: Path) -> None:
    import speculation

    speculation.main(["--quick", "--threads", "1", "--results", str(tmp_path)])
    data = json.loads(next(tmp_path.glob("speculation-*.json")).read_text(encoding="utf-8"))
    assert {"code", "revision", "extraction"} < data.keys() and 0 < data["code"]["accepted"] <= 1
    (_, revision, extraction) = speculation.tasks(1)
    assert "_value" in revision.answer and revision.answer.replace("_value", "") in revision.prompt
    assert all(line.strip() in extraction.prompt for line in extraction.answer.splitlines())


def test_quick_overhead_is_a_part_of_the_step(tmp_path: Path) -> None:
    import overhead

    overhead.main(["--quick", "--threads", "1", "--results", str(tmp_path)])
    data = json.loads(next(tmp_path.glob("overhead-*.json")).read_text(encoding="utf-8"))
    assert len(data) == 2 + len(overhead.KINDS)
    for kind in overhead.KINDS:
        (share,) = data[f"tiny, batch 2: {kind}"]["shares"]
        assert 0 < share < 1


def test_quick_families_write_their_result(tmp_path: Path) -> None:
    import families

    families.main(["--quick", "--threads", "1", "--modes", "eager", "--results", str(tmp_path)])
    data = json.loads(next(tmp_path.glob("families-*.json")).read_text(encoding="utf-8"))
    reached = {(case["family"], case["part"]) for case in data["cases"]}
    assert reached == {(name, part) for name in ("gpt2", "llama", "bert", "t5") for part in ("loss", "trunk")}
    assert len(data["meta_seconds"]) == 3


def test_quick_optimizers_write_their_result(tmp_path: Path) -> None:
    import optimizers

    optimizers.main(["--quick", "--threads", "1", "--results", str(tmp_path)])
    found = json.loads(next(tmp_path.glob("optimizers-*.json")).read_text(encoding="utf-8"))
    data = found["optimizers"]
    assert found["memory"].keys() == {"inference", "mezo"}
    assert data.keys() == optimizers.TRIED.keys()
    assert all(0 < each["loss"] < 6.5 and each["step_ms"] > 0 for each in data.values())
    assert data["mezo"]["bytes_per_parameter"] == 0 < data["adafactor"]["bytes_per_parameter"] < 4


def test_no_benchmark_module_hides_another() -> None:
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    assert not names & set(sys.stdlib_module_names)


def test_quick_packing_writes_its_result(tmp_path: Path) -> None:
    import packing

    packing.main(["--quick", "--threads", "1", "--results", str(tmp_path)])
    data = json.loads(next(tmp_path.glob("packing-*.json")).read_text(encoding="utf-8"))
    assert set(data["rounds"]["samples"]) == {packing.PACKED, packing.PADDED, packing.TRANSFORMERS}
    assert data["packing"]["efficiency"] > 0.8


def test_quick_objectives_write_their_result(tmp_path: Path) -> None:
    import objectives

    objectives.main(["--quick", "--threads", "1", "--only", "mlm", "ul2", "--results", str(tmp_path)])
    data = json.loads(next(tmp_path.glob("objectives-*.json")).read_text(encoding="utf-8"))
    first, second = data["results"]["mlm"], data["results"]["ul2"]
    # a step of UL2 has another price; that of all steps is the same, but for one of them
    assert abs(first["flops"] - second["flops"]) < max(r["flops"] / r["steps"] for r in (first, second))


def test_quick_transfer_ends_with_the_same_wide_model(tmp_path: Path) -> None:
    import transfer

    transfer.main(["--quick", "--threads", "1", "--results", str(tmp_path)])
    data = json.loads(next(tmp_path.glob("transfer-*.json")).read_text(encoding="utf-8"))
    plain, scaled = data["losses"].values()
    assert plain["64"] == scaled["64"]  # the base width
    assert plain["32"] != scaled["32"]
    assert next(tmp_path.glob("transfer-*.svg")).read_text(encoding="utf-8").startswith("<?xml")
