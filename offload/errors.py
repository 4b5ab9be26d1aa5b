"""Errors of the offload machinery.

OffloadError                    base
├── BudgetError                 a VRAM budget that cannot be read or cannot be
│   └── RamBudgetError          a RAM cap that is too small; carries the least that would do
├── DeviceUnavailableError      no usable GPU; says why
├── DeviceLostError             a device that worked and will not again in this process
├── OutOfDeviceMemoryError      an allocation that did not fit; carries asked, in use and limit
│   └── OverBudgetError         one that the device has room for, but the budget has not
├── PinningError                memory of ours that the device cannot read in place
└── ProfileError                a device profile that cannot be read
"""

from offload.printable import printable

DEVICE_MEMORY, PINNED_RAM = "device memory", "pinned RAM"


class OffloadError(Exception):
    """Base of the errors that `offload` raises on purpose. Shown safely: names out of files are in it."""

    def __str__(self) -> str:
        return printable(super().__str__())


class BudgetError(OffloadError):
    """A VRAM budget that cannot be read, or that no plan can keep."""


class RamBudgetError(BudgetError):
    """A RAM cap that no plan can keep."""

    def __init__(self, message: str, least_bytes: int) -> None:
        super().__init__(message)
        self.least_bytes = least_bytes


class DeviceUnavailableError(OffloadError):
    """The device that was asked for cannot be used on this machine."""


class DeviceLostError(OffloadError):
    """A device that has failed for good: nothing can be asked of it any more, and what it held is gone."""


class OutOfDeviceMemoryError(OffloadError, MemoryError):
    """A device or pinned allocation that did not fit; `where` is DEVICE_MEMORY or PINNED_RAM.

    `asked_bytes` is 0 where a library does not say how much it wanted.
    """

    def __init__(self, asked_bytes: int, used_bytes: int, limit_bytes: int, where: str) -> None:
        super().__init__(f"out of {where}: asked for {asked_bytes} bytes with {used_bytes} in use of {limit_bytes}")
        self.asked_bytes = asked_bytes
        self.used_bytes = used_bytes
        self.limit_bytes = limit_bytes
        self.pinned = where == PINNED_RAM


class OverBudgetError(OutOfDeviceMemoryError):
    """Memory that the budget does not allow: what the process was measured to take leaves too little of it."""

    @property
    def missing_bytes(self) -> int:
        """Count the bytes beyond the limit: so many less would have done."""
        return self.used_bytes + self.asked_bytes - self.limit_bytes


class PinningError(OffloadError):
    """Host memory that cannot be page-locked where it is."""


class ProfileError(OffloadError):
    """A device profile file that is missing or holds values that cannot be."""
