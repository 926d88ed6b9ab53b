"""The native timing engine: its C++ sources, and the library built from them when there was a compiler.

The sources define nothing: `escc.backend_sim.simulator.timing` does, and the engine must equal it.
"""

from __future__ import annotations
