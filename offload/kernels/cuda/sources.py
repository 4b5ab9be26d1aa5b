"""The CUDA C sources that ship with this package."""

import functools
import re
from importlib import resources

_INCLUDE = re.compile(r'^#include "(.+)"\n', re.MULTILINE)


@functools.cache
def program(file: str) -> str:
    """The text of a .cu file with its includes in their places, since NVRTC looks into no folder."""

    def expanded(name: str) -> str:
        text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        return f'#line 1 "{name}"\n' + _INCLUDE.sub(lambda include: expanded(include[1]), text)

    return expanded(file)
