"""CPU, RAM, limits of containers, folders and threading layers, as files and environments tell of them."""

from pathlib import Path

import pytest

from hybrid.doctor import machine
from hybrid.doctor.machine import examine_hub_cache, examine_kernel_cache, examine_memory, examine_processor, hub_cache
from hybrid.doctor.packages import examine_numba
from hybrid.doctor.report import Level
from hybrid.machine.cgroups import CgroupLimits, read_limits
from hybrid.machine.ram import Ram, read_ram
from offload.spec.units import GIB

FREE = CgroupLimits(None, None)


def write(root: Path, **files: str) -> None:
    """Files under `root`; a path's slashes are written as two underscores, its dots as three."""
    for name, text in files.items():
        path = root / name.replace("___", ".").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_no_cgroups_are_no_limits(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == FREE


def test_cgroup_2_in_a_container_is_at_the_mount(tmp_path: Path) -> None:
    write(tmp_path, proc__self__cgroup="0::/\n")
    write(tmp_path, sys__fs__cgroup__cpu___max="150000 100000\n", sys__fs__cgroup__memory___max="2147483648\n")
    assert read_limits(tmp_path) == CgroupLimits(1.5, 2 * GIB)


def test_the_tightest_group_around_a_service_counts(tmp_path: Path) -> None:
    write(tmp_path, proc__self__cgroup="0::/user.slice/app\n")
    write(tmp_path, sys__fs__cgroup__user___slice__app__memory___max="max\n")
    write(tmp_path, sys__fs__cgroup__user___slice__memory___max=f"{GIB}\n")
    write(tmp_path, sys__fs__cgroup__user___slice__app__cpu___max="max 100000\n")
    assert read_limits(tmp_path) == CgroupLimits(None, GIB)


def test_cgroup_1_has_its_own_names(tmp_path: Path) -> None:
    write(tmp_path, proc__self__cgroup="4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n")
    write(
        tmp_path, sys__fs__cgroup__cpu__cpu___cfs_quota_us="200000", sys__fs__cgroup__cpu__cpu___cfs_period_us="100000"
    )
    write(tmp_path, sys__fs__cgroup__memory__memory___limit_in_bytes=f"{3 * GIB}")
    assert read_limits(tmp_path) == CgroupLimits(2.0, 3 * GIB)
    write(tmp_path, sys__fs__cgroup__memory__memory___limit_in_bytes="9223372036854771712")
    write(tmp_path, sys__fs__cgroup__cpu__cpu___cfs_quota_us="-1")
    assert read_limits(tmp_path) == FREE


@pytest.mark.parametrize(
    ("flags", "level", "said"),
    [
        ("flags : fpu avx2 f16c fma avx512f", Level.OK, "Some CPU: AVX2, F16C, FMA, AVX-512"),
        ("flags : fpu avx2", Level.NOTE, "no F16C"),
        ("flags : fpu sse2", Level.NOTE, "no AVX2"),
        ("Features : fp asimd asimdhp", Level.OK, "Some CPU: NEON, NEON FP16"),
        ("", Level.NOTE, "does not tell its features"),
    ],
)
def test_features_of_the_cpu(tmp_path: Path, flags: str, level: Level, said: str) -> None:
    write(tmp_path, proc__cpuinfo=f"processor : 0\nmodel name : Some CPU\n{flags}\nprocessor : 1\nmodel name : Other\n")
    finding, _ = examine_processor(FREE, tmp_path)
    assert finding.level is level
    assert said in finding.text


def test_a_quota_below_the_default_threads_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hybrid.doctor.machine.default_threads", lambda: 8)
    _, finding = examine_processor(CgroupLimits(2.5, None), tmp_path)
    assert finding.level is Level.NOTE
    assert finding.text.endswith("a quota of 2.5; --threads is 8 unless given, more than the quota: give --threads 2")


MEMINFO = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:   8388608 kB\nHugePages_Total:       0\n"


def test_ram_is_what_the_kernel_and_the_limit_leave(tmp_path: Path) -> None:
    assert read_ram(FREE, tmp_path) is None
    write(tmp_path, proc__meminfo=MEMINFO)
    assert read_ram(FREE, tmp_path) == Ram(16 * GIB, 8 * GIB)
    assert read_ram(CgroupLimits(None, 4 * GIB), tmp_path) == Ram(4 * GIB, 4 * GIB)
    write(tmp_path, proc__meminfo="MemTotal: lots\n")
    assert read_ram(FREE, tmp_path) is None


def test_little_ram_and_small_pages_are_noted(tmp_path: Path) -> None:
    write(tmp_path, sys__kernel__mm__transparent_hugepage__enabled="always madvise [never]\n")
    ram, pages = examine_memory(Ram(GIB, GIB), CgroupLimits(None, GIB), tmp_path)
    assert ram.level is Level.NOTE
    assert "which is the control group's limit: little" in ram.text
    assert pages.mend == "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x", "HF_HOME": "~/f"}, "/h/f/hub"),
        ({"HF_HOME": "/f", "HF_HUB_CACHE": "/c"}, "/c"),
    ],
)
def test_the_hub_cache_is_where_huggingface_hub_has_it(environment: dict[str, str], folder: str) -> None:
    assert hub_cache(environment) == Path(folder)


def test_the_hub_cache_counts_each_file_once(tmp_path: Path) -> None:
    write(tmp_path, **{"models--a--b__blobs__1": "x" * 1000, "models--a--b__blobs__2": "x" * 24})
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "weights").symlink_to(tmp_path / "models--a--b" / "blobs" / "1")
    (finding,) = examine_hub_cache(tmp_path)
    assert f"model cache {tmp_path}: 1.00 KiB in 2 files, " in finding.text


def test_a_full_disk_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_LITTLE_DISK_BYTES", 1 << 80)
    (finding,) = examine_hub_cache(tmp_path / "not" / "there")
    assert finding.level is Level.NOTE
    assert ": empty, " in finding.text


def test_folders_that_cannot_be_written_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"  # a file where a folder should be: even root cannot make one
    blocked.touch()
    (hub,) = examine_hub_cache(blocked / "hub")
    assert (hub.level, hub.mend) == (Level.PROBLEM, "export HF_HOME=/a/folder/of/yours")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    (kernels,) = examine_kernel_cache()
    assert (kernels.level, kernels.mend) == (Level.PROBLEM, "export XDG_CACHE_HOME=/a/folder/of/yours")


def test_a_numba_that_cannot_be_imported_is_a_problem() -> None:
    assert examine_numba(lambda module: "") == []
    (finding,) = examine_numba(lambda module: "libx.so: not found")
    assert (finding.level, finding.mend) == (Level.PROBLEM, "pip install --force-reinstall numba")
    assert "libx.so: not found" in finding.text
