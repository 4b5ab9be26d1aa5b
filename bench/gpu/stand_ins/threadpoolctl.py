"""Stands in for threadpoolctl on a machine that lacks it: the kit limits BLAS through the environment instead."""

from typing import Any


def threadpool_limits(limits: int, user_api: str) -> Any:
    """Nothing to do: OPENBLAS_NUM_THREADS was 1 when BLAS was loaded."""
    assert (limits, user_api) == (1, "blas")
