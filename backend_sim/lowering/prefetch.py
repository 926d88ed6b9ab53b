"""Loads move up: as early as their buffer is free, and no earlier than they need to be to arrive in time."""

from __future__ import annotations

from collections.abc import Iterable

from escc.backend_sim.lowering.actions import Action, conflict

MARGIN = 2.0
"""Estimated compute time to put before a load's use, over the time of the load."""
LOOK_BACK = 256
"""Most actions a load moves past."""


def hoist_loads(actions: Iterable[Action]) -> list[Action]:
    """Reorder a valid sequence so that loads overlap with computation; the result is a valid sequence.

    A load moves up past anything it does not conflict with, until the instructions it has passed are
    estimated to take ``MARGIN`` times as long as the load. Loads of one kind keep their order, a load of a
    map does not overtake other loads, and no load overtakes a store that the next instruction waits for:
    nothing needed sooner waits behind it in the queue.
    """
    result: list[Action] = []
    for action in actions:
        place = _place(action, result) if action.is_load else len(result)
        result.insert(place, action)
    return result


def _place(load: Action, before: list[Action]) -> int:
    """Where in the list the load goes."""
    place = len(before)
    hidden = 0.0
    passed: Action | None = None
    for index in range(len(before) - 1, max(-1, len(before) - 1 - LOOK_BACK), -1):
        other = before[index]
        overtakes_load = other.is_load and (load.mnemonic == "load_map" or other.mnemonic == "load_stream")
        if overtakes_load or conflict(load, other):
            break
        if other.mnemonic == "store_map" and passed is not None and conflict(other, passed):
            break
        place = index
        if other.queue != load.queue:
            passed = other
            hidden += other.cycles
            if hidden >= MARGIN * load.cycles:
                break
    return place
