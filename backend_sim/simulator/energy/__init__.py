"""Energy: event counts of a run times the cost of an event from a table with a source for every row."""

from __future__ import annotations

from escc.backend_sim.simulator.energy.events import COMPONENTS, EVENTS, Event
from escc.backend_sim.simulator.energy.table import Cost, EnergyTable, shipped_tables

__all__ = ["COMPONENTS", "EVENTS", "Cost", "EnergyTable", "Event", "shipped_tables"]
