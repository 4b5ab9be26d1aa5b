"""How long a device takes for one multiplication: arithmetic that the cost model and the simulated device share."""

from offload.devices.scratch import MAX_ROWS

_PANEL_ITEMSIZE_BYTES = 2


def multiply_s(
    rows: int, elements: float, nbytes: float, in_blocks: bool, memory_bytes_per_s: float, flops_per_s: float
) -> float:
    """Seconds of y = x @ W, without its launch: those of the operations, or of the memory, whichever is longer.

    `elements` is K * N of W and `nbytes` what is read and written once. More than MAX_ROWS rows of x also have a W in
    blocks written as fp16 panels and read again.
    """
    if in_blocks and rows > MAX_ROWS:
        nbytes += 2 * _PANEL_ITEMSIZE_BYTES * elements
    return max(2 * rows * elements / flops_per_s, nbytes / memory_bytes_per_s)
