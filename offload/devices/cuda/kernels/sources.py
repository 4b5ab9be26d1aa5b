"""The CUDA C sources that ship with this package."""

import functools
import re
from importlib import resources

_INCLUDE = re.compile(r'#include "(.+)"')


@functools.cache
def program(file: str) -> str:
    """The text of a .cu file with its includes in their places, since NVRTC looks into no folder.

    Errors still name the file and line they are in.
    """
    lines = [f'#line 1 "{file}"']
    text = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        include = _INCLUDE.fullmatch(line)
        lines += [program(include[1]), f'#line {number + 1} "{file}"'] if include else [line]
    return "\n".join(lines) + "\n"
