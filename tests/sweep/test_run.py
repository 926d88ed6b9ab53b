"""Sweeps carried out: figures, journals, processes that die, a cluster that loses a worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from distributed import Client
from tests.sweep.spaces import GRID, WORKLOAD

from escc.backend_sim.area import area
from escc.backend_sim.simulator import simulate
from escc.cli import run as escc_command
from escc.driver import compile_module, import_model
from escc.errors import EsccError
from escc.sweep.journal import Entry, Journal
from escc.sweep.measure import Family
from escc.sweep.pools import DaskCluster, InProcess, LocalProcesses
from escc.sweep.run import Outcome, sweep
from escc.sweep.space import Point, Space, parse_space
from escc.sweep.workloads import load_prepared, prepare

EVOLUTION = GRID.replace('"grid"', '"evolution"\npoints = 12\npopulation = 4')


def space_of(text: str, network: Path) -> Space:
    return parse_space(text + WORKLOAD, network)


def figures(outcome: Outcome) -> dict[str, dict[str, float]]:
    return {json.dumps(entry.point): entry.figures for entry in outcome.entries}


def lines(work: Path) -> list[str]:
    return (work / "journal.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def reference(network: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """The grid, measured in this process, and its folder."""
    work = tmp_path_factory.mktemp("reference")
    return sweep(space_of(GRID, network), work, InProcess()), work


def test_a_full_point_is_what_compile_and_sim_say(network: Path, tmp_path: Path) -> None:
    space = space_of(GRID.replace("confirm = false", "confirm = true"), network)
    outcome = sweep(space, tmp_path, InProcess())
    images = np.load(network / "images.npy")
    for entry in outcome.confirmed[:2]:
        assert entry is not None
        arch = space.arch(entry.point)
        done = compile_module(import_model(str(network / "model.pt2")), arch=arch, calibration=images)
        assert done.program is not None
        result = simulate(done.program, images)
        assert entry.figures["cycles"] == result.cycles[0]
        assert entry.figures["latency_us"] == pytest.approx(result.latency_us[0])
        assert entry.figures["energy_uj"] == pytest.approx(result.energy_pj / 1e6)
        assert entry.figures["area_mm2"] == pytest.approx(area(arch).total_mm2)
        # other tiles: a fast point keeps those of the base machine
        fast = outcome.front[outcome.confirmed.index(entry)]
        assert fast.figures["cycles"] == pytest.approx(entry.figures["cycles"], rel=0.1)
        outputs = result.outputs[0].reshape(len(images), -1).argmax(axis=1)
        assert entry.figures["accuracy"] == np.mean(outputs == np.load(network / "labels.npy"))


def test_fast_points_choose_the_bands_that_the_compiler_chooses(network: Path, tmp_path: Path) -> None:
    """For the machine a program was compiled for they are those of the program."""
    space = space_of(GRID, network)
    prepare(space.workloads[0], {}, network, tmp_path)
    prepared = load_prepared(space.workloads[0], {}, tmp_path)
    for changes in ({}, {"rows": 2, "blocks": 3}, {"sram_kib": 4, "rows": 3}):
        family = Family(prepared, space.base.replace(**changes))
        assert family.bands(family.arch) == family.recordings[0].bands


def test_nothing_is_measured_twice(reference: tuple[Outcome, Path], network: Path) -> None:
    outcome, work = reference
    assert outcome.new == len(outcome.entries) == len(lines(work)) - 1 == 4
    again = sweep(space_of(GRID, network), work, InProcess())
    assert again.new == 0
    assert figures(again) == figures(outcome)
    # another search of the same space finds what is there
    other = sweep(space_of(EVOLUTION, network), work, InProcess())
    assert other.new == 0
    assert figures(other) == figures(outcome)


def test_a_line_cut_short_is_measured_again(
    reference: tuple[Outcome, Path], network: Path, tmp_path: Path
) -> None:
    outcome, work = reference
    data = (work / "journal.jsonl").read_bytes()
    for length in (len(data) - 1, len(data) - 30):
        (tmp_path / "journal.jsonl").write_bytes(data[:length])
        again = sweep(space_of(GRID, network), tmp_path, InProcess())
        assert again.new == 1
        assert figures(again) == figures(outcome)
        assert len(set(lines(tmp_path))) == len(lines(tmp_path)) == 5


def test_a_journal_of_something_else_is_refused(
    reference: tuple[Outcome, Path], network: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes((reference[1] / "journal.jsonl").read_bytes())
    other = space_of(GRID.replace("macs = 9", "macs = 8"), network)
    with pytest.raises(EsccError, match="on other networks, images or another base machine"):
        sweep(other, tmp_path, InProcess())
    assert sweep(other, tmp_path, InProcess(), restart=True).new == 12
    for text in ("[]\n", "nothing\n", '{"format": "escc sweep"}\n'):
        journal.write_text(text)
        with pytest.raises(EsccError, match="line 1 is no entry of a sweep"):
            sweep(other, tmp_path, InProcess())


def test_the_journal_gives_back_what_it_was_given(tmp_path: Path) -> None:
    point: Point = {"array.rows": 4, "concentration.policy": "gather", "compile.penalty": 0.1}
    entry = Entry(point, "full", {"cycles": 1 / 3}, {"net": {"cycles": 1e-300}})
    with Journal(tmp_path / "journal.jsonl", "id") as journal:
        journal.add(entry)
        journal.add(entry)
    with Journal(tmp_path / "journal.jsonl", "id") as journal:
        assert journal.entries == {entry.key: entry}
        with pytest.raises(EsccError, match="another sweep is at work in this folder"):
            Journal(tmp_path / "journal.jsonl", "id")


def test_points_that_do_not_fit_are_told(network: Path, tmp_path: Path) -> None:
    text = GRID.replace("macs = 9", "macs = 9\npsum_entries = [2, 1024]")
    outcome = sweep(space_of(text, network), tmp_path, InProcess())
    refused = [entry for entry in outcome.entries if entry.refused]
    assert len(refused) == outcome.refused == 4
    assert all("partial sums" in entry.refused for entry in refused)
    alone = space_of(text.replace("[2, 1024]", "2"), network)
    with pytest.raises(EsccError, match="none of 4 points can be measured"):
        sweep(alone, tmp_path / "alone", InProcess())


def test_accuracy_of_compression_parameters(network: Path, tmp_path: Path) -> None:
    text = 'objectives = ["latency", "accuracy"]\nconstraints = ["accuracy >= 0"]\n[search]\n'
    text += 'strategy = "grid"\n[compile]\nbases = [1, 6]\npenalty = [0.01, 30.0]\n'
    outcome = sweep(space_of(text, network), tmp_path, InProcess())
    found = {tuple(entry.point.values()): entry.figures["accuracy"] for entry in outcome.entries}
    assert len(found) == 4
    assert len(set(found.values())) > 1
    best = max(outcome.front, key=lambda entry: entry.figures["accuracy"])
    assert best.figures["accuracy"] == max(found.values())


def test_evolution_takes_the_same_way_again(network: Path, tmp_path: Path) -> None:
    text = EVOLUTION.replace("ring_entries = [2, 8]", "ring_entries = { from = 1, to = 30, step = 1 }")
    asked: list[list[str]] = []
    for name in ("one", "two"):
        outcome = sweep(space_of(text, network), tmp_path / name, InProcess())
        assert len(outcome.entries) == 12
        asked.append([json.dumps(entry.point) for entry in outcome.entries])
    assert asked[0] == asked[1]
    assert len(set(asked[0])) == 12


def kill_when(work: Path, count: int, victims: Sequence[int]) -> Thread:
    """Kill a process as soon as the journal has so many lines."""

    def watch() -> None:
        journal = work / "journal.jsonl"
        while not journal.exists() or len(journal.read_bytes().splitlines()) < count:
            time.sleep(0.005)
        os.kill(victims[0], signal.SIGKILL)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    return thread


MANY = GRID.replace("[2, 8]", "{ from = 1, to = 40, step = 1 }")


def test_a_sweep_killed_at_any_moment_goes_on(network: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    text = MANY + WORKLOAD
    for name in ("model.pt2", "images.npy", "labels.npy"):
        text = text.replace(f'"{name}"', json.dumps(str(network / name)))
    space.write_text(text)
    work = tmp_path / "work"
    command = [sys.executable, "-m", "escc", "sweep", str(space), "--work", str(work)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kill_when(work, 10, [child.pid])
    assert child.wait() == -signal.SIGKILL
    known = lines(work)
    assert 10 <= len(known) < 80
    outcome = sweep(parse_space(text, tmp_path), work, InProcess())
    assert outcome.new + len(known) - 1 == len(outcome.entries) == 80
    assert lines(work)[: len(known)] == known
    assert len(set(lines(work))) == 81


def test_a_local_worker_that_dies_loses_nothing(
    reference: tuple[Outcome, Path], network: Path, tmp_path: Path
) -> None:
    pool = LocalProcesses(2)
    # one of its processes is killed as soon as there are any
    victims = sorted(pool.processes())
    assert victims == []
    killer = Thread(target=_kill_one, args=(pool,), daemon=True)
    killer.start()
    try:
        outcome = sweep(space_of(GRID, network), tmp_path, pool)
    finally:
        pool.close()
    killer.join()
    assert figures(outcome) == figures(reference[0])
    assert len(set(lines(tmp_path))) == len(lines(tmp_path)) == 5


def _kill_one(pool: LocalProcesses) -> None:
    while not (found := pool.processes()):
        time.sleep(0.005)
    os.kill(found[0], signal.SIGKILL)


def test_a_cluster_that_loses_a_worker_loses_nothing(
    reference: tuple[Outcome, Path], network: Path, tmp_path: Path
) -> None:
    scheduler, workers = _cluster(tmp_path, 3)
    try:
        address = _address(tmp_path / "scheduler.json")
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(3, timeout=60)
            killer = kill_when(tmp_path / "work", 6, [workers[0].pid])
            pool = DaskCluster(address)
            outcome = sweep(space_of(MANY, network), tmp_path / "work", pool)
            pool.close()
            killer.join()
            assert workers[0].wait(10) == -signal.SIGKILL
            assert len(client.scheduler_info()["workers"]) <= 2
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()
    assert outcome.new == len(outcome.entries) == 80
    assert len(set(lines(tmp_path / "work"))) == len(lines(tmp_path / "work")) == 81
    known = figures(reference[0])
    assert {key: value for key, value in figures(outcome).items() if key in known} == known


def _cluster(folder: Path, count: int) -> tuple[subprocess.Popen[bytes], list[subprocess.Popen[bytes]]]:
    """A scheduler and ``count`` workers, each a process of its own."""
    file = str(folder / "scheduler.json")

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    scheduler = start(
        "dask_scheduler", "--scheduler-file", file, "--port", "0", "--no-dashboard", "--host", "127.0.0.1"
    )
    _address(folder / "scheduler.json")
    options = ("--scheduler-file", file, "--nthreads", "1", "--no-nanny", "--no-dashboard")
    return scheduler, [start("dask_worker", *options, "--local-directory", str(folder)) for _ in range(count)]


def _address(file: Path) -> str:
    for _ in range(6000):
        if file.exists() and (text := file.read_text()).rstrip().endswith("}"):
            return str(json.loads(text)["address"])
        time.sleep(0.01)
    raise AssertionError("the scheduler does not start")


def test_nobody_at_the_address(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (network / "grid.toml").write_text(GRID + WORKLOAD)
    arguments = ["sweep", str(network / "grid.toml"), "--work", str(tmp_path)]
    assert escc_command([*arguments, "--dask", "nowhere"]) == 1
    assert capsys.readouterr().err.startswith("error: nowhere: no Dask scheduler answers")


def test_the_command(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (network / "grid.toml").write_text(GRID + WORKLOAD)
    assert escc_command(["sweep", str(network / "grid.toml"), "--work", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(
        "| rows | blocks | ring_entries | policy | latency_us | energy_uj | area_mm2 | accuracy |"
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert sum(point["front"] for point in result["points"]) == len(printed) - 2
    assert result["objectives"] == ["latency", "energy", "area"]
    csv = (tmp_path / "points.csv").read_text().splitlines()
    assert len(csv) == 5
    assert csv[0].startswith("array.rows,array.blocks,array.ring_entries,concentration.policy,multipliers")
    svg = (tmp_path / "front.svg").read_text()
    assert svg.startswith("<svg ")
    assert svg.count("<circle") == 4
    assert escc_command(["sweep", str(tmp_path / "none.toml")]) == 1
    assert "cannot read" in capsys.readouterr().err
