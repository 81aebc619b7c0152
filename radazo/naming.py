"""Short names, for signatures, of constants that consist of functions."""

import sys
from typing import Any


def constant_repr(self: Any) -> str:
    """Return the public name of a constant, e.g. `radazo.directions.sphere`.

    If the module of its type has no such constant, return its type and functions.
    """
    module = type(self).__module__
    for name, value in vars(sys.modules[module]).items():
        if type(value) is type(self) and value == self:
            return ".".join([*module.split(".")[:2], name])
    fields = ", ".join(
        f"{name}={getattr(value, '__qualname__', value)}"
        for name, value in self._asdict().items()
    )
    return f"{type(self).__name__}({fields})"
