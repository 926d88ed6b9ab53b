"""The machines, step by step: the slow and obvious models that the fast ones must equal.

Products are found one by one by walking over the convolution; vectors are lists, units and banks counters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product

from escc.backend_sim.baselines import ConvWork, Eyeriss, Scnn, Sparten
from escc.backend_sim.baselines.eyeriss import Mapping
from escc.backend_sim.baselines.scnn import Tiles


def taps(work: ConvWork, k: int, row: int, column: int) -> Iterator[tuple[bool, bool]]:
    """(activation, weight) non-zero or not, for every multiplication of an output; padding is zero."""
    _, chans, kernel_h, kernel_w = work.weight.shape
    first = k // (work.weight.shape[0] // work.groups) * chans
    _, height, width = work.x.shape
    for i, j, c in product(range(kernel_h), range(kernel_w), range(chans)):
        y = row * work.stride[0] - work.padding[0] + i * work.dilation[0]
        x = column * work.stride[1] - work.padding[1] + j * work.dilation[1]
        inside = 0 <= y < height and 0 <= x < width
        yield inside and bool(work.x[first + c, y, x]), bool(work.weight[k, c, i, j])


def macs(work: ConvWork) -> Counter[tuple[bool, bool]]:
    """How many multiplications have a non-zero activation, a non-zero weight."""
    outs, rows, columns = work.output_shape
    found: Counter[tuple[bool, bool]] = Counter()
    for k, row, column in product(range(outs), range(rows), range(columns)):
        found.update(taps(work, k, row, column))
    return found


def vectors(values: Sequence[tuple[int, ...]], lanes: int) -> list[Sequence[tuple[int, ...]]]:
    return [values[first : first + lanes] for first in range(0, len(values), lanes)]


def split(values: Sequence[int], size: int) -> list[Sequence[int]]:
    return [values[first : first + size] for first in range(0, len(values), size)]


def scnn(machine: Scnn, work: ConvWork, tiles: Tiles) -> Counter[str]:
    """Cycles, steps, products and those inside the map."""
    halo = machine.halo(work, tiles)
    found: Counter[str] = Counter()
    outs, chans = work.weight.shape[0] // work.groups, work.weight.shape[1]
    _, height, width = work.x.shape
    by_set = split(range(outs), -(-outs // tiles.sets))
    rounds = max(-(-len(part) // tiles.held) for part in by_set)
    for q, number, down, across in product(
        range(work.groups), range(rounds), range(tiles.down), range(tiles.across)
    ):
        barriers: dict[int, list[int]] = {}
        for part, a, b in product(by_set, range(machine.rows), range(machine.columns)):
            first_y = (down * machine.rows + a) * tiles.rows
            first_x = (across * machine.columns + b) * tiles.columns
            ys = range(first_y, min(height, first_y + tiles.rows))
            xs = range(first_x, min(width, first_x + tiles.columns))
            group = part[number * tiles.held : (number + 1) * tiles.held]
            total = 0
            for c in range(chans):
                cost = element(machine, work, q * chans + c, [q * outs + k for k in group], (ys, xs), found)
                total += cost
                if machine.barrier == "channel":
                    barriers.setdefault(c, []).append(cost)
            if machine.barrier == "group":
                barriers.setdefault(0, []).append(total)
        time = sum(max(costs) for costs in barriers.values())
        found["cycles"] += max(time, halo) if machine.halo_overlapped else time + halo
    return found


def element(
    machine: Scnn,
    work: ConvWork,
    channel: int,
    filters: list[int],
    tile: tuple[Sequence[int], Sequence[int]],
    found: Counter[str],
) -> int:
    """Cycles of an element for a channel: only operands of equal phase meet."""
    _, chans, kernel_h, kernel_w = work.weight.shape
    _, rows, columns = work.output_shape
    steps = strict = 0
    load: Counter[int] = Counter()
    for phase in product(range(work.stride[0]), range(work.stride[1])):
        weights = [
            (number, i * work.dilation[0], j * work.dilation[1])
            for i, j in product(range(kernel_h), range(kernel_w))
            for number, k in enumerate(filters)
            if work.weight[k, channel % chans, i, j]
            and (i * work.dilation[0] % work.stride[0], j * work.dilation[1] % work.stride[1]) == phase
        ]
        activations = [
            (y + work.padding[0], x + work.padding[1])
            for y, x in product(*tile)
            if work.x[channel, y, x]
            and ((y + work.padding[0]) % work.stride[0], (x + work.padding[1]) % work.stride[1]) == phase
        ]
        for some, others in product(
            vectors(activations, machine.activations), vectors(weights, machine.weights)
        ):
            fill: Counter[int] = Counter()
            for (y, x), (k, i, j) in product(some, others):
                found["products"] += 1
                row, column = (y - i) // work.stride[0], (x - j) // work.stride[1]
                if 0 <= row < rows and 0 <= column < columns:
                    found["useful"] += 1
                    low = k % 4 + 4 * (row % 2) + 8 * (column % 2)
                    folded = (k // 4 + row // 2 + column // 2) % 2
                    fill[(low + 16 * folded) % machine.banks] += 1
            steps += 1
            strict += max(1, *fill.values(), 0)
            load += fill
    found["steps"] += steps
    cost = max(steps, *load.values(), 0) if machine.banks_queued else strict
    found["extra"] += cost - steps
    return cost


def pairs(machine: Sparten, filters: list[int], chunks: list[dict[int, int]]) -> list[list[list[list[int]]]]:
    """Filters of every unit of every group, for every chunk; ``chunks``: non-zeros of each filter."""
    two = machine.balance != "none" and machine.sides != "dense" and len(filters) > machine.units
    if not two:
        groups = [[[k] for k in part] for part in split(filters, machine.units)]
        return [groups for _ in chunks]
    order = sorted(filters, key=lambda k: -sum(chunk[k] for chunk in chunks))
    together = [[order[n], order[-1 - n]] for n in range(len(order) // 2)]
    if len(order) % 2:
        together.append([order[len(order) // 2]])
    units = [together[first : first + machine.units] for first in range(0, len(together), machine.units)]
    if machine.balance == "gb-s":
        return [units for _ in chunks]
    found: list[list[list[list[int]]]] = []
    for chunk in chunks:
        again: list[list[list[int]]] = []
        for group in units:
            # firsts of the pairs, then seconds; who is absent counts as empty and takes the other end
            members: list[int | None] = [pair[0] for pair in group]
            members += [None] * (machine.units - len(group))
            members += [pair[1] if len(pair) > 1 else None for pair in group]
            members += [None] * (machine.units - len(group))
            ranked = sorted(members, key=lambda k: 1 if k is None else -chunk[k])
            ends = [(ranked[n], ranked[-1 - n]) for n in range(machine.units)]
            again.append([[k for k in pair if k is not None] for pair in ends])
        found.append(again)
    return found


def sparten(machine: Sparten, work: ConvWork) -> Counter[str]:
    """Cycles of the slowest cluster, of all units and of all clusters."""
    outs, chans, kernel_h, kernel_w = work.weight.shape
    _, rows, columns = work.output_shape
    per_group = outs // work.groups
    together = work.groups > 1 and per_group < machine.units
    parts = [list(range(outs))] if together else split(list(range(outs)), per_group)
    positions = list(product(range(rows), range(columns)))
    window = [(i, j, c) for i, j in product(range(kernel_h), range(kernel_w)) for c in range(chans)]
    if chans >= 16:
        spans = [
            window[tap * chans + first : min(tap * chans + first + machine.chunk, (tap + 1) * chans)]
            for tap in range(kernel_h * kernel_w)
            for first in range(0, chans, machine.chunk)
        ]
    else:
        spans = [window[first : first + machine.chunk] for first in range(0, len(window), machine.chunk)]
    whole_w, whole_x = machine.sides in ("activations", "dense"), machine.sides in ("weights", "dense")
    values: dict[tuple[int, int], dict[tuple[int, int, int], tuple[bool, bool]]] = {}
    found: Counter[str] = Counter()
    for filters in parts:
        chunks = [
            {k: sum(whole_w or bool(work.weight[k, c, i, j]) for i, j, c in span) for k in filters}
            for span in spans
        ]
        assigned = pairs(machine, list(filters), chunks)
        groups = len(assigned[0])
        clusters = [0] * machine.clusters

        def pieces(count: int, groups: int = groups) -> int:
            return -(-groups * count // machine.clusters) * -(-len(positions) // count)

        count = min(range(1, min(len(positions), machine.clusters) + 1), key=lambda n: (pieces(n), n))
        runs = [list(run) for run in split(range(len(positions)), -(-len(positions) // count))]
        for number, (group, run) in enumerate(product(range(groups), runs)):
            done, units = [0] * machine.lead, [0] * machine.units
            for position in run:
                for n, span in enumerate(spans):
                    for unit, held in enumerate(assigned[n][group]):
                        cost = 0
                        for k in held:
                            if (k, position) not in values:
                                pairs_of_k = taps(work, k, *positions[position])
                                values[k, position] = dict(zip(window, pairs_of_k, strict=True))
                            hits = [values[k, position][place] for place in span]
                            matched = sum((a or whole_x) and (w or whole_w) for a, w in hits)
                            cost += max(1, matched)
                        units[unit] = max(units[unit], done[-machine.lead]) + cost
                        found["units"] += cost
                    units[len(assigned[n][group]) :] = [
                        max(time, done[-machine.lead]) for time in units[len(assigned[n][group]) :]
                    ]
                    done.append(max(units))
            clusters[number % machine.clusters] += done[-1]
        found["cycles"] += max(clusters)
        found["clusters"] += sum(clusters)
    return found


def eyeriss(machine: Eyeriss, work: ConvWork, mapping: Mapping) -> Counter[str]:
    """Pass by pass: cycles, words of inputs read, of partial sums read and written, of filters loaded."""
    outs, chans, kernel_h, kernel_w = work.weight.shape
    _, rows, columns = work.output_shape
    filters = outs // work.groups
    wide = work.x.shape[2] + work.padding[1] + work.padding[3]
    tall = (mapping.e - 1) * work.stride[0] + (kernel_h - 1) * work.dilation[0] + 1
    found: Counter[str] = Counter()
    for side_by_side in split(range(work.groups), mapping.g):
        for strip in split(range(rows), mapping.e):
            for some_filters in split(range(filters), mapping.p * mapping.t):
                for some_chans in split(range(chans), mapping.q * mapping.r):
                    # the element with most filters and channels sets the pace; it walks along a row
                    p = -(-len(some_filters) // mapping.t)
                    q = -(-len(some_chans) // mapping.r)
                    found["cycles"] += columns * kernel_w * p * q
                    for _ in side_by_side:
                        found["inputs"] += len(some_chans) * tall * wide
                        found["sums"] += 2 * len(some_filters) * len(strip) * columns
                        found["filters"] += len(some_filters) * len(some_chans) * kernel_h * kernel_w
    return found
