"""The process that renders strangers' templates: little memory, little time, no way to open a file or start a program.

It is told what to render on a socket, its standard input, and answers there; it ends when the other side does.
A message is its length as four bytes, then JSON.
"""

import functools
import json
import math
import resource
import socket
import struct
from contextlib import suppress
from io import BufferedRWPair
from typing import Any

MEMORY_BYTES = 1 << 29
CPU_S = 3
LENGTH = struct.Struct(">I")


def serve() -> None:
    """Answer until there is nobody to answer."""
    from hybrid.text.jinja_sandbox import SandboxedTemplate

    compiled = functools.lru_cache(maxsize=4)(SandboxedTemplate)
    _confine()
    with socket.socket(fileno=0) as connection, connection.makefile("rwb") as stream:
        while len(head := stream.read(LENGTH.size)) == LENGTH.size:
            request = json.loads(stream.read(LENGTH.unpack(head)[0]))
            _allow_cpu()
            answer = _answer(compiled, request)
            write_message(stream, answer)
            if "exceeded" in answer:
                return  # memory that was full may stay in pieces: the next one begins anew


def write_message(stream: BufferedRWPair, message: dict[str, Any]) -> None:
    """Write one message at once."""
    content = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    stream.write(LENGTH.pack(len(content)) + content)
    stream.flush()


def _answer(compiled: Any, request: dict[str, Any]) -> dict[str, Any]:
    from hybrid.text.template_errors import TemplateExceeded, TemplateFailed, TemplateRefused

    try:
        template = compiled(request["source"])
        return {"text": "" if request["variables"] is None else template.render(request["variables"])}
    except TemplateRefused as error:
        return {"refused": str(error)}
    except TemplateFailed as error:
        return {"failed": str(error)}
    except TemplateExceeded as error:
        return {"exceeded": str(error)}
    except MemoryError:
        return {"exceeded": "it takes too much memory"}


def _confine() -> None:
    _load_all()
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_NOFILE: 3,  # those that are open
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in limits.items():
        resource.setrlimit(kind, (bound, bound))


def _load_all() -> None:
    """Import what rendering and failing would import: afterwards no file can be opened."""
    from hybrid.text.jinja_sandbox import SandboxedTemplate
    from hybrid.text.template_errors import TemplateFailed

    for source in ("{{ a | tojson }}{{ lipsum(n=1) }}{{ strftime_now('%c') }}{{ a | pprint }}", "{{ a.b.c }}", "{{ 1"):
        with suppress(TemplateFailed):
            SandboxedTemplate(source).render({"a": [{}]})


def _allow_cpu() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used.ru_utime + used.ru_stime) + CPU_S, hard))
