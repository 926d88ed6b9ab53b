"""Every engine of this machine, for the tests."""

from __future__ import annotations

import shutil

from escc.backend_sim.simulator.timing.engines import Engine, NumpyEngine
from escc.backend_sim.simulator.timing.native import LIBRARY, NativeEngine, variants

COMPILERS = ("c++", "g++", "clang++")


def native_is_there() -> bool:
    """Whether the native engine was built; it must have been where there is a compiler."""
    if LIBRARY.exists():
        return True
    assert not any(map(shutil.which, COMPILERS)), "there is a compiler, but escc was installed without it"
    return False


def native_engines() -> list[Engine]:
    """The native engine in every instruction set of this processor, 32 and 64 bits; none if not built."""
    if not native_is_there():
        return []
    return [NativeEngine(name, wide=wide) for name in variants() for wide in (False, True)]


def engines() -> list[Engine]:
    """All engines."""
    return [NumpyEngine(), *native_engines()]


def narrow_engines() -> list[Engine]:
    """All engines, native ones only with their usual width."""
    return [NumpyEngine(), *(map(NativeEngine, variants()) if native_is_there() else ())]
