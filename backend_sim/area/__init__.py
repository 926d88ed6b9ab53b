"""Area: the cells of a machine times their size, from a table with a source for every row."""

from __future__ import annotations

from escc.backend_sim.area.cells import Area, Part
from escc.backend_sim.area.machine import area
from escc.backend_sim.area.table import AreaTable

__all__ = ["Area", "AreaTable", "Part", "area"]
