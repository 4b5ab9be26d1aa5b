"""Broken and hostile safetensors files: one line, of the right kind, with file and value."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybrid.errors import ModelError, ModelFileError, UnsupportedModelError
from hybrid.formats.safetensors import read_index
from hybrid.source.folder import find_model
from tests.hf_models import random_weights, raw_safetensors, safetensors_bytes, tiny_config, write_model
from tests.messages import one_line


def entry(dtype: Any = "F32", shape: Any = (2,), data_offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


HEADERS: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{nonsense", "not valid JSON"),
    "not UTF-8": (b'{"\xff\xfe": 1}', "not valid JSON"),
    "a list": (b"[1, 2]", "JSON object"),
    "spaces before": (b"   {}", "first byte"),
    "nested": (b'{"a":' + b"[" * 100_000, "not valid JSON"),
    "a huge number": (b'{"a":' + b"9" * 10_000 + b"}", "not valid JSON"),
    "a name twice": (b'{"aa": {}, "aa": {}}', "'aa' twice"),
    "no entry": ({"t": 3}, "tensor 't' is 3"),
    "keys missing": ({"t": {"dtype": "F32"}}, "shape None"),
    "dtype unknown": ({"t": entry("F31")}, "'F31'"),
    "dtype no text": ({"t": entry(["F32"])}, "['F32']"),
    "shape negative": ({"t": entry(shape=[-2])}, "[-2]"),
    "shape float": ({"t": entry(shape=[2.0])}, "[2.0]"),
    "shape bool": ({"t": entry(shape=[True])}, "[True]"),
    "shape text": ({"t": entry(shape="2")}, "'2'"),
    "shape huge": ({"t": entry(shape=[2**40, 2**40])}, "1099511627776"),
    "shape beyond all": ({"t": entry(shape=[0, 2**70])}, "shape"),
    "too many dimensions": ({"t": entry(shape=[1] * 100)}, "shape"),
    "offsets beyond the end": ({"t": entry(shape=[3], data_offsets=[0, 12])}, "[0, 12]"),
    "offsets negative": ({"t": entry(data_offsets=[-8, 0])}, "[-8, 0]"),
    "offsets backwards": ({"t": entry(data_offsets=[8, 0])}, "[8, 0]"),
    "offsets three": ({"t": entry(data_offsets=[0, 4, 8])}, "[0, 4, 8]"),
    "too few bytes": ({"t": entry(data_offsets=[0, 7])}, "7 bytes"),
    "overlap": ({"t": entry(), "u": entry(shape=[1], data_offsets=[4, 8])}, "'t' and 'u' overlap"),
    "odd name": ({"line\nbreak\ud800" + "x" * 500: 1}, "\\n"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie(case: str, tmp_path: Path) -> None:
    header, mention = HEADERS[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors(header, bytes(8)))
    one_line(ModelFileError, lambda: read_index([path]), str(path), mention)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 0),
        struct.pack("<Q", 50) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100_000_001) + b"{}",
    ],
)
def test_files_too_short_for_their_header(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    one_line(ModelFileError, lambda: read_index([path]), str(path), f"a file of {len(content)}")


def test_a_file_cut_off_in_its_data(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"t": ("F32", np.ones(4, np.float32))})[:-1])
    one_line(ModelFileError, lambda: read_index([path]), "[0, 16]", "15 data bytes")


def test_a_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 14000000000\n")
    one_line(ModelFileError, lambda: read_index([path]), "Git LFS")


def test_a_type_that_onnx_has_no_name_for(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors({"t": entry("F8_E8M0")}, bytes(8)))
    one_line(UnsupportedModelError, lambda: read_index([path]), "F8_E8M0")


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        file.write_bytes(safetensors_bytes({"t": ("F32", np.ones(1, np.float32))}))
    one_line(ModelFileError, lambda: read_index(files), "b.safetensors", "'t'", "a.safetensors")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    one_line(ModelFileError, lambda: read_index([path]), str(path))
    path.mkdir()
    one_line(ModelFileError, lambda: read_index([path]), str(path))
    os.mkfifo(tmp_path / "pipe.safetensors")  # reading it would wait for ever
    one_line(ModelFileError, lambda: read_index([tmp_path / "pipe.safetensors"]), "pipe")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, tiny_config(), random_weights(tiny_config()))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Not by chmod: tests may run as root, who may read everything.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        patch.setattr(os, "open", refuse)
        one_line(ModelFileError, lambda: read_index([tmp_path / "model.safetensors"]), "Permission denied")
        one_line(ModelFileError, lambda: find_model(tmp_path), "config.json", "Permission denied")
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        one_line(ModelFileError, lambda: find_model(tmp_path), str(tmp_path), "Permission denied")


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(safetensors_bytes({"t": ("F32", np.ones(1, np.float32))}))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    link = folder / "model.safetensors"
    link.symlink_to("../secret")
    one_line(ModelFileError, lambda: read_index([link]), str(link), str(secret))
    link.unlink()
    link.symlink_to(link)
    one_line(ModelFileError, lambda: read_index([link]), str(link))


def test_a_snapshot_may_not_link_into_another_repository(tmp_path: Path) -> None:
    other = tmp_path / "models--other--name" / "blobs" / "0123"
    other.parent.mkdir(parents=True)
    other.write_bytes(safetensors_bytes({"t": ("F32", np.ones(1, np.float32))}))
    link = tmp_path / "models--org--name" / "snapshots" / "main" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(other)
    one_line(ModelFileError, lambda: read_index([link]), str(link))


VALID = safetensors_bytes(
    {"first": ("F32", np.arange(6, dtype=np.float32).reshape(2, 3)), "b": ("F16", np.ones(4, np.float16))}
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    keep=st.integers(0, len(VALID)) | st.just(len(VALID)),
)
def test_no_mutation_does_anything_but_open_or_be_refused(
    edits: list[tuple[int, int]], keep: int, tmp_path: Path
) -> None:
    content = bytearray(VALID)
    for position, value in edits:
        content[position] = value
    path = tmp_path / "model.safetensors"
    path.write_bytes(content[:keep])
    index, refusal = {}, ""
    try:
        index = read_index([path])
    except ModelError as error:
        refusal = str(error)
    assert refusal.isprintable()
    for tensor in index.values():
        assert 0 <= tensor.source.offset <= tensor.source.offset + tensor.source.nbytes <= keep
