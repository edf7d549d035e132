from __future__ import annotations

import json
import os
import platform

import torch

from etymon.evaluate import environment
from etymon.evaluate.environment import _versions


def test_the_machine_is_described() -> None:
    found = environment({"fp32": 1.5e11}).to_dict()
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["etymon"]
    assert 1 <= found["cores_usable"] <= (os.cpu_count() or 1)
    assert found["memory_bytes"] > 1 << 28
    assert found["cpu"]
    assert found["matmul_flops"] == {"fp32": 1.5e11}
    assert environment().matmul_flops is None
    json.dumps(found)


def test_packages_that_are_not_there_are_left_out() -> None:
    assert set(_versions(("torch", "no-such-distribution"))) == {"torch"}
