from __future__ import annotations

import math

import pytest
import torch
import transformers
from pydantic import ValidationError
from torch.optim.lr_scheduler import OneCycleLR
from train_setups import OPTIMIZERS, Counting, config, tiny_model

from etymon.objectives import CausalLM
from etymon.train import (
    Budget,
    Constant,
    Cosine,
    InverseSquareRoot,
    Linear,
    OneCycle,
    Tokens,
    TrainConfig,
    WarmupStableDecay,
    fit,
    loop,
    step,
)
from etymon.train.optimizers import build_optimizers
from etymon.train.schedules import in_steps, steps_of

SCHEDULES = [
    WarmupStableDecay(warmup=0.1, decay=0.3),
    WarmupStableDecay(warmup=10, decay=30, final=0.1),
    Cosine(warmup=0.1),
    Cosine(warmup=10, final=0.1),
    Linear(warmup=0.1),
    Linear(warmup=10, final=0.1),
    InverseSquareRoot(warmup=10),
    Constant(warmup=10),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_warms_up_peaks_at_one_and_never_reaches_zero(schedule):
    factors = [schedule.factor(step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(factors) == 1.0
    assert min(factors) > 0
    rest = factors[10:]
    assert rest == sorted(rest, reverse=True)


def test_wsd_is_flat_and_then_linear():
    schedule = WarmupStableDecay(warmup=10, decay=20)
    assert all(schedule.factor(step, 100) == 1.0 for step in range(9, 81))
    assert [schedule.factor(step, 100) for step in (90, 99)] == pytest.approx([0.5, 0.05])


def test_final_is_where_decays_end():
    assert Cosine(warmup=0, final=0.1).factor(999, 1000) == pytest.approx(0.1, abs=1e-4)
    assert WarmupStableDecay(final=0.1).factor(999, 1000) == pytest.approx(0.1, abs=0.01)


def test_cosine_is_half_way_in_the_middle():
    assert Cosine(warmup=0).factor(500, 1000) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_of_one_step_has_a_rate(schedule):
    assert schedule.factor(0, 1) > 0


def factors_of(scheduler_of, steps):
    """The factors that a scheduler of torch's kind gives to each update; it counts them from 0 and begins at 0."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_of(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def expect(schedule, theirs, total, *, warmup=0, after=0):
    """Ours warms up to the full rate AT the last update of the warm-up, theirs (of `after` 0) one update later."""
    ours = [schedule.factor(step, total) for step in range(total)]
    assert ours[:warmup] == pytest.approx(theirs[1 : warmup + 1], abs=1e-9)
    assert ours[warmup:] == pytest.approx(theirs[warmup + after : total + after], abs=1e-9)


def test_linear_and_cosine_are_those_of_transformers():
    linear = factors_of(lambda o: transformers.get_linear_schedule_with_warmup(o, 13, 200), 201)
    expect(Linear(warmup=13), linear, 200, warmup=13)
    cosine = factors_of(lambda o: transformers.get_cosine_schedule_with_warmup(o, 13, 200), 201)
    expect(Cosine(warmup=13), cosine, 200, warmup=13)
    floor = {"num_warmup_steps": 13, "num_training_steps": 200, "min_lr_rate": 0.1}
    cosine = factors_of(lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup(o, **floor), 201)
    expect(Cosine(warmup=13, final=0.1), cosine, 200, warmup=13)
    power = {"num_warmup_steps": 13, "num_training_steps": 150, "lr_end": 0.1, "power": 1.0}
    linear = factors_of(lambda o: transformers.get_polynomial_decay_schedule_with_warmup(o, **power), 201)
    expect(Linear(warmup=13, final=0.1, length=150), linear, 200, warmup=13)  # what lies behind the end has its rate


def test_inverse_square_root_is_that_of_transformers_and_of_the_papers():
    theirs = factors_of(lambda o: transformers.get_inverse_sqrt_schedule(o, 13), 201)
    expect(InverseSquareRoot(warmup=13), theirs, 200, warmup=13, after=1)
    schedule, peak = InverseSquareRoot(warmup=4000), 512**-0.5 * 4000**-0.5
    for n in (1, 17, 3999, 4000, 4001, 100_000):  # Vaswani et al. 2017, section 5.3
        paper = 512**-0.5 * min(n**-0.5, n * 4000**-1.5)
        assert peak * schedule.factor(n - 1, 100_000) == pytest.approx(paper, rel=1e-12)
    t5 = InverseSquareRoot(warmup=0, hold=10_000)
    for n in (1, 9_999, 10_000, 10_001, 1 << 20):  # Raffel et al. 2020, section 3.1.2
        assert 0.01 * t5.factor(n - 1, 1 << 20) == pytest.approx(1 / math.sqrt(max(n, 10_000)), rel=1e-12)


@pytest.mark.parametrize(("rise", "start", "final"), [(0.3, 1 / 25, 1 / 250_000), (0.5, 0.1, 0.01)])
def test_one_cycle_is_that_of_torch(rise, start, final):
    settings = {"max_lr": 1.0, "total_steps": 200, "pct_start": rise, "cycle_momentum": False}
    theirs = factors_of(lambda o: OneCycleLR(o, **settings, div_factor=1 / start, final_div_factor=start / final), 199)
    schedule = OneCycle(rise=rise, start=start, final=final)
    assert [schedule.factor(step, 200) for step in range(199)] == pytest.approx(theirs, abs=1e-9)
    assert schedule.factor(199, 200) == pytest.approx(final)
    assert OneCycle().factor(0, 1) == 1.0


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon"])
def test_one_cycle_turns_the_momentum_as_torch_does(kind, tmp_path, monkeypatch):
    """In `fit`, at every step and in every group; the second beta stays."""
    seen, optimizer, total = [], OPTIMIZERS[kind], 20

    def groups_of(optimizers):
        return [group for each in optimizers for group in each.param_groups]

    def second(groups):
        return [group.get("betas", (0, 0))[1] for group in groups]

    def spy(optimizers):
        groups = groups_of(optimizers)
        assert second(groups) == second(groups_of(build_optimizers(tiny_model(), optimizer)))
        seen.append({group["betas"][0] if "betas" in group else group["momentum"] for group in groups})
        step.apply_gradient(optimizers)

    monkeypatch.setattr(loop, "apply_gradient", spy)
    schedule = OneCycle(momentum=(0.85, 0.95))
    fit(tiny_model(), Counting(), CausalLM(), config(total, optimizer=optimizer, schedule=schedule), tmp_path)
    theirs = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0, betas=(0.9, 0.99))
    scheduler = OneCycleLR(theirs, max_lr=1.0, total_steps=total, base_momentum=0.85, max_momentum=0.95)
    for number, found in enumerate(seen):
        assert list(found) == pytest.approx([theirs.param_groups[0]["betas"][0]], abs=1e-9)
        theirs.step()
        if number < total - 1:
            scheduler.step()
    assert len(seen) == total


def test_momentum_that_is_not_there_does_not_cycle():
    given = {"budget": {"steps": 1}, "schedule": {"kind": "one_cycle", "momentum": [0.85, 0.95]}}
    for kind in ("mezo", "adafactor"):
        with pytest.raises(ValidationError, match=f"{kind} has no momentum"):
            TrainConfig.model_validate(given | {"optimizer": {"kind": kind}})
    TrainConfig.model_validate(given | {"optimizer": {"kind": "adafactor", "momentum": 0.9}})


def test_a_horizon_is_longer_or_shorter_than_the_run():
    long = Cosine(warmup=10, final=0.1, length=1000)
    assert [long.factor(s, 100) for s in range(100)] == [
        Cosine(warmup=10, final=0.1).factor(s, 1000) for s in range(100)
    ]
    short = Cosine(warmup=10, final=0.1, length=50)
    assert [short.factor(s, 100) for s in (49, 50, 99)] == pytest.approx([0.1014, 0.1, 0.1], abs=1e-4)


def test_lengths_in_tokens_become_steps():
    schedule = in_steps(Cosine(warmup=Tokens(tokens=1000), length=Tokens(tokens=6401)), lambda n: -(-n // 64))
    assert schedule == Cosine(warmup=16, length=101)
    assert in_steps(Linear(warmup=0.5), lambda n: 1 / 0) == Linear(warmup=0.5)
    read = TrainConfig.model_validate(
        {
            "budget": {"steps": 1},
            "schedule": {"kind": "linear", "warmup": {"tokens": 375e6}, "length": {"tokens": 3e11}},
        }
    )
    assert read.schedule.warmup.tokens == 375_000_000
    assert TrainConfig.model_validate(read.model_dump(mode="json")) == read


def test_lengths_are_steps_or_parts_of_the_run():
    assert steps_of(7, 100) == 7
    assert steps_of(0.1, 100) == 10
    assert steps_of(0.001, 100) == 1
    assert steps_of(0.0, 100) == 0


def test_settings_are_read_from_plain_values():
    config = TrainConfig.model_validate(
        {
            "budget": {"minutes": 2.5},
            "optimizer": {"kind": "muon", "lr": 0.01, "adamw": {"lr": 1e-3}},
            "schedule": {"kind": "cosine", "warmup": 100},
            "evaluate_every": 50,
            "checkpoint_every": 0.2,
        }
    )
    assert config.schedule == Cosine(warmup=100)
    assert config.evaluate_every == 50
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget": {}},
        {"budget": {"steps": None}},
        {"budget": {"steps": 0}},
        {"budget": {"steps": 1}, "optimizer": {"kind": "sgd"}},
        {"budget": {"steps": 1}, "lr": 1e-3},
        {"budget": {"steps": 1}, "checkpoint_every": 1.5},
        {"budget": {"steps": 1}, "schedule": {"kind": "wsd", "warmup": -1}},
        {"budget": {"steps": 1}, "schedule": {"kind": "cosine", "warmup": {"tokens": 0}}},
        {"budget": {"steps": 1}, "schedule": {"kind": "cosine", "warmup": 100, "length": 100}},
        {"budget": {"steps": 1}, "schedule": {"kind": "linear", "warmup": 0.5, "length": 0.2}},
        {"budget": {"steps": 1}, "schedule": {"kind": "linear", "warmup": {"tokens": 9}, "length": {"tokens": 9}}},
        {"budget": {"steps": 1}, "schedule": {"kind": "one_cycle", "start": 2.0}},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        TrainConfig.model_validate(wrong)


def test_a_budget_may_have_several_limits():
    assert Budget(steps=10, minutes=1.0).tokens is None
