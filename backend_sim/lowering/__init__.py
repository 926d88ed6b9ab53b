"""From IR at the level "reordered" to machine programs: memory plan, schedule, emission, loops."""

from __future__ import annotations

from escc.backend_sim.lowering.explain import explain
from escc.backend_sim.lowering.lower import compile_module, lower

__all__ = ["compile_module", "explain", "lower"]
