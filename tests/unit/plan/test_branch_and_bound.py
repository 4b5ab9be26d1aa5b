"""Branch and bound: the best of all choices of the binary variables, found by looking at some of them; silent."""

import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linprog

from hybrid.loading.planning import make_plan
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from offload.plan.branch_and_bound import Milp

BINARY = 4
GAP = 1e-4


def milp(seed: int) -> tuple[Milp, np.ndarray]:  # type: ignore[type-arg]
    """Four shares, each of which costs something as soon as any of it is taken, within a limit; and an objective."""
    rng = np.random.default_rng(seed)
    count = 2 * BINARY
    uses = np.hstack([np.eye(BINARY), -np.eye(BINARY)])  # share <= whether it is begun
    limit = np.concatenate([rng.uniform(1, 3, BINARY), rng.uniform(0, 1, BINARY)])
    rows, most = np.vstack([uses, limit]), np.array([0.0] * BINARY + [limit.sum() * rng.uniform(-0.1, 0.9)])
    objective = np.concatenate([-rng.uniform(1, 4, BINARY), rng.uniform(0, 2, BINARY)])
    return Milp(np.zeros(count), np.ones(count), rows, most, np.arange(BINARY, count)), objective


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_of_the_binary_variables_is_better(seed: int) -> None:
    problem, objective = milp(seed)
    values = []
    for chosen in product((0.0, 1.0), repeat=BINARY):
        bounds = [(0.0, 1.0)] * BINARY + [(value, value) for value in chosen]
        found = linprog(objective, problem.rows, problem.most, bounds=bounds)
        values.append(found.fun if found.status == 0 else np.inf)
    minimum = problem.minimise(objective, GAP)
    if min(values) == np.inf:
        assert minimum is None
        return
    assert minimum is not None
    assert minimum.finished
    x = minimum.x
    assert np.all(problem.rows @ x <= problem.most + 1e-6)
    assert set(np.round(x[BINARY:], 6)) <= {0.0, 1.0}
    assert objective @ x <= min(values) + GAP * abs(min(values)) + 1e-9


def knapsack(count: int) -> tuple[Milp, np.ndarray]:  # type: ignore[type-arg]
    """Even weights and an odd limit, which only trying nearly all choices shows to be out of reach."""
    rows = np.vstack([np.hstack([np.eye(count), -np.eye(count)]), np.repeat([0.0, 2.0], count)])
    objective = np.repeat([-1.0, 0.0], count)
    most = np.array([0.0] * count + [count - 1.0 + count % 2])
    return Milp(np.zeros(2 * count), np.ones(2 * count), rows, most, np.arange(count, 2 * count)), objective


@pytest.mark.parametrize("count", [10, 14, 40])
def test_work_is_bounded_and_says_so(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    solved = 0
    relaxed = Milp._relaxed

    def counted(*given: object) -> object:
        nonlocal solved
        solved += 1
        return relaxed(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Milp, "_relaxed", counted)
    problem, objective = knapsack(count)
    minimum = problem.minimise(objective, GAP)
    assert solved <= 500 // count + 3
    assert minimum is not None
    assert not minimum.finished
    assert set(np.round(minimum.x[count:], 6)) <= {0.0, 1.0}
    assert np.all(problem.rows @ minimum.x <= problem.most + 1e-6)
    assert minimum.bound <= -(count // 2 - 1) <= objective @ minimum.x + 1


def test_planning_leaves_standard_output_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a file descriptor is the whole process's")

    before = Path("/proc/self/fd/1").readlink()
    with monkeypatch.context() as patched:  # pytest itself redirects
        patched.setattr(os, "dup2", refuse)
        make_plan(RunSettings(model=DEMO_MODEL, device="simulated", cuda="4MiB"))
    assert Path("/proc/self/fd/1").readlink() == before
