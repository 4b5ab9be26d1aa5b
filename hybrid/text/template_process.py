"""Renders chat templates of strangers in a process of their own: bounded, started when needed, kept."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hybrid.errors import InstallationError, UsageError
from hybrid.machine.user_folders import loader_environment
from hybrid.text.template_errors import TemplateExceeded, TemplateFailed, TemplateRefused
from hybrid.text.template_worker import CPU_S, LENGTH
from offload.spec.units import counted

_DEADLINE_S = 60.0  # of the clock; the bound that counts is the worker's on computing
_MOST_ANSWER_BYTES = 1 << 27
_CODE = "import sys; sys.path += sys.argv[1:]; from hybrid.text.template_worker import serve; serve()"


class TemplateProcess:
    """One worker, for all threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def start(self) -> None:
        """Start the worker, if there is none, without waiting for it: it takes a tenth of a second to be ready.

        One that cannot start is told of by `render`.
        """
        with self._lock, suppress(TemplateExceeded):
            self._ensure()

    def render(self, source: str, variables: Mapping[str, Any] | None) -> str:
        """The text of a template; without variables, nothing, if it can be compiled.

        Raises TemplateRefused, TemplateFailed or TemplateExceeded, and UsageError for variables that JSON cannot hold.
        """
        try:
            message = json.dumps(
                {"source": source, "variables": None if variables is None else dict(variables)}
            ).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"variables of a chat template must be what JSON can hold: {error}") from None
        with self._lock:
            answer = self._exchange(LENGTH.pack(len(message)) + message)
        if "refused" in answer:
            raise TemplateRefused(answer["refused"])
        if "failed" in answer:
            raise TemplateFailed(answer["failed"])
        if "exceeded" in answer:
            raise TemplateExceeded(answer["exceeded"])
        return str(answer["text"])

    def stop(self) -> None:
        """End the worker, if there is one."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None

    def forget(self) -> None:
        """Begin anew in a process that was forked: the worker is its parent's."""
        self._lock = threading.Lock()
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for
        self._process = self._connection = None

    def _ensure(self) -> None:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._start()

    def _exchange(self, message: bytes) -> dict[str, Any]:
        self._ensure()
        assert self._connection is not None
        end_s = time.monotonic() + _DEADLINE_S
        try:
            self._connection.settimeout(_DEADLINE_S)
            self._connection.sendall(message)
            (nbytes,) = LENGTH.unpack(self._receive(LENGTH.size, end_s))
            if nbytes > _MOST_ANSWER_BYTES:
                raise TemplateExceeded(f"it writes {counted(nbytes, 'byte')}")
            answer: dict[str, Any] = json.loads(self._receive(nbytes, end_s).decode("utf-8", "surrogatepass"))
        except TimeoutError:
            self.stop()
            raise TemplateExceeded(f"it takes more than {_DEADLINE_S:g} s") from None
        except (EOFError, ConnectionError):
            raise self._ended() from None
        except BaseException:  # Ctrl-C: what was asked would be answered to the next one
            self.stop()
            raise
        if "exceeded" in answer:
            self.stop()
        return answer

    def _receive(self, nbytes: int, end_s: float) -> bytes:
        assert self._connection is not None
        received = bytearray()
        while len(received) < nbytes:
            self._connection.settimeout(max(end_s - time.monotonic(), 0.001))
            piece = self._connection.recv(min(nbytes - len(received), 1 << 20))
            if not piece:
                raise EOFError
            received += piece
        return bytes(received)

    def _ended(self) -> TemplateExceeded:
        """Say why the worker is gone."""
        assert self._process is not None
        code = self._process.wait()
        self.stop()
        if code == -signal.SIGXCPU:
            return TemplateExceeded(f"it takes more than {CPU_S} s of computing")
        return TemplateExceeded(f"the process that rendered it ended ({code})")

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-I", "-S", "-c", _CODE, *_search_path()]
        try:
            # In a session of its own: Ctrl-C on the terminal is not for it.
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=loader_environment(),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise TemplateExceeded(f"no process to render it in: {error.strerror}") from None
        finally:
            theirs.close()
        self._connection = ours


def _search_path() -> list[str]:
    """The folders that the worker imports from: ours, and those that Jinja and its helper are in."""
    folders = [Path(__file__).parents[2]]
    for name in ("jinja2", "markupsafe"):
        found = find_spec(name)
        if found is None or found.origin is None:
            raise InstallationError(f"{name} is not installed: pip install 'jinja2>=3.1.6'")
        folders.append(Path(found.origin).parents[1])
    return list(dict.fromkeys(map(str, folders)))


worker = TemplateProcess()
atexit.register(worker.stop)
os.register_at_fork(after_in_child=worker.forget)
