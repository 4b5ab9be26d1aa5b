"""Jinja as chat templates expect it: a template comes with a model, from anyone.

The only importer of jinja2; import this file late. Environment and extras are those of transformers'
`apply_chat_template`. The sandbox keeps a template from Python's internals; time and memory are bounded by the process
that it runs in (`template_process.py`).
"""

import json
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from hybrid.text.template_errors import TemplateExceeded, TemplateFailed, TemplateRefused

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_OUTPUT_CHARACTERS = 1 << 23

_VERSION = version("jinja2")
_SAFE_SINCE = (3, 1, 6)  # templates get out of the sandbox of older ones


class SandboxedTemplate:
    """A compiled chat template. Raises TemplateFailed when it cannot be compiled."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise TemplateFailed(f"{len(source)} characters, more than the {MAX_TEMPLATE_CHARACTERS} one may have")
        if tuple(int(part) if part.isdigit() else 0 for part in _VERSION.split(".")[:3]) < _SAFE_SINCE:
            raise TemplateFailed(f"jinja2 {_VERSION} does not keep templates in; pip install 'jinja2>=3.1.6'")
        try:
            self._template: Template = _Environment().from_string(source)
        except Exception as error:  # jinja2 parses and compiles whatever it is given
            raise _failed(error) from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables. Raises TemplateRefused, TemplateFailed or TemplateExceeded."""
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(**variables):
                length += len(piece)
                if length > MAX_OUTPUT_CHARACTERS:
                    raise TemplateExceeded(f"it writes more than {MAX_OUTPUT_CHARACTERS} characters")
                pieces.append(piece)
        except (TemplateRefused, TemplateExceeded):
            raise
        except Exception as error:  # a template can cause any: its expressions are Python's
            raise _failed(error) from None
        return "".join(pieces)


def _failed(error: Exception) -> Exception:
    if isinstance(error, MemoryError):
        return TemplateExceeded("it takes too much memory")
    if isinstance(error, RecursionError):
        return TemplateFailed("nested too deeply")
    line = getattr(error, "lineno", None)
    kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
    return TemplateFailed(f"{kind}{_one_line(error)}" + (f" (line {line})" if line else ""))


def _one_line(value: Any) -> str:
    return " ".join(str(value)[:1000].split())[:200]


class _GenerationTag(Extension):
    """`{% generation %}` marks what the assistant says, for training; here it only has a body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


class _Namespace(Namespace):
    """Jinja's, without names that begin with an underscore."""

    def __init__(*arguments: Any, **attributes: Any) -> None:  # as Jinja's: an attribute may be called "self"
        Namespace.__init__(*arguments)
        for name, value in dict(*arguments[1:], **attributes).items():
            arguments[0][name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


class _Environment(ImmutableSandboxedEnvironment):
    def __init__(self) -> None:
        extensions = [_GenerationTag, "jinja2.ext.loopcontrols"]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _strftime_now
        self.globals["namespace"] = _Namespace


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: Any) -> None:
    raise TemplateRefused(_one_line(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
