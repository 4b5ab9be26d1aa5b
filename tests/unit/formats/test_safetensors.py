"""Reading safetensors headers."""

from pathlib import Path

import numpy as np
import pytest

from hybrid.formats.safetensors import read_index
from hybrid.graph.graph import ElementType, Initializer
from offload.storage.weight_file import FileRange, WeightFile
from tests.hf_models import raw_safetensors, safetensors_bytes


def test_tensors_lie_where_the_header_says(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float16)
    content = safetensors_bytes({"a": ("F32", a), "b": ("F16", b)})
    path.write_bytes(content)
    index = read_index([path])
    assert list(index) == ["a", "b"]
    assert index["a"].dtype is ElementType.FLOAT
    assert index["a"].shape == (2, 3)
    data = len(content) - 24 - 8
    assert index["a"].source == FileRange(WeightFile.at(path), data, 24)
    assert index["b"].source == FileRange(WeightFile.at(path), data + 24, 8)
    for name, array in (("a", a), ("b", b)):
        tensor = index[name]
        assert np.array_equal(Initializer(name, tensor.dtype, tensor.shape, tensor.source).array(), array)


@pytest.mark.parametrize(
    ("dtype", "element_type"),
    [("BF16", ElementType.BFLOAT16), ("I8", ElementType.INT8), ("F8_E4M3", ElementType.FLOAT8E4M3FN)],
)
def test_element_types(dtype: str, element_type: ElementType, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    nbytes = 2 * element_type.bits // 8
    path.write_bytes(raw_safetensors({"t": {"dtype": dtype, "shape": [2], "data_offsets": [0, nbytes]}}, bytes(nbytes)))
    assert read_index([path])["t"].dtype is element_type


def test_holes_empty_tensors_and_scalars_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [8, 12]},
        "empty": {"dtype": "F32", "shape": [0, 5], "data_offsets": [10, 10]},
        "last": {"dtype": "U8", "shape": [3], "data_offsets": [13, 16]},
    }
    path.write_bytes(raw_safetensors(header, bytes(16)))
    index = read_index([path])
    assert index["scalar"].shape == ()
    assert index["empty"].source.nbytes == 0


def test_shards_make_one_index_and_no_weights_are_read(tmp_path: Path) -> None:
    files = []
    for number in range(2):
        files.append(tmp_path / f"model-{number}.safetensors")
        header = {f"t{number}": {"dtype": "F16", "shape": [2**30], "data_offsets": [0, 2**31]}}
        files[-1].write_bytes(raw_safetensors(header))
        with files[-1].open("r+b") as file:  # two GiB that take no room on the disk
            file.truncate(file.seek(0, 2) + 2**31)
    assert list(read_index(files)) == ["t0", "t1"]


def test_the_hugging_face_cache_is_followed_into_its_blobs(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    blob = repository / "blobs" / "0123abcd"
    snapshot = repository / "snapshots" / "main"
    blob.parent.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    blob.write_bytes(safetensors_bytes({"a": ("F32", np.zeros(2, np.float32))}))
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123abcd")
    assert read_index([snapshot / "model.safetensors"])["a"].source.path == blob
