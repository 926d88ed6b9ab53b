"""Exact coding in C++: its source, and the library built from it when there was a compiler.

The source defines nothing: :func:`escc.passes.math.coding.encode` does, and the library must equal it.
"""

from __future__ import annotations
