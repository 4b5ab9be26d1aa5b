"""Change one place of the product at a time, and run the tests that concern it: what passes all of them is a survivor.

    nice -n 19 python -m tools.mutants --count 40 --seed 1              # forty places by chance
    nice -n 19 python -m tools.mutants --only hybrid/graph/islands.py   # of one file

A survivor shows an assertion that is missing, or a change that changes nothing. Everything happens in a copy of the
tree, whose tests have to pass. First the unit tests run that name the module, then others that do and those of its
folder in tests/unit; what survives them meets the wider ones. Kernels of the CPU are left out: each change would
compile them anew.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[1]
WIDER = ["tests/unit", "tests/device", "tests/chat", "tests/runs", "tests/parity", "tests/faults", "tests/gpu_kit"]
LEFT_OUT = ("__init__.py", "offload/host/kernels/")
_SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One place of a file, and what stands there instead."""

    file: str
    node: ast.expr
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.node.lineno}: {ast.unparse(self.node)[:70]}  ->  {self.instead[:70]}"

    def source(self, text: bytes) -> bytes:
        lines = text.splitlines(keepends=True)
        starts = [sum(map(len, lines[: number - 1])) for number in (self.node.lineno, self.node.end_lineno or 0)]
        start, end = starts[0] + self.node.col_offset, starts[1] + (self.node.end_col_offset or 0)
        return text[:start] + f"({self.instead})".encode() + text[end:]


def mutants_of(file: str, text: bytes) -> Iterator[Mutant]:
    """Comparisons, arithmetic and "and" swapped, conditions inverted, whole numbers one more or less."""
    tree = ast.parse(text)
    in_text = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While) and id(node.test) not in in_text:
            yield Mutant(file, node.test, f"not ({ast.unparse(node.test)})")
        if id(node) in in_text or not isinstance(node, ast.expr):
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPPED:
            ops = [_SWAPPED[type(node.ops[0])](), *node.ops[1:]]
            yield Mutant(file, node, ast.unparse(ast.Compare(node.left, ops, node.comparators)))  # type: ignore[arg-type]
        elif isinstance(node, ast.BinOp) and type(node.op) in _SWAPPED:
            yield Mutant(file, node, ast.unparse(ast.BinOp(node.left, _SWAPPED[type(node.op)](), node.right)))  # type: ignore[arg-type]
        elif isinstance(node, ast.BoolOp):
            yield Mutant(file, node, ast.unparse(ast.BoolOp(_SWAPPED[type(node.op)](), node.values)))  # type: ignore[arg-type]
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield Mutant(file, node, str(node.value + (-1) ** (node.lineno + node.col_offset)))


def product_files() -> list[str]:
    paths = (path for package in ("hybrid", "offload") for path in sorted((ROOT / package).rglob("*.py")))
    names = [str(path.relative_to(ROOT)) for path in paths]
    return [name for name in names if not any(part in name for part in LEFT_OUT)]


def tests_of(file: str, wider: list[str]) -> list[list[str]]:
    """The unit tests that name this module; the other tests that do, with its folder in tests/unit; wider ones."""
    module = file.removesuffix(".py").replace("/", ".")
    folder, _, name = module.rpartition(".")
    imports = (module, f"from {folder} import {name}")
    tests = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "gpu" not in path.parts]
    found = [str(test.relative_to(ROOT)) for test in tests if any(line in test.read_text() for line in imports)]
    units = [test for test in found if test.startswith("tests/unit/")]
    unit = f"tests/unit/{file.split('/')[1]}"
    others = [*(test for test in found if test not in units), *([unit] if (ROOT / unit).is_dir() else [])]
    return [tests for tests in (units, others, wider) if tests]


def outcome_of(mutant: Mutant, copy: Path, wider: list[str], limit_s: float) -> str:
    """ "killed", "late" for tests that did not end in time, which counts as killed, or "SURVIVED"."""
    path = copy / mutant.file
    whole = path.read_bytes()
    path.write_bytes(mutant.source(whole))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "CI": "1"}
    try:
        for tests in tests_of(mutant.file, wider):
            done = subprocess.run([*command, *tests], cwd=copy, env=environment, capture_output=True, timeout=limit_s)
            if done.returncode:
                return "killed"
    except subprocess.TimeoutExpired:
        return "late"
    finally:
        path.write_bytes(whole)
    return "SURVIVED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="TEXT", default="", help="files whose path has this in it")
    parser.add_argument("--wider", nargs="*", default=WIDER, metavar="TESTS", help="tests for first survivors")
    parser.add_argument("--limit", type=float, default=600.0, metavar="S", help="for the tests of one mutant")
    given = parser.parse_args()
    files = [name for name in product_files() if given.only in name]
    mutants = [mutant for name in files for mutant in mutants_of(name, (ROOT / name).read_bytes())]
    chosen = Random(given.seed).sample(mutants, min(given.count, len(mutants)))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        for mutant in chosen:
            print(f"{outcome_of(mutant, copy, given.wider, given.limit):9}{mutant}", flush=True)


if __name__ == "__main__":
    main()
