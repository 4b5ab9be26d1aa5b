"""The console scripts: what a signal ends, it ends quietly, from the first import on."""

import os
import signal
import sys
import termios
from contextlib import suppress
from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """The `hybrid` command; gives the exit code."""
    return _run("main")


def main_run() -> int:
    """The `hybrid-run` command; gives the exit code."""
    return _run("main_run")


def _run(command: str) -> int:
    """Run a command of `hybrid.cli.main`. SIGTERM and SIGHUP end it as Ctrl-C does, with what there is to clean up, and
    the exit code that a shell gives for them.
    """
    ended: list[int] = []  # the exit code for the signal that came, if one did

    def interrupt(number: int, frame: object) -> None:
        ended[:] = [128 + number]
        raise _CtrlC

    def end(number: int, frame: object) -> None:
        ended[:] = [128 + number]
        for again in _ENDING:  # a second one does not come into the cleaning up
            signal.signal(again, signal.SIG_IGN)
        raise SystemExit(128 + number)

    terminal = _terminal()
    try:
        for number in _ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored
                signal.signal(number, end)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupt)
        from hybrid.cli import main as cli

        code = int(getattr(cli, command)())
    except BaseException:
        if not ended:
            raise
        code = ended[0]  # whatever it has become on its way: an import that is torn says that it failed
        _restore(terminal)
    for number in (signal.SIGINT, *_ENDING):  # the end of the interpreter is not to be torn
        signal.signal(number, signal.SIG_IGN)
    if code == 128 + signal.SIGHUP:
        _drop_what_cannot_be_written()
    return code


class _CtrlC(KeyboardInterrupt):
    """Ctrl-C. Where Python's own class has passed an `exec`, as in dataclasses, its exit code is not ours any more."""


def _terminal() -> list[Any] | None:
    """The settings of the terminal on standard input, where there is one."""
    try:
        return termios.tcgetattr(0)
    except termios.error:
        return None


def _restore(settings: list[Any] | None) -> None:
    """Give the terminal back as it was: a signal may come while a chat changes it."""
    if settings is not None:
        with suppress(termios.error):
            termios.tcsetattr(0, termios.TCSANOW, settings)


def _drop_what_cannot_be_written() -> None:
    """Send streams nowhere whose terminal is gone: Python would complain of them at its end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError):
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
