"""Who may import whom. Imports are read at any depth of a file, inside functions too."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "hybrid").rglob("*.py"), *(ROOT / "offload").rglob("*.py")])
BENCH = sorted((ROOT / "bench").rglob("*.py"))

# Each heavy library enters through one place.
ENTRANCES = {
    "onnx": {"hybrid/formats/onnx_graph.py", "hybrid/formats/onnx_validation.py"},
    "onnxruntime": {"hybrid/engine/island.py"},
    "cupy": {"offload/devices/cuda/libraries.py"},
    "cupy_backends": {"offload/devices/cuda/libraries.py"},
    "pynvml": {"offload/devices/cuda/nvml.py"},
    "huggingface_hub": {"hybrid/source/hub_repository.py"},
    "sentencepiece": {"hybrid/text/sentencepiece_tokenizer.py"},
    "tokenizers": {"hybrid/text/json_tokenizer.py"},
    "matplotlib": {"hybrid/show/matplotlib_png.py"},
    "jinja2": {"hybrid/text/jinja_sandbox.py"},
}
MAY_READ_ENVIRONMENT = {
    "hybrid/cli/doctor.py",  # what it is to examine
    "hybrid/machine/user_folders.py",  # where the XDG specification says that settings are
    "offload/compiled_code.py",  # where it says that caches are
    "hybrid/engine/island.py",  # what onnxruntime is told before it is imported
}
MAY_PRINT = {
    "hybrid/cli/flags.py",
    "hybrid/cli/main.py",
    "hybrid/cli/command_line.py",
    "hybrid/show/console.py",
    "hybrid/cli/options.py",
    "hybrid/__main__.py",
}
# Arithmetic on plain data: these folders may know each other and the files beside them, and no other of ours.
PURE = ("offload/spec", "offload/machine", "offload/plan")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _nodes(path: Path) -> list[ast.AST]:
    """All nodes of a file, the module first; parsed once, for many tests look at every file."""
    return list(ast.walk(ast.parse(path.read_text())))


def _imports(path: Path) -> Iterator[str]:
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers look at."""
    yield node
    unseen = node.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" else []
    for child in ast.iter_child_nodes(node):
        if child not in unseen:
            yield from _running(child)


@cache
def _files_imported(path: Path) -> set[str]:
    """Our files that a file needs when it runs, by name."""
    modules = set()
    for node in _running(_nodes(path)[0]):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {module if _file_of(module) else node.module or "" for module in inside}
    return {file for module in modules if (file := _file_of(module))}


@cache
def _file_of(module: str) -> str:
    name = module.replace(".", "/")
    return next((file for file in (f"{name}.py", f"{name}/__init__.py") if (ROOT / file).is_file()), "")


def _folder(name: str) -> str:
    """The folder of a file; files directly in a package stand for themselves."""
    folder = name.rpartition("/")[0]
    return folder if "/" in folder else name


def _cycle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Imports count at any depth of a file, but not where only type checkers look."""
    assert not _cycle({_name(path): _files_imported(path) for path in (*SOURCES, *BENCH)})


def test_no_folder_imports_itself_by_way_of_others() -> None:
    graph: dict[str, set[str]] = {}
    for path in (*SOURCES, *BENCH):
        folder = _folder(_name(path))
        graph.setdefault(folder, set()).update({_folder(file) for file in _files_imported(path)} - {folder})
    assert not _cycle(graph)


@pytest.mark.parametrize("path", [path for path in SOURCES if _folder(_name(path)) in PURE], ids=_name)
def test_plans_are_made_without_devices(path: Path) -> None:
    beside = {file for file in _files_imported(path) if not file.startswith(tuple(f"{folder}/" for folder in PURE))}
    assert all(file.count("/") == 1 for file in beside), f"imports {beside}"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_follow_the_layers(path: Path) -> None:
    for module in _imports(path):
        package = module.split(".")[0]
        if _name(path).startswith("offload/"):
            assert package != "hybrid", f"offload must not know hybrid, but imports {module}"
        assert package not in ("tests", "bench", "tools"), f"imports {module}"
        allowed = ENTRANCES.get(package)
        assert allowed is None or _name(path) in allowed, f"{package} may be imported by {allowed} only"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_only_the_command_line_prints_parses_and_reads_the_environment(path: Path) -> None:
    if _name(path) in MAY_PRINT:
        return
    for node in _nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "input"), f"line {node.lineno}: {node.func.id}"
        if isinstance(node, ast.Attribute):
            may_read = _name(path) in MAY_READ_ENVIRONMENT
            assert node.attr not in ("argv", "getenv"), f"line {node.lineno}: {node.attr}"
            assert node.attr != "environ" or may_read, f"line {node.lineno}: {node.attr}"
    assert not {"argparse", "typer"}.intersection(_imports(path))


def test_no_two_classes_share_a_name() -> None:
    """A leading underscore makes no other name."""
    files: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in _nodes(path):
            if isinstance(node, ast.ClassDef):
                files.setdefault(node.name.lstrip("_"), []).append(_name(path))
    shared = {name: found for name, found in files.items() if len(found) > 1}
    assert not shared, f"these want names of their own: {shared}"


def test_every_file_is_short_enough_to_read_at_once() -> None:
    long = {_name(path): lines for path in SOURCES if (lines := len(path.read_text().splitlines())) > 400}
    assert not long, f"these want to be two files: {long}"
