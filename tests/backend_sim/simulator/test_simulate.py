"""Whole programs: outputs against a naive interpreter, and what must and must not change them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tests.backend_sim.simulator.networks import interpret, network

from escc.backend_sim.simulator import EnergyTable, SimResult, quantize_input, random_images, simulate
from escc.backend_sim.simulator.energy import COMPONENTS, EVENTS
from escc.errors import EsccError
from escc.isa.instructions import Queue
from escc.isa.program import Program


@pytest.fixture(scope="module")
def program() -> Program:
    return network()


@pytest.fixture(scope="module")
def images(program: Program) -> np.ndarray:
    return random_images(program.inputs[0], 5, seed=3)


@pytest.fixture(scope="module")
def result(program: Program, images: np.ndarray) -> SimResult:
    return simulate(program, images, timing_images=2)


def test_outputs_equal_the_naive_interpreter(program: Program, images: np.ndarray, result: SimResult) -> None:
    for index, image in enumerate(images):
        for got, expected in zip(result.outputs, interpret(program, image), strict=True):
            assert got[index].tolist() == expected.tolist()
    # the test would see nothing if everything saturated
    assert all(len(np.unique(output)) > 8 for output in result.outputs)
    assert result.outputs[0].dtype == np.uint8
    assert result.outputs[1].dtype == np.int8
    assert np.allclose(result.outputs_float[1], result.outputs[1] * 0.05)


@pytest.mark.parametrize("seed", range(1, 5))
def test_other_networks(seed: int) -> None:
    program = network(seed)
    images = random_images(program.inputs[0], 2, seed)
    outputs = simulate(program, images, timing_images=None).outputs
    for index, image in enumerate(images):
        for got, expected in zip(outputs, interpret(program, image), strict=True):
            assert got[index].tolist() == expected.tolist()


def test_batches_threads_and_timing_do_not_change_outputs(program: Program) -> None:
    images = random_images(program.inputs[0], 70, seed=5)
    whole = simulate(program, images, timing_images=20, workers=1)
    threads = simulate(program, images, timing_images=None, workers=3)
    for one, other in zip(whole.outputs, threads.outputs, strict=True):
        assert (one == other).all()
    alone = simulate(program, images[17:18], timing_images=1)
    assert (alone.outputs[0][0] == whole.outputs[0][17]).all()
    assert alone.cycles[0] == whole.cycles[17]
    assert alone.energy_pj == pytest.approx(sum(v[17] for v in whole.energy.values()))


def test_the_debug_section_is_never_read(program: Program, images: np.ndarray, result: SimResult) -> None:
    bare = simulate(program.stripped(), images, timing_images=2)
    for one, other in zip(bare.outputs, result.outputs, strict=True):
        assert (one == other).all()
    assert (bare.cycles == result.cycles).all()
    assert bare.energy_pj == result.energy_pj
    assert [layer.name for layer in bare.layers] == [*(f"layer {i}" for i in range(5)), "(program)"]
    wrong = replace(program, debug={"layers": [{"name": "x"}] * 5, "instructions": []})
    assert (simulate(wrong, images, timing_images=2).cycles == result.cycles).all()


def test_every_operand_byte_counts(program: Program, images: np.ndarray, result: SimResult) -> None:
    """Flipping a bit in the middle of any stream of the data section changes outputs (or is refused)."""
    stream_starts = [0, 216, 288, 312, 340, 412, 484]
    changed = 0
    for start in stream_starts:
        data = bytearray(bytes(program.data))
        data[start + 3] ^= 0x40
        try:
            other = simulate(replace(program, data=bytes(data)), images, timing_images=None)
        except EsccError:
            changed += 1
            continue
        changed += any((a != b).any() for a, b in zip(other.outputs, result.outputs, strict=True))
    assert changed == len(stream_starts)


def test_file_and_memory_run_the_same(
    program: Program, images: np.ndarray, result: SimResult, tmp_path: object
) -> None:
    path = f"{tmp_path}/net.bin"
    program.save(path)
    again = simulate(Program.load(path), images, timing_images=2)
    assert (again.outputs[1] == result.outputs[1]).all()
    assert (again.cycles == result.cycles).all()


def test_causes_and_layers_sum_to_the_cycles(result: SimResult) -> None:
    for causes in result.queues.values():
        assert np.array_equal(sum(causes.values()), result.cycles)
    assert np.array_equal(sum(layer.cycles for layer in result.layers), result.cycles)
    for queue in Queue:
        busy = sum(layer.queues.get(queue, {}).get("busy", np.zeros(2, np.int64)) for layer in result.layers)
        assert np.array_equal(busy, result.queues[queue.text]["busy"])
    arch = result.timed.arch if result.timed else None
    assert arch is not None
    for layer in result.layers[:3]:
        duration = layer.queues[Queue.BLK]["busy"]
        for part in ("lc", "mac"):
            cycles = sum(v for k, v in layer.counts.causes.items() if k.startswith(part))
            assert np.array_equal(cycles, duration * arch.rows * arch.blocks)


def test_events_of_the_memories_by_hand(program: Program, images: np.ndarray, result: SimResult) -> None:
    first = images[0]
    moved = 36 * 1 + np.count_nonzero(first) + (8 * 27 + 72) + (len_of_ternary(program) + 27 + 72)
    moved += 72 + 72 + 9
    # everything is loaded before the first mark, the outputs are stored in the last layer
    assert result.layers[-1].event("dram_read_bits")[0] == 8 * moved
    stored = 9 + np.count_nonzero(result.outputs[0][0]) + 1 + np.count_nonzero(result.outputs[1][0])
    assert result.layers[4].event("dram_write_bits")[0] == 8 * stored
    assert result.layers[3].event("vector_ops")[0] == 9 * 4 * 8
    stem = result.layers[0]
    assert stem.figure("dense_macs")[0] == 36 * 8 * 27
    assert stem.event("requantize_multiplies")[0] == 36 * 8
    assert result.layers[1].event("requantize_multiplies")[0] == 2 * 36 * 8
    assert stem.density("activations") == np.count_nonzero(images[:2]) / (2 * 108)
    assert stem.density("coefficients") is None


def len_of_ternary(program: Program) -> int:
    """Bytes of the ternary stream: it lies between the stem's records (ends at 288) and the bases."""
    data = bytes(program.data)
    offset = 288
    for _ in range(8):
        mask = int.from_bytes(data[offset : offset + 3], "little")
        offset += (24 + mask.bit_count() + 7) // 8
    return offset - 288


