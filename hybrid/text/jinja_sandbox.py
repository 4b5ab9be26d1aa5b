"""Jinja as chat templates expect it, but bounded: a template comes with a model, from anyone.

The only importer of jinja2; import this file late. Environment and extras are those of transformers'
`apply_chat_template`. Loops, output and the growth of strings are bounded; single filters that blow up one string
(`center`, `replace`) are not.
"""

import json
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_OUTPUT_CHARACTERS = 1 << 24
MAX_ROUNDS = 300_000  # of all loops and macros together


class TemplateRefused(Exception):
    """The template called `raise_exception`: it will not have these messages."""


class TemplateFailed(Exception):
    """The template is wrong, or went beyond its bounds."""


class BoundedTemplate:
    """A compiled chat template. Raises TemplateFailed when it cannot be compiled."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise TemplateFailed(f"{len(source)} characters, more than the {MAX_TEMPLATE_CHARACTERS} one may have")
        self._environment = _Environment()
        self._lock = threading.Lock()  # the environment counts the rounds of one render
        try:
            tree = _Bound().visit(self._environment.parse(source))
            tree.set_environment(self._environment)
            self._template: Template = self._environment.from_string(tree)
        except Exception as error:  # jinja2 parses and compiles whatever it is given
            raise _failed(error) from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables. Raises TemplateRefused or TemplateFailed."""
        pieces: list[str] = []
        length = 0
        with self._lock:
            self._environment.rounds = 0
            try:
                for piece in self._template.generate(**variables):
                    length += len(piece)
                    if length > MAX_OUTPUT_CHARACTERS:
                        raise TemplateFailed(f"writes more than {MAX_OUTPUT_CHARACTERS} characters")
                    pieces.append(piece)
            except (TemplateRefused, TemplateFailed):
                raise
            except Exception as error:  # a template can cause any: its expressions are Python's
                raise _failed(error) from None
        return "".join(pieces)


def _failed(error: Exception) -> TemplateFailed:
    line = getattr(error, "lineno", None)
    if isinstance(error, RecursionError):
        return TemplateFailed("nested too deeply")
    kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
    reason = " ".join(str(error).split())[:200]
    return TemplateFailed(f"{kind}{reason}" + (f" (line {line})" if line else ""))


class _GenerationTag(Extension):
    """`{% generation %}` marks what the assistant says, for training; here it only has a body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**"])

    def __init__(self) -> None:
        extensions = [_GenerationTag, "jinja2.ext.loopcontrols"]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _strftime_now
        self.rounds = 0

    def count_round(self) -> str:
        """Called at the beginning of every round of a loop and every call of a macro."""
        self.rounds += 1
        if self.rounds > MAX_ROUNDS:
            raise TemplateFailed(f"its loops go more than {MAX_ROUNDS} rounds")
        return ""

    def joined(self, *parts: Any) -> str:
        """What `~` gives."""
        texts = [str(part) for part in parts]
        _check_length(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and _has_length(left) and _has_length(right):
            _check_length(len(left) + len(right))
        elif operator == "*" and _has_length(left) != _has_length(right):
            _check_length(len(left) * right if _has_length(left) else left * len(right))
        elif operator == "*":
            _check_length(_bits(left) + _bits(right))
        elif operator == "**":
            _check_length(_bits(left) * right)
        return super().call_binop(context, operator, left, right)


class _Bound(NodeTransformer):
    """Makes a template count its rounds, and look before it joins strings."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _environment_call("joined", node.nodes, node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._counted(node)

    def _counted(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body = [nodes.ExprStmt(_environment_call("count_round", [], node.lineno), lineno=node.lineno), *node.body]
        return node


def _environment_call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None, lineno=line)


def _has_length(value: Any) -> bool:
    return isinstance(value, str | list | tuple)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 1


def _check_length(length: int) -> None:
    if length > MAX_OUTPUT_CHARACTERS:
        raise TemplateFailed(f"makes a value of more than {MAX_OUTPUT_CHARACTERS} characters")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: Any) -> None:
    raise TemplateRefused(" ".join(str(message).split())[:200])


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
