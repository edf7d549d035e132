from __future__ import annotations

import pytest
from pydantic import ValidationError

from etymon.train import Budget, Constant, Cosine, TrainConfig, WarmupStableDecay
from etymon.train.schedules import steps_of

SCHEDULES = [
    WarmupStableDecay(warmup=0.1, decay=0.3),
    WarmupStableDecay(warmup=10, decay=30, final=0.1),
    Cosine(warmup=0.1),
    Cosine(warmup=10, final=0.1),
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
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        TrainConfig.model_validate(wrong)


def test_a_budget_may_have_several_limits():
    assert Budget(steps=10, minutes=1.0).tokens is None