def test_energy_is_events_times_costs(result: SimResult) -> None:
    table = EnergyTable.load()
    per_byte = {"sram_read": table.sram_read(16), "sram_write": table.sram_write(16)}
    # two banks of 8 KiB
    wires = 8 * 0.0077 * 4
    assert per_byte == pytest.approx({"sram_read": 6.137 / 8 + wires, "sram_write": 7.878 / 8 + wires})
    expected = dict.fromkeys(COMPONENTS, 0.0)
    for event in EVENTS:
        amount = sum(float(layer.event(event.name)[0]) for layer in result.layers)
        cost = per_byte[event.cost] if event.cost in per_byte else table.costs[event.cost].value
        expected[event.component] += amount * cost
    # 2 * 0.26 uW for cycles / 800 us
    expected["leakage"] = 0.52 * float(result.cycles[0]) / 800
    got = {component: float(values[0]) for component, values in result.energy.items()}
    assert got == pytest.approx(expected)
    assert all(value > 0 for value in got.values())
    by_layer = sum(float(layer.energy_total[0]) for layer in result.layers)
    assert by_layer == pytest.approx(sum(got.values()))


def test_a_slower_dram_costs_cycles_and_changes_no_output(
    program: Program, images: np.ndarray, result: SimResult
) -> None:
    slow = program.arch.replace(dram_gbps=1.0, dram_latency_cycles=500)
    other = simulate(program, images, timing_images=2, arch=slow)
    assert (other.outputs[0] == result.outputs[0]).all()
    assert (other.cycles > result.cycles).all()
    blk = result.queues["blk"]["busy"]
    assert (other.queues["blk"]["busy"] == blk).all()
    fast = simulate(program, images, timing_images=2, arch=program.arch.replace(mhz=400.0))
    assert fast.latency_us[0] > result.latency_us[0]
    with pytest.raises(EsccError, match=r"another machine: array\.lanes: 16 / 8"):
        simulate(program, images, arch=program.arch.replace(lanes=8))


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("dram_gbps", 25.6),
        ("dram_gbps", 13.0),
        ("dram_latency_cycles", 30),
        ("dram_requests", 64),
        ("dram_banks", 32),
        ("dram_row_cycles", 20),
    ],
)
@pytest.mark.parametrize("few", [1, 32])
def test_a_better_dram_never_costs_cycles(
    program: Program, images: np.ndarray, name: str, better: float, few: int
) -> None:
    """Transfers are never longer, and nothing gets longer when one gets shorter."""
    machine = program.arch.replace(dram_requests=few, dram_banks=few, dram_row_bytes=64)
    before = simulate(program, images, timing_images=2, arch=machine)
    after = simulate(program, images, timing_images=2, arch=machine.replace(**{name: better}))
    assert (after.cycles <= before.cycles).all()


