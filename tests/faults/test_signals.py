"""Signals end the command quietly, wherever they come, with the exit code that a shell gives for them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# The signal comes when a module is looked for, so at a place that does not depend on the clock.
CODE = """
import os, sys
import hybrid.cli.entry

module, number = sys.argv[1], int(sys.argv[2])

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Sender())
sys.argv = ["hybrid-run", "--max-tokens", "2", "Once upon"]
sys.exit(hybrid.cli.entry.main_run())
"""


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
MODULES = ["hybrid.cli.main", "typer", "hybrid.text.text_model", "numba", "onnxruntime"]
BY_ALL = [(module, signal.SIGINT) for module in MODULES]
BY_SOME = [("hybrid.cli.main", signal.SIGTERM), ("numba", signal.SIGHUP)]


@pytest.mark.parametrize(("module", "number"), BY_ALL + BY_SOME)
def test_a_signal_while_importing_is_quiet(module: str, number: signal.Signals) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, module, str(int(number))], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (CODES[number], "")
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


@pytest.mark.parametrize(("number", "code"), CODES.items())
def test_a_signal_in_the_middle_of_a_text_ends_it(number: int, code: int) -> None:
    arguments = ["run", "--max-tokens", "400", "--context", "450", "--logit-bias", "2=-100", "Once upon a time"]
    with subprocess.Popen(
        [sys.executable, "-m", "hybrid", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ,
        cwd=Path.cwd(),
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)  # the text has begun
        process.send_signal(number)
        process.stdout.read()
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert process.returncode in (code, 0)  # 0: it was at its end already
    assert "Traceback" not in said


def test_who_ignores_hang_ups_goes_on() -> None:
    done = subprocess.run(
        ["nohup", sys.executable, "-c", CODE, "numba", str(int(signal.SIGHUP))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, bool(done.stdout)) == (0, True)
