"""Eyeriss: a dense array in row-stationary dataflow (Chen et al., ISCA 2016 and JSSC 2017)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.backend_sim.baselines.counting import (
    active_macs,
    ceil_div,
    matches,
    near_square,
    run_length_entries,
)
from escc.backend_sim.baselines.workload import BUSY, WAIT_DRAM, BufferUse, ConvWork, LayerRun, wait_for_dram
from escc.errors import EsccError

ELEMENT_COST, GLB_COST, DRAM_COST = 5.0, 6.0, 200.0
"""Energy of a multiply-accumulate with its four scratchpad accesses, of a word from the global buffer and
from DRAM, one multiply-accumulate = 1 (ISCA 2016, Table IV): what the mapping search weighs."""
SEARCHED = 1.5
"""Only mappings are searched that compute at most so many times as long as the shortest."""
RUN_BITS, PAIRS, PAIR_BITS = 5, 3, 64
"""Run-length code of maps in DRAM: three pairs of (5-bit run, value) in 64 bits (JSSC 2017, section V)."""

Amount = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mapping:
    """A row-stationary mapping, in the letters of the JSSC paper's Table III.

    A processing element interleaves ``p`` filters and ``q`` channels; a set of R x ``e`` elements computes
    ``e`` output rows; ``r`` sets work on different channels, ``t`` sets on different filters, ``g`` sets on
    different groups of a grouped convolution. ``n``: images that share the filters of a pass.
    """

    e: int
    p: int
    q: int
    r: int
    t: int
    g: int = 1
    n: int = 1


@dataclass(frozen=True)
class Shape:
    """A layer as a mapping sees it: channels and filters of a group, rows and columns of the output."""

    groups: int
    chans: int
    filters: int
    kernel_h: int
    kernel_w: int
    rows: int
    columns: int
    stride: int
    dilation: int
    height: int
    width: int
    padded_width: int


@dataclass(frozen=True)
class Traffic:
    """What mappings cost for an image, one entry each: cycles, words through the buffers, bytes of DRAM."""

    fits: npt.NDArray[np.bool_]
    compute: Amount
    load: Amount
    psum_words: Amount
    ifmap_words: Amount
    filter_words: Amount
    ifmap_dram_words: Amount
    psum_hops: Amount
    ifmap_spad_writes: Amount
    filter_spad_writes: Amount


@dataclass(frozen=True)
class Eyeriss:
    """The chip of the JSSC paper. Words of ``word_bits``; ``glb_kib`` holds inputs and partial sums.

    ``port_bits`` a cycle fill the filter scratchpads; the array waits for them, unless they are
    ``double_buffered``. ``batch``: images at hand for filter reuse; results are for one image. ``dram_gbps``:
    None never waits for DRAM.
    """

    name: str = "Eyeriss"
    rows: int = 12
    columns: int = 14
    ifmap_words: int = 12
    filter_words: int = 224
    psum_words: int = 24
    glb_kib: float = 100.0
    filter_kib: float = 8.0
    port_bits: int = 64
    word_bits: int = 16
    psum_bits: int = 16
    clock_mhz: float = 200.0
    batch: int = 1
    double_buffered: bool = False
    dram_gbps: float | None = None

    @property
    def multipliers(self) -> int:
        """One in every processing element."""
        return self.rows * self.columns

    def scaled(self, multipliers: int = 1024) -> Eyeriss:
        """Words of 8 bits, sums of 24; buffers and ports grow with the array, scratchpads do not."""
        rows, columns = near_square(multipliers)
        factor = multipliers / self.multipliers
        return replace(
            self,
            rows=rows,
            columns=columns,
            glb_kib=self.glb_kib * factor / 2,
            filter_kib=self.filter_kib * factor / 2,
            port_bits=max(8, int(self.port_bits * factor / 2) // 8 * 8),
            word_bits=8,
            psum_bits=24,
            clock_mhz=800.0,
        )

    def run(self, work: ConvWork) -> LayerRun:
        """One layer, one image, under the best mapping."""
        return self.run_mapped(work, self.best_mapping(work))

    def best_mapping(self, work: ConvWork) -> Mapping:
        """The mapping of the least energy-delay product.

        Raises:
            EsccError: the kernel does not fit the array or a scratchpad.
        """
        kernel_h, kernel_w = work.weight.shape[2:]
        if kernel_h > self.rows or kernel_w > min(self.ifmap_words, self.filter_words):
            raise EsccError(
                f"a kernel of {kernel_h} x {kernel_w} has no row-stationary mapping on {self.rows} rows",
                where=work.name,
            )
        found = _search(self, shape_of(work))
        if found is None:
            raise EsccError(f"no tile fits a global buffer of {self.glb_kib:g} KiB", where=work.name)
        return found

    def run_mapped(self, work: ConvWork, mapping: Mapping) -> LayerRun:
        """One layer, one image, under the given mapping.

        Raises:
            EsccError: the mapping does not fit the array, a scratchpad or the global buffer.
        """
        shape = shape_of(work)
        fields = {name: np.array([value]) for name, value in vars(mapping).items()}
        cost = traffic(self, shape, **fields)
        if not cost.fits[0]:
            raise EsccError(f"{mapping} does not fit the array", where=work.name)
        compute = int(cost.compute[0])
        load = int(np.ceil(cost.load[0]))
        if self.double_buffered:
            load = max(0, load - compute)
        macs, active, useful = work.macs, active_macs(work), matches(work)
        word, psum = self.word_bits / 8, self.psum_bits / 8
        squeeze = self._compression(work)
        dram_read = int(cost.ifmap_dram_words[0] * word * squeeze + cost.filter_words[0] * word)
        dram_write = int(min(int(np.prod(work.output_shape)) * word, work.y_nonzeros * PAIR_BITS / PAIRS / 8))
        wait = wait_for_dram(compute + load, dram_read + dram_write, self.clock_mhz, self.dram_gbps)
        total = compute + load + wait
        psum_words = float(cost.psum_words[0])
        ifmap, weights = float(cost.ifmap_words[0]), float(cost.filter_words[0])
        ports = self.multipliers
        return LayerRun(
            name=work.name,
            cycles=total,
            multipliers=self.multipliers,
            multiplications=active,
            slots={
                BUSY: useful,
                "zero_operand": macs - useful,
                "unused_elements": compute * self.multipliers - macs,
                "filter_load": load * self.multipliers,
                WAIT_DRAM: wait * self.multipliers,
            },
            events={
                "products": active * (self.word_bits / 8) ** 2,
                "sum_adds": active + float(cost.psum_hops[0]),
                "moved_bits": float(cost.psum_hops[0]) * self.psum_bits,
            },
            buffers=(
                BufferUse(
                    "global_buffer",
                    self.glb_kib,
                    1,
                    ifmap * word + psum_words * psum,
                    float(cost.ifmap_dram_words[0]) * word + psum_words * psum,
                ),
                BufferUse("filter_buffer", self.filter_kib, 1, weights * word, weights * word),
                _spad("ifmap_spad", self.ifmap_words * word, ports, macs, cost.ifmap_spad_writes[0], word),
                _spad(
                    "filter_spad", self.filter_words * word, ports, active, cost.filter_spad_writes[0], word
                ),
                _spad("psum_spad", self.psum_words * psum, ports, active, active, psum),
            ),
            dram_read_bytes=dram_read,
            dram_write_bytes=dram_write,
            note="groups side by side" if mapping.g > 1 else "",
            mapping={name: int(value) for name, value in vars(mapping).items()},
        )

    def array_bytes(self, work: ConvWork, mapping: Mapping) -> float:
        """Bytes between array and global buffer for an image: inputs read, partial sums read and written."""
        cost = traffic(
            self, shape_of(work), **{name: np.array([size]) for name, size in vars(mapping).items()}
        )
        return float(cost.ifmap_words[0] * self.word_bits + 2 * cost.psum_words[0] * self.psum_bits) / 8

    def _compression(self, work: ConvWork) -> float:
        """Bits of the coded input for every bit of the plain one; what does not shrink stays plain."""
        entries = run_length_entries(work.x_mask, RUN_BITS)
        pair = PAIR_BITS / PAIRS - 16 + self.word_bits
        return min(1.0, entries * pair / (work.x.size * self.word_bits))


def _spad(name: str, size: float, count: int, reads: float, writes: float, width: float) -> BufferUse:
    return BufferUse(name, size / 1024, count, float(reads) * width, float(writes) * width)


def shape_of(work: ConvWork) -> Shape:
    """The shape of a layer."""
    outs, chans, kernel_h, kernel_w = work.weight.shape
    _, rows, columns = work.output_shape
    _, height, width = work.x.shape
    return Shape(
        groups=work.groups,
        chans=chans,
        filters=outs // work.groups,
        kernel_h=kernel_h,
        kernel_w=kernel_w,
        rows=rows,
        columns=columns,
        stride=work.stride[0],
        dilation=work.dilation[0],
        height=height,
        width=width,
        padded_width=width + work.padding[1] + work.padding[3],
    )


def traffic(
    machine: Eyeriss, shape: Shape, e: Any, p: Any, q: Any, r: Any, t: Any, g: Any, n: Any
) -> Traffic:
    """Cycles and traffic of mappings given as arrays of one length, for one image of a batch of n."""
    weights = shape.groups * shape.filters * shape.chans * shape.kernel_h * shape.kernel_w
    rounds = -(-shape.groups // g)
    strips = -(-shape.rows // e)
    input_rows = (e - 1) * shape.stride + (shape.kernel_h - 1) * shape.dilation + 1
    filter_passes, filter_steps = _passes(shape.filters, p, t)
    chan_passes, chan_steps = _passes(shape.chans, q, r)
    # a set lies in bands of kernel_h rows of the array; one wider than the array is folded over several bands
    bands = machine.rows // shape.kernel_h
    sets = np.where(
        e <= machine.columns, bands * (machine.columns // e), bands // np.maximum(1, -(-e // machine.columns))
    )
    psum, word = machine.psum_bits / 8, machine.word_bits / 8
    tile = n * g * q * r * input_rows * shape.padded_width * word
    sums = n * g * e * shape.columns * psum
    room = np.floor((machine.glb_kib * 1024 - tile) / (sums * p * t)) * p * t
    needed = np.minimum(p * t, shape.filters)
    fits = (
        (r * t * g <= sets)
        & (q * shape.kernel_w <= machine.ifmap_words)
        & (p * q * shape.kernel_w <= machine.filter_words)
        & (p <= machine.psum_words)
        & (tile + sums * needed <= machine.glb_kib * 1024)
    )
    # filters whose sums stay in the buffer while all channels pass; the input is fetched for each such block
    held = np.clip(room, needed, shape.filters)
    filter_words = weights * strips / n
    outputs = shape.groups * shape.filters * shape.rows * shape.columns
    elements = shape.kernel_h * np.minimum(e, shape.rows) * np.minimum(r, shape.chans) * g
    chans = shape.groups * shape.chans
    steps = rounds * strips * chan_steps
    kept_rows = np.minimum(input_rows, shape.height)
    return Traffic(
        fits=fits,
        compute=1.0 * steps * filter_steps * shape.columns * shape.kernel_w,
        load=1.0 * filter_words * machine.word_bits / machine.port_bits,
        psum_words=1.0 * outputs * chan_passes,
        ifmap_words=1.0 * filter_passes * chans * strips * input_rows * shape.padded_width,
        filter_words=1.0 * filter_words,
        ifmap_dram_words=np.ceil(shape.filters / held) * chans * strips * kept_rows * shape.width,
        psum_hops=outputs * chan_passes * (shape.kernel_h * np.minimum(r, shape.chans) - 1.0),
        ifmap_spad_writes=1.0 * elements * t * steps * filter_passes * shape.padded_width,
        filter_spad_writes=1.0 * filter_words * np.minimum(e, shape.rows),
    )


def _passes(total: int, inside: Any, sets: Any) -> tuple[Any, Any]:
    """Passes over ``total`` channels (or filters), and the sum over them of what an element interleaves."""
    together = inside * sets
    full, rest = total // together, total % together
    return full + (rest > 0), full * inside + -(-rest // sets)


@lru_cache(maxsize=4096)
def _search(machine: Eyeriss, shape: Shape) -> Mapping | None:
    """All mappings worth a look: of the values of a factor that need equally many rounds, the smallest."""
    limit = machine.rows * machine.columns // shape.kernel_h
    sets = np.array(
        [
            (e, r, t, g)
            for e in _rounds(shape.rows, limit)
            for r in _rounds(shape.chans, limit // e)
            for t in _rounds(shape.filters, limit // (e * r))
            for g in _rounds(shape.groups, limit // (e * r * t))
        ]
    )
    e, r, t, g = sets.T
    least = traffic(machine, shape, e, 1, 1, r, t, g, 1)
    if not least.fits.any():
        return None
    bound = SEARCHED * least.compute[least.fits].min()
    sets = sets[least.fits & (least.compute <= bound)]
    most_q = min(machine.ifmap_words // shape.kernel_w, shape.chans)
    inside = [
        (p, q, n)
        for p in _rounds(shape.filters, machine.psum_words)
        for q in range(1, most_q + 1)
        for n in {1, machine.batch}
    ]
    inner = np.array(inside)
    e, r, t, g = (np.repeat(column, len(inner)) for column in sets.T)
    p, q, n = (np.tile(column, len(sets)) for column in inner.T)
    cost = traffic(machine, shape, e, p, q, r, t, g, n)
    cycles = np.maximum(cost.compute, cost.load) if machine.double_buffered else cost.compute + cost.load
    glb = 2 * cost.psum_words + cost.ifmap_words
    macs = shape.groups * shape.filters * shape.chans * shape.kernel_h * shape.kernel_w
    energy = ELEMENT_COST * macs * shape.rows * shape.columns + GLB_COST * glb
    energy += DRAM_COST * (cost.filter_words + cost.ifmap_dram_words)
    best = int(np.argmin(np.where(cost.fits, cycles * energy, np.inf)))
    return Mapping(*(int(column[best]) for column in (e, p, q, r, t, g, n)))


def _rounds(total: int, limit: int) -> list[int]:
    """The smallest sizes that need 1, 2, 3, ... rounds over ``total``, none above ``limit``."""
    return sorted({size for k in range(1, total + 1) if (size := ceil_div(total, k)) <= limit})
