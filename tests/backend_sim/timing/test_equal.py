"""The fast timing equals the cycle-by-cycle model, figure by figure."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from tests.backend_sim.timing.cases import Case, Machine, expected, figures, random_case
from tests.backend_sim.timing.engines import engines
from tests.backend_sim.timing.oracle import LC_CAUSES, MAC_CAUSES

from escc.backend_sim.simulator.timing import (
    Convolution,
    ConvTiming,
    ConvWork,
    Engine,
    Ternary,
    concentration,
    conv_timing,
    load,
    recurrence,
)
from escc.errors import EsccError
from escc.isa.arch import Arch

BATCH = 50
ENGINES = engines()


def timing_of(case: Case) -> ConvTiming:
    return conv_timing(case.arch, case.work, case.x, case.mask)


@pytest.mark.parametrize("batch", range(40))
def test_random_convolutions(batch: int) -> None:
    """The cycle-by-cycle model, numpy and every native instruction set agree on 2,000 convolutions."""
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        case = random_case(seed)
        ternary = None if case.mask is None else Ternary(case.mask)
        wanted = expected(case)
        for engine in ENGINES:
            timing = engine.conv_timing(case.arch, case.work, case.x, ternary)
            for image, figure in enumerate(wanted):
                got = figures(timing, image)
                assert got == figure, f"{engine.name}, seed {seed}: {case.arch} {case.work}"


def test_the_random_convolutions_reach_everything() -> None:
    """Every cause, event, form and policy occurs often, so equality on them says something."""
    seen: Counter[str] = Counter()
    for seed in range(300):
        case = random_case(seed)
        seen.update([case.work.form, case.arch.policy])
        seen["empty item"] += case.work.y_rows < case.work.bands
        seen["tile"] += case.work.x_first > 0 and case.work.y_first > 0
        seen["bases share units"] += case.work.bases > case.arch.units
        seen["rows without output"] += case.work.outs % case.arch.rows > 0
        seen["ragged chunk"] += case.work.chans % case.arch.chunk > 0
        for image in range(len(case.x)):
            seen.update(name for name, value in figures(timing_of(case), image).items() if value)
    assert min(seen.values()) >= 20, seen


@pytest.mark.parametrize("seed", range(1000, 1040))
def test_causes_sum_to_all_cycles_of_all_rows(seed: int) -> None:
    case = random_case(seed)
    timing = timing_of(case)
    whole = timing.cycles * case.arch.rows * case.arch.blocks
    for causes, names in ((timing.lc_causes, LC_CAUSES), (timing.mac_causes, MAC_CAUSES)):
        assert len(causes) == len(names)
        assert all((part >= 0).all() for part in causes.values())
        np.testing.assert_array_equal(sum(causes.values()), whole)
    np.testing.assert_array_equal(timing.mac_cycles, timing.mac_busy)


@pytest.mark.parametrize("policy", ["window", "gather", "none"])
def test_the_default_machine(policy: str) -> None:
    """64-channel chunks, two of them, on the machine of the default architecture file."""
    arch = Arch.default().replace(policy=policy)
    generator = np.random.default_rng(7)
    work = ConvWork(
        "combine", outs=9, chans=80, height=4, width=5, y_rows=4, y_cols=5, bases=8, kernel_h=3, kernel_w=3,
        pad_top=1, pad_left=1, bands=2,
    )  # fmt: skip
    x = generator.random((1, 4, 5, 80)) < 0.5
    mask = generator.random((9, 80, 8)) < 0.4
    case = Case(Machine(**{name: getattr(arch, name) for name in vars(Machine())}), work, x, mask)
    assert figures(conv_timing(arch, work, x, mask), 0) == expected(case)[0]


def test_block_sizes_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer when every block of positions, entries and images is as small as it can be."""
    cases = [random_case(seed) for seed in range(2000, 2060)]
    before = [timing_of(case) for case in cases]
    monkeypatch.setattr(concentration, "BLOCK_BYTES", 1)
    monkeypatch.setattr(load, "COUNTED_PAIRS", 1)
    monkeypatch.setattr(recurrence, "BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(recurrence, "TOGETHER", 1)
    # The package gives the function under the name of its module.
    monkeypatch.setattr(import_module(conv_timing.__module__), "BATCH_BYTES", 1)
    for case, wanted in zip(cases, before, strict=True):
        timing = timing_of(case)
        for image in range(len(case.x)):
            assert figures(timing, image) == figures(wanted, image)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_many_at_once(engine: Engine) -> None:
    """Convolutions of all forms and sizes timed together are timed as each alone."""
    for first in range(2200, 2280, 20):
        cases = [random_case(seed) for seed in range(first, first + 20)]
        arch = cases[0].arch
        # the same coefficients twice, too
        works = [*cases, *cases[:3]]
        ternaries = {id(case): None if case.mask is None else Ternary(case.mask) for case in cases}
        together = [Convolution(case.work, case.x, ternaries[id(case)]) for case in works]
        for case, timing in zip(works, engine.conv_timings(arch, together), strict=True):
            alone = timing_of(replace(case, arch=arch))
            for image in range(len(case.x)):
                assert figures(timing, image) == figures(alone, image)


def test_long_items_count_in_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [random_case(seed) for seed in range(2100, 2110)]
    before = [timing_of(case) for case in cases]
    monkeypatch.setattr(recurrence, "LARGEST_INT32", 0)
    for case, wanted in zip(cases, before, strict=True):
        assert figures(timing_of(case), 0) == figures(wanted, 0)


def test_images_are_independent() -> None:
    case = next(case for case in map(random_case, range(100)) if len(case.x) == 2 and case.x.any())
    both = timing_of(case)
    for image in range(2):
        alone = timing_of(replace(case, x=case.x[image : image + 1]))
        assert figures(alone, 0) == figures(both, image)


def test_no_images() -> None:
    case = random_case(3)
    timing = timing_of(replace(case, x=case.x[:0]))
    assert all(values.shape == (0,) and values.dtype == np.int64 for values in vars(timing).values())


def work_of(**changes: object) -> ConvWork:
    values: dict[str, object] = {"outs": 4, "chans": 4, "height": 6, "width": 5, "y_rows": 4, "y_cols": 3}
    return ConvWork("dense", **{**values, "kernel_h": 3, "kernel_w": 3, **changes})  # pyright: ignore[reportArgumentType]


def test_a_missing_row_is_an_error() -> None:
    x = np.ones((1, 5, 5, 4), dtype=np.bool_)
    with pytest.raises(EsccError, match="needs input row 5, resident are rows 0 to 4"):
        conv_timing(Machine(), work_of(), x)
    with pytest.raises(EsccError, match="needs input row 0, resident are rows 1 to 5"):
        conv_timing(Machine(), work_of(x_first=1), x)


def test_arrays_of_another_shape_are_errors() -> None:
    x = np.ones((1, 6, 5, 4), dtype=np.bool_)
    mask = np.ones((4, 4, 1), dtype=np.bool_)
    with pytest.raises(EsccError, match=r"activation mask of shape \(1, 6, 5, 3\)"):
        conv_timing(Machine(), work_of(), x[..., :3])
    with pytest.raises(EsccError, match=r"coefficient mask of shape \(4, 4, 1\) in a dense"):
        conv_timing(Machine(), work_of(), x, mask)
    with pytest.raises(EsccError, match=r"shape None in a combine convolution, expected \(4, 4, 1\)"):
        conv_timing(Machine(), replace(work_of(), form="combine"), x)


@pytest.mark.parametrize("change", [{"outs": 0}, {"stride_h": 0}, {"pad_left": -1}, {"bands": 0}])
def test_an_absurd_register_is_an_error(change: dict[str, int]) -> None:
    with pytest.raises(EsccError, match=f"register {next(iter(change))} is"):
        work_of(**change)


def test_depthwise_channels_must_fit() -> None:
    with pytest.raises(EsccError, match="3 channels times 2 gives 6 outputs, not 4"):
        replace(work_of(), form="depthwise", chans=3, multiplier=2)
    with pytest.raises(EsccError, match="unknown convolution form 'fused'"):
        replace(work_of(), form="fused")  # pyright: ignore[reportArgumentType]
