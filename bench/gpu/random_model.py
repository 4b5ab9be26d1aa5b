"""Models with random weights, made when they are needed."""

import shutil
from pathlib import Path

from bench.gpu.job import Job
from bench.models import ModelWriteError, nbytes, write_folder
from bench.random_weights import DTYPES, Weights
from bench.shapes import SHAPES

_SPARE_BYTES = 2 << 30  # left free on the disk


def model_folder(job: Job, shape: str, dtype: str) -> Path:
    """The model's folder, written if it is not there yet. Raises ModelWriteError when the disk is too small."""
    folder = job.work / f"{shape}-{dtype}"
    if (folder / "config.json").exists():  # written last
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    total_bytes = sum(nbytes(size, DTYPES[dtype]) for size in SHAPES[shape].tensors().values())
    free_bytes = shutil.disk_usage(job.work).free
    if free_bytes < total_bytes + _SPARE_BYTES:
        raise ModelWriteError(f"{job.work} has {free_bytes:,} bytes free; {shape} in {dtype} takes {total_bytes:,}")
    write_folder(folder, SHAPES[shape], Weights(DTYPES[dtype]))
    return folder


def linear_bytes(shape: str, dtype: str) -> int:
    """Bytes of all Linears: every matrix but the embedding."""
    tensors = SHAPES[shape].tensors()
    matrices = [size for name, size in tensors.items() if len(size) == 2 and "embed" not in name]
    return sum(nbytes(size, DTYPES[dtype]) for size in matrices)