def test_json_and_csv(result: SimResult) -> None:
    content = json.loads(result.to_json())
    assert content["cycles"] == result.cycles.tolist()
    assert content["energy_pj"]["total"] == pytest.approx(result.energy_pj, rel=1e-6)
    assert content["energy_table"]["costs"]["dram_bit"]["citation"] == "LPDDR4: accelergy-cacti-plug-in"
    rows = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert [row["layer"] for row in rows][:2] == ["stem.conv", "block.conv"]
    units = ("_cycles", "_bytes", "_ops", "_ratio", "_pj")
    assert all(name.endswith(units) for name in list(rows[0])[3:])
    total = sum(float(row["elapsed_cycles"]) for row in rows)
    assert total == pytest.approx(result.cycles.mean())
    assert sum(float(row["total_energy_pj"]) for row in rows) == pytest.approx(result.energy_pj, rel=1e-6)


def test_functional_runs_have_no_cycles(program: Program, images: np.ndarray) -> None:
    bare = simulate(program, images, timing_images=None)
    assert bare.timed is None
    assert bare.layer_rows() == []
    assert "cycles" not in json.loads(bare.to_json())
    with pytest.raises(EsccError, match="nothing was timed"):
        _ = bare.cycles


def test_inputs(program: Program, images: np.ndarray) -> None:
    item = program.inputs[0]
    real = np.array([0.0, 0.125, 0.375, -1.0, 99.0, 63.6], np.float32)
    got = quantize_input(replace(item, scale=0.25), np.tile(real, 18).reshape(1, 3, 6, 6))
    assert got.reshape(-1)[:6].tolist() == [0, 0, 2, 0, 255, 254]
    by_name = simulate(program, {"image": images}, timing_images=None)
    in_list = simulate(program, [images], timing_images=None)
    assert (by_name.outputs[1] == in_list.outputs[1]).all()
    cases = [
        (images[0], r"shape \(3, 6, 6\), the program takes \(N, 3, 6, 6\)"),
        (images.astype(np.int32), "the images are int32, the program takes uint8, or floats"),
        (images.view(np.int8), "the images are int8"),
        (images[:0], "at least 1"),
        (np.full((1, 3, 6, 6), np.nan), "not numbers"),
    ]
    for wrong, message in cases:
        with pytest.raises(EsccError, match=message):
            simulate(program, wrong, timing_images=None)
    with pytest.raises(EsccError, match="2 inputs were given"):
        simulate(program, [images, images])
    with pytest.raises(EsccError, match="inputs x were given, the program takes image"):
        simulate(program, {"x": images})


def test_random_images_are_seeded(program: Program) -> None:
    item = program.inputs[0]
    one, same, other = (random_images(item, 3, seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
    assert one.shape == (3, 3, 6, 6)
    assert one.dtype == np.uint8


def test_a_race_is_refused_before_running(program: Program, images: np.ndarray) -> None:
    code = program.code.copy()
    waits = [i for i, word in enumerate(code.tolist()) if word >> 56 == 0x08]
    code[waits[1]] = 0  # the vector unit no longer waits for the blocks
    with pytest.raises(EsccError, match="race"):
        simulate(replace(program, code=code), images)
    code = program.code.copy()
    signals = [i for i, word in enumerate(code.tolist()) if word >> 56 == 0x09]
    code[signals[0]] = 0
    with pytest.raises(EsccError, match="token 0"):
        simulate(replace(program, code=code), images)
    with pytest.raises(EsccError, match="deadlock: waits for token 0"):
        simulate(replace(program, code=code), images, check=False)


def test_progress_is_told(program: Program, images: np.ndarray) -> None:
    told: list[tuple[str, int, int]] = []
    simulate(program, images, timing_images=2, progress=lambda *what: told.append(what))
    assert told[-1] == ("images", 5, 5)
    assert {stage for stage, _, _ in told} == {"timing", "images"}
    assert all(0 <= done <= total for _, done, total in told)


def test_simulating_imports_neither_torch_nor_xdsl() -> None:
    code = """if True:
        import sys
        from tests.backend_sim.simulator.networks import network
        from escc.backend_sim.simulator import simulate, random_images
        p = network()
        simulate(p, random_images(p.inputs[0], 2, 0))
        heavy = {"torch", "xdsl", "rich", "click", "lark", "safetensors"}
        print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
