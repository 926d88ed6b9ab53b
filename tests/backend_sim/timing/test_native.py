"""The native engine: the same figures as the definition, and one line for whatever it cannot take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.backend_sim.timing.cases import Case, figures, random_case
from tests.backend_sim.timing.engines import native_engines, native_is_there

from escc.backend_sim.simulator.timing import (
    ConvWork,
    Engine,
    RowStreams,
    Ternary,
    conv_timing,
    make_engine,
    native,
)
from escc.backend_sim.simulator.timing.engines import NumpyEngine
from escc.errors import EsccError
from escc.isa.arch import Arch
from escc.isa.sparsemap import decode_row_streams, encode_row_streams

needs_library = pytest.mark.skipif(not native_is_there(), reason="no compiler, hence no native engine")
ENGINES = native_engines()


def ternary(case: Case) -> Ternary | None:
    return None if case.mask is None else Ternary(case.mask)


def assert_equal(engine: Engine, case: Case) -> None:
    wanted = conv_timing(case.arch, case.work, case.x, case.mask)
    got = engine.conv_timing(case.arch, case.work, case.x, ternary(case))
    for name, values in vars(wanted).items():
        np.testing.assert_array_equal(getattr(got, name), values, err_msg=f"{engine.name}: {name}")
        assert getattr(got, name).dtype == np.int64


def wide_case(seed: int, arch: Arch) -> Case:
    """Channels over several chunks and words, so that every path of the registers is taken."""
    generator = np.random.default_rng(seed)
    outs, chans, bases = (int(generator.integers(1, high)) for high in (300, 200, 10))
    work = ConvWork(
        "combine", outs=outs, chans=chans, height=3, width=4, y_rows=3, y_cols=4, bases=bases, kernel_h=3,
        kernel_w=3, pad_top=1, pad_left=1, bands=2,
    )  # fmt: skip
    x = generator.random((1, 3, 4, chans)) < generator.random()
    mask = generator.random((outs, chans, bases)) < generator.random()
    return Case(arch, work, x, mask)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("lanes", [1, 4, 8, 13, 16, 100])
@pytest.mark.parametrize(("policy", "ahead", "aside"), [
    ("window", 2, 2), ("window", 2, 1), ("window", 1, 1), ("window", 5, 9), ("none", 0, 0), ("gather", 0, 0),
])  # fmt: skip
def test_every_window_on_large_layers(lanes: int, policy: str, ahead: int, aside: int) -> None:
    arch = Arch.default().replace(lanes=lanes, policy=policy, look_ahead=ahead, look_aside=aside)
    case = wide_case(lanes + 100 * ahead + aside, arch)
    for engine in ENGINES:
        assert_equal(engine, case)


def test_channels_in_chunks_of_1024_count_beyond_a_byte() -> None:
    arch = Arch.default().replace(chunk=1024, lanes=1, units=2)
    generator = np.random.default_rng(4)
    work = ConvWork("combine", outs=5, chans=1500, height=1, width=2, y_rows=1, y_cols=2, bases=3)
    mask = generator.random((5, 1500, 3)) < 0.8
    for policy in ("window", "gather", "none"):
        case = Case(arch.replace(policy=policy), work, np.ones((1, 1, 2, 1500), np.bool_), mask)  # pyright: ignore[reportArgumentType]
        for engine in ENGINES:
            assert_equal(engine, case)


@needs_library
def test_activations_where_they_lie() -> None:
    """Bytes with pitches, any non-zero value; other layouts and types are copied."""
    case = next(c for c in map(random_case, range(99)) if c.work.form == "combine" and c.x.any())
    images, rows, width, chans = case.x.shape
    held = np.zeros((images, rows + 2, width + 3, chans + 5), np.uint8)
    view = held[:, 1:-1, 2:-1, 3:-2]
    view[...] = case.x * np.random.default_rng(0).integers(1, 256, case.x.shape)
    engine = make_engine("native")
    wanted = conv_timing(case.arch, case.work, case.x, case.mask)
    backwards = np.ascontiguousarray(view[:, ::-1])[:, ::-1]
    fortran, floats = np.asfortranarray(view), view.astype(np.float32)
    for x in (view, backwards, fortran, view.view(np.int8), floats):
        got = engine.conv_timing(case.arch, case.work, x, ternary(case))  # pyright: ignore[reportArgumentType]
        assert all(figures(got, image) == figures(wanted, image) for image in range(images))


@needs_library
def test_packed_coefficients_are_kept_for_each_number_of_rows() -> None:
    case = next(c for c in map(random_case, range(99)) if c.work.form == "combine")
    coefficients = ternary(case)
    assert coefficients is not None
    engine = native.NativeEngine()
    first = engine.planes(coefficients, 3)
    assert engine.planes(coefficients, 3) is first
    assert engine.planes(coefficients, 2) is not first
    np.testing.assert_array_equal(first.weights, np.count_nonzero(coefficients.values, axis=(0, 2)))


@needs_library
def test_what_the_definition_refuses_is_refused_in_the_same_words() -> None:
    work = ConvWork("dense", outs=4, chans=4, height=6, width=5, y_rows=4, y_cols=3, kernel_h=3, kernel_w=3)
    x = np.ones((1, 5, 5, 4), np.bool_)
    arch = Arch.default()
    for wrong, values in ((work, x), (replace(work, x_first=1), x), (work, x[..., :3])):
        messages: list[str] = []
        for engine in (NumpyEngine(), make_engine("native")):
            with pytest.raises(EsccError) as caught:
                engine.conv_timing(arch, wrong, values)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    with pytest.raises(EsccError, match="coefficient mask of shape None in a combine convolution"):
        make_engine("native").conv_timing(
            arch, replace(work, form="combine"), np.ones((1, 6, 5, 4), np.bool_)
        )


@needs_library
@pytest.mark.parametrize(
    "change",
    [{"ring_entries": 2**31}, {"fifo_positions": 0}, {"macs": 2**20}, {"lanes": 2**40}, {"rows": -1}],
)
def test_parameters_no_machine_has_are_refused(change: dict[str, int]) -> None:
    case = random_case(1)
    with pytest.raises(EsccError, match="the native engine refuses"):
        make_engine("native").conv_timing(replace(case.arch, **change), case.work, case.x, ternary(case))


@needs_library
def test_a_layer_too_large_for_memory_is_one_line() -> None:
    work = ConvWork(
        "combine", outs=1 << 20, chans=1, height=1, width=1 << 22, y_rows=1, y_cols=1, kernel_w=1 << 22
    )
    x = np.lib.stride_tricks.as_strided(np.ones(1, np.uint8), (1, 1, 1 << 22, 1), (0, 0, 0, 1))
    engine = native.NativeEngine()
    with pytest.raises(EsccError, match="not enough memory"):
        engine.conv_timing(Arch.default(), work, x, Ternary(np.ones((1 << 20, 1, 1), np.int8)))


def test_engines_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert make_engine("numpy").name == "numpy"
    with pytest.raises(EsccError, match="unknown engine 'natve'"):
        make_engine("natve")
    if native_is_there():
        assert make_engine().name == make_engine("native").name == f"native-{native.variants()[0]}"
        assert make_engine("native-baseline").name == "native-baseline"
        with pytest.raises(EsccError, match=r"this processor runs .*, not avx9"):
            make_engine("native-avx9")
    broken = tmp_path / "kernel.so"
    broken.write_bytes(b"no library")
    for path, reason in ((tmp_path / "none.so", "it was not built"), (broken, "cannot be loaded")):
        with monkeypatch.context() as patch:
            patch.setattr(native, "LIBRARY", path)
            for function in (native.library, native.variants):
                function.cache_clear()
            assert make_engine().name == "numpy"
            with pytest.raises(EsccError, match=f"the native engine is not there: .*{reason}"):
                make_engine("native")
    native.library.cache_clear()
    native.variants.cache_clear()


def streamed(data: np.ndarray, shape: tuple[int, int, int], chunk: int, two_level: bool) -> Ternary:
    """Coefficients known by their stream."""

    def read() -> np.ndarray:
        return decode_row_streams(data, outs, chans, bases, chunk, two_level=two_level)[0]

    outs, chans, bases = shape
    return Ternary(read, (outs, chans, bases), RowStreams(data, chunk, two_level))


@needs_library
def test_a_short_stream_does_not_ask_for_memory() -> None:
    # 2^20 channel bits that would stand for 2^36 coefficients
    data = np.zeros(1 << 17, np.uint8)
    for codec in (NumpyEngine(), make_engine("native")):
        with pytest.raises(EsccError, match="two-level masks of 65535 bases, at most 64"):
            codec.decode(data, 1 << 10, 1 << 10, 65535, 64, two_level=True)


@needs_library
@pytest.mark.parametrize("seed", range(40))
def test_streams_are_decoded_alike(seed: int) -> None:
    generator = np.random.default_rng(seed)
    outs, chans, bases = (int(generator.integers(1, high)) for high in (20, 150, 8))
    chunk = int(generator.choice([3, 8, 32, 64, 128]))
    density = generator.random()
    values = generator.integers(-1, 2, (outs, chans, bases)) * (
        generator.random((outs, chans, bases)) < density
    )
    two_level = bool(seed % 2)
    stream = encode_row_streams(values, chunk, two_level=two_level)
    engine = native.NativeEngine()
    for data in (stream, np.concatenate([stream, generator.integers(0, 256, 9, np.uint8)])):
        decoded, used = engine.decode(data, outs, chans, bases, chunk, two_level=two_level)
        np.testing.assert_array_equal(decoded, values)
        assert used == stream.size
        assert engine.stream_bytes(data, outs, chans, bases, two_level=two_level) == stream.size
    kernels = generator.integers(-128, 128, bases, np.int8)
    rows, arch = int(generator.integers(1, 9)), Arch.default()
    wanted = engine.planes(Ternary(values.astype(np.int8)), rows)
    for name in native.variants():
        every = native.NativeEngine(name)
        recomposed = every.recompose(stream, outs, chans, bases, chunk, kernels, two_level=two_level)
        np.testing.assert_array_equal(recomposed[0], values @ kernels.astype(np.int64))
        np.testing.assert_array_equal(recomposed[1], np.abs(recomposed[0]).sum(axis=1))
        coefficients = streamed(stream, (outs, chans, bases), chunk, two_level)
        planes = every.planes(coefficients, rows)
        np.testing.assert_array_equal(planes.words, wanted.words)
        np.testing.assert_array_equal(planes.weights, wanted.weights)
        assert "values" not in vars(coefficients), "packed without reading every coefficient"
        assert every.nonzeros(arch, coefficients) == np.count_nonzero(values)
    assert NumpyEngine().nonzeros(arch, Ternary(values.astype(np.int8))) == np.count_nonzero(values)
    # whatever else is there: the same answer, or the same words
    for _ in range(5):
        data = (
            stream[: int(generator.integers(0, stream.size))] if generator.random() < 0.5 else stream.copy()
        )
        if data.size:
            data[generator.integers(0, data.size)] ^= np.uint8(1 << generator.integers(0, 8))
        answers: list[object] = []
        for codec in (NumpyEngine(), engine):
            try:
                decoded, used = codec.decode(data, outs, chans, bases, chunk, two_level=two_level)
                assert codec.stream_bytes(data, outs, chans, bases, two_level=two_level) == used
                answers.append((decoded.tolist(), used))
            except EsccError as error:
                answers.append(str(error))
        assert answers[0] == answers[1]
        if isinstance(answers[0], str):
            with pytest.raises(EsccError) as error:
                engine.recompose(data, outs, chans, bases, chunk, kernels, two_level=two_level)
            assert str(error.value) == answers[0]
            with pytest.raises(EsccError) as error:
                engine.planes(streamed(data, (outs, chans, bases), chunk, two_level), rows)
            assert str(error.value) == answers[0]
