"""Versions of installed packages and drivers, and which of our extras suits a driver."""

import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

from offload.devices.cuda.nvml import Driver

FindVersion = Callable[[str], str]

# The oldest drivers that serve CUDA 13 and CUDA 12.
CU13_DRIVER, CU12_DRIVER = 580, 525


def installed(find_version: FindVersion, name: str) -> str:
    """The version of a package; empty when it is not installed."""
    try:
        return find_version(name) or ""
    except PackageNotFoundError:
        return ""


def numbers(version: str) -> tuple[int, ...]:
    """ "1.26.0rc1" as (1, 26, 0); enough to compare releases with."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def driver_major(driver: Driver) -> int | None:
    """580 for driver 580.65.06; None when it does not tell."""
    found = numbers(driver.version or "")
    return found[0] if found else None


def suitable_extra(driver: Driver | None) -> str:
    """The extra of hybrid-run that this driver can serve: cu13, cu12 or cpu."""
    if driver is None or not driver.gpus:
        return "cpu"
    major = driver_major(driver)
    if major is None:  # the newest CUDA that it serves tells as much
        cuda = (driver.cuda_version or (0, 0))[0]
        return "cu13" if cuda >= 13 else "cu12" if cuda == 12 else "cpu"
    return "cu13" if major >= CU13_DRIVER else "cu12" if major >= CU12_DRIVER else "cpu"
