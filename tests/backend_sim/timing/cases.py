"""Machines and random convolutions for the tests of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tests.backend_sim.timing import oracle

from escc.backend_sim.simulator.timing import ConvTiming, ConvWork, concentration
from escc.backend_sim.simulator.timing.work import Bits, Counts, Form


@dataclass(frozen=True)
class Machine:
    """Architecture parameters, free of the ranges an architecture file is held to; the smallest machine."""

    blocks: int = 1
    rows: int = 1
    macs: int = 1
    units: int = 1
    lanes: int = 2
    chunk: int = 8
    ring_entries: int = 1
    fifo_positions: int = 1
    policy: str = "window"
    look_ahead: int = 2
    look_aside: int = 2
    startup_cycles: int = 0


@dataclass(frozen=True)
class Case:
    """One convolution on one machine."""

    arch: Machine
    work: ConvWork
    x: Bits
    mask: Bits | None


def random_case(seed: int) -> Case:
    """A small convolution: all forms, policies, strides, dilations, pads, tiles, ragged sizes, all zeros."""
    generator = np.random.default_rng(seed)

    def between(low: int, high: int) -> int:
        return int(generator.integers(low, high + 1))

    def one_of(*values: float) -> int:
        return int(values[between(0, len(values) - 1)])

    arch = Machine(
        blocks=between(1, 4),
        rows=between(1, 4),
        macs=one_of(1, 1, 2, 3, 4, 6, 9, 12),
        units=between(1, 7),
        lanes=one_of(1, 2, 2, 3, 4, 5, 8, 16),
        chunk=one_of(3, 8, 16, 24, 32),
        ring_entries=one_of(1, 1, 1, 2, 3, 16, 100),
        fifo_positions=one_of(1, 1, 2, 3, 8),
        policy=("window", "window", "gather", "none")[between(0, 3)],
        look_ahead=between(0, 4),
        look_aside=between(0, 3),
        startup_cycles=between(0, 20),
    )
    forms: tuple[Form, ...] = ("combine", "combine", "combine", "dense", "depthwise")
    form = forms[between(0, 4)]
    kernel, stride = (between(1, 4), between(1, 4)), (one_of(1, 1, 1, 2, 3), one_of(1, 1, 1, 2, 3))
    dilation, pad = (one_of(1, 1, 2), one_of(1, 1, 2)), (between(0, 2), between(0, 2))
    height, width = between(1, 9), between(1, 9)
    reach = height + 2 * pad[0] - (kernel[0] - 1) * dilation[0]
    out_rows = max(1, (reach - 1) // stride[0] + 1)
    y_first = between(0, out_rows - 1)
    y_rows = one_of(0, *[between(1, min(4, out_rows - y_first))] * 9)
    needed = {
        oy * stride[0] - pad[0] + r * dilation[0]
        for oy in range(y_first, y_first + y_rows)
        for r in range(kernel[0])
    }
    inside = [row for row in needed if 0 <= row < height]
    x_first = max(0, min(inside, default=0) - between(0, 1))
    x_rows = max(inside, default=0) - x_first + 1 + between(0, 1)
    multiplier = between(1, 3) if form == "depthwise" else 1
    chans = between(1, 6) if form == "depthwise" else between(1, 30)
    work = ConvWork(
        form=form,
        outs=chans * multiplier if form == "depthwise" else between(1, 9),
        chans=chans,
        bases=between(1, 7) if form == "combine" else 1,
        kernel_h=kernel[0],
        kernel_w=kernel[1],
        stride_h=stride[0],
        stride_w=stride[1],
        pad_top=pad[0],
        pad_left=pad[1],
        dil_h=dilation[0],
        dil_w=dilation[1],
        height=height,
        width=width,
        x_first=x_first,
        y_first=y_first,
        y_rows=y_rows,
        y_cols=one_of(0, *[between(1, width)] * 9),
        bands=between(1, 3),
        multiplier=multiplier,
    )
    # Uneven loads: positions and outputs of very different density, now and then none at all.
    images = between(1, 2)
    x = generator.random((images, x_rows, width, chans)) < one_of(0, *[1] * 9) * generator.random((width, 1))
    mask = None
    if form == "combine":
        density = one_of(0, *[1] * 9) * generator.random((work.outs, 1, 1))
        mask = generator.random((work.outs, chans, work.bases)) < density
    return Case(arch, work, x, mask)


def expected(case: Case) -> list[dict[str, int]]:
    """What the cycle-by-cycle model says, image by image."""
    mask = None if case.mask is None else case.mask.tolist()
    return [oracle.image_timing(case.arch, case.work, image.tolist(), mask) for image in case.x]


def figures(timing: ConvTiming, image: int) -> dict[str, int]:
    """The figures of one image by name."""
    return {name: int(values[image]) for name, values in vars(timing).items()}


def issue_cycles(machine: Machine, active: Bits, coefficients: Bits) -> Counts:
    """What numpy's concentration says of one chunk, (positions, bases, outs).

    ``active`` (positions, n): non-zero activations; ``coefficients`` (outs, n, bases).
    """
    outs, chans, bases = coefficients.shape
    cycles = np.zeros((len(active), bases, outs), dtype=np.int64)
    if machine.policy == "gather":
        for chosen, counts in concentration.gathered(machine.lanes, active, coefficients):
            cycles[chosen] = counts
        return cycles
    lanes = min(machine.lanes, chans)
    absent = concentration.absent_planes(coefficients)
    planes = np.concatenate([concentration.blank_plane(absent.shape[1]), absent])
    entries = concentration.dilute(active, chans, lanes)
    for chosen, issued in concentration.issued_blocks(machine, lanes, planes, entries):
        cycles[chosen] = concentration.issue_counts(issued, outs, bases)
    return cycles
