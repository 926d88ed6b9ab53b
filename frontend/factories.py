"""Finding the user's own code by name: ``pkg.mod:factory`` and the zoo's ``zoo:resnet20``."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from escc.errors import EsccError
from escc.frontend.exported_archive import first_line

if TYPE_CHECKING:
    from torch import nn

ZOO_PREFIX = "zoo:"
_ZOO_ARGUMENT = re.compile(r"(num_classes|in_channels|seed)=(\d{1,9})")


def find_name(module: str, name: str) -> Any:
    """The object ``name`` (dots allowed) of the importable module ``module``; the working folder counts.

    Raises:
        EsccError: it cannot be imported or is not there.
    """
    try:
        with _working_folder():
            found: Any = importlib.import_module(module)
    except ImportError as error:
        raise EsccError(f"cannot import {module}: {first_line(error)}") from None
    except Exception as error:  # user code runs here and may raise anything
        raise EsccError(f"importing {module} failed: {type(error).__name__}: {first_line(error)}") from None
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise EsccError(f"module {module} has no '{name}'") from None
    return found


@contextmanager
def _working_folder() -> Generator[None]:
    """The working folder at the end of the search path, so that it never hides an installed module."""
    folder = os.getcwd()
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)


def make_module(name: str) -> nn.Module:
    """Call the factory ``pkg.mod:factory``, or build ``zoo:NAME[,num_classes=N][,in_channels=C][,seed=S]``.

    Raises:
        EsccError: a malformed name, a factory that fails or does not return a module.
    """
    from torch import nn

    if name.startswith(ZOO_PREFIX):
        return _from_zoo(name.removeprefix(ZOO_PREFIX))
    module, separator, attribute = name.partition(":")
    if not separator or not module or not attribute:
        raise EsccError(f"'{name}' is not of the form pkg.mod:factory or zoo:NAME")
    factory: Callable[[], Any] = find_name(module, attribute)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise EsccError(f"{name} is not callable")
    try:
        with _working_folder():
            model = factory()
    except Exception as error:  # user code runs here and may raise anything
        raise EsccError(f"{name}() failed: {type(error).__name__}: {first_line(error)}") from None
    if not isinstance(model, nn.Module):
        raise EsccError(f"{name}() returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _from_zoo(text: str) -> nn.Module:
    from escc.frontend import zoo

    name, *arguments = text.split(",")
    options: dict[str, int] = {}
    for argument in arguments:
        found = _ZOO_ARGUMENT.fullmatch(argument.strip())
        if found is None:
            raise EsccError(
                f"'{argument}' is not num_classes=N, in_channels=C or seed=S", where=f"zoo:{text}"
            )
        options[found[1]] = int(found[2])
    return zoo.build(name, **options)
