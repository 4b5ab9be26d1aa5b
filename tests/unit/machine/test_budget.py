"""Texts of `--cuda`, and how many bytes each is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.errors import BudgetError
from offload.machine.budget import AUTO, Budget, ResolvedBudget, parse_budget, resolve_budget
from offload.spec.units import GIB, MIB


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("6", Budget(nbytes=6 * GIB)),
        ("0.5", Budget(nbytes=GIB // 2)),
        ("6GiB", Budget(nbytes=6 * GIB)),
        ("800MiB", Budget(nbytes=800 * MIB)),
        ("80%", Budget(share=0.8)),
        (" 12.5 % ", Budget(share=0.125)),
        ("100%", Budget(share=1.0)),
        ("auto", AUTO),
        (" AUTO ", AUTO),
        ("0", Budget(nbytes=0)),
        ("0%", Budget(share=0.0)),
    ],
)
def test_budgets_that_can_be_read(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


def test_only_zero_keeps_off_the_gpu() -> None:
    zeros = {text: parse_budget(text).is_zero for text in ("0", "0.0", "0MiB", "0%", "auto", "1MiB", "1%")}
    assert zeros == {"0": True, "0.0": True, "0MiB": True, "0%": True, "auto": False, "1MiB": False, "1%": False}


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("-6", "cannot be negative"),
        (" -0.5GiB", "cannot be negative"),
        ("-10%", "cannot be negative"),
        ("101%", "above 100%"),
        ("9" * 400 + "%", "above 100%"),
        ("six", "not a budget"),
        ("", "not a budget"),
        ("6TB", "not a budget"),
        ("%", "not a budget"),
        ("80%%", "not a budget"),
        ("80 % of it", "not a budget"),
        ("nan", "not a budget"),
        ("nan%", "not a budget"),
        ("inf", "not a budget"),
        ("1e99", "not a budget"),
        ("9999999999999", "not a budget"),
    ],
)
def test_budgets_that_cannot(text: str, mention: str) -> None:
    with pytest.raises(BudgetError, match=mention) as caught:
        parse_budget(text)
    assert str(caught.value).startswith(f"--cuda {text}: ")


def test_what_is_free_is_given_as_asked() -> None:
    for budget, nbytes in ((Budget(6 * GIB), 6 * GIB), (Budget(8 * GIB), 8 * GIB), (Budget(share=0.25), 5 * GIB)):
        assert resolve_budget(budget, 8 * GIB, 20 * GIB) == ResolvedBudget(nbytes, most_bytes=7 * GIB)


@pytest.mark.parametrize("budget", [Budget(nbytes=12 * GIB), Budget(share=0.75)])
def test_more_than_is_free_is_clamped_with_one_line(budget: Budget) -> None:
    resolved = resolve_budget(budget, 8 * GIB, 16 * GIB)
    assert resolved.nbytes == 8 * GIB
    assert all(size in resolved.note for size in ("12.00 GiB", "8.00 GiB", "16.00 GiB"))
    assert "\n" not in resolved.note


def test_auto_leaves_a_margin_for_others() -> None:
    """5% of the device, at least 256 MiB; never below nothing."""
    assert resolve_budget(AUTO, 8 * GIB, 20 * GIB) == ResolvedBudget(7 * GIB, most_bytes=7 * GIB)
    assert resolve_budget(AUTO, 2 * GIB, 2 * GIB).nbytes == 2 * GIB - 256 * MIB
    assert resolve_budget(AUTO, 100 * MIB, 8 * GIB).nbytes == 0


@given(
    asked=st.integers(0, 1 << 50) | st.floats(0, 1),
    total_bytes=st.integers(0, 1 << 45),
    used=st.floats(0, 1),
)
def test_no_budget_is_more_than_is_free(asked: float, total_bytes: int, used: float) -> None:
    free_bytes = int(total_bytes * (1 - used))
    budget = Budget(nbytes=asked) if isinstance(asked, int) else Budget(share=asked)
    for each in (budget, AUTO):
        resolved = resolve_budget(each, free_bytes, total_bytes)
        assert 0 <= resolved.nbytes <= free_bytes
        assert "\n" not in resolved.note
