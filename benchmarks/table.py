"""``python -m benchmarks.table [network ...]``: what escc takes for the networks of the zoo.

Every figure is that of a process of its own, as a user starts it. CPU seconds stand beside wall-clock
seconds: on a machine with other work the first are what escc needs, the second what that work leaves it.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.commands import run_command
from benchmarks.page import render, replace_section
from benchmarks.processes import Usage, escc, machine, measured
from escc.errors import EsccError
from escc.files import atomic_write
from escc.frontend.zoo import ZOO, entry

WORK = "build/table"
ENGINES = ("native", "numpy")
SMALL_SIDE = 32
READY = (
    "import sys; import escc.cli.sim; from escc.backend_sim.simulator import simulate; "
    "from escc.isa.program import Program; Program.load(sys.argv[1])"
)
"""All that ``escc sim`` does before it simulates."""
MAKE = """
import sys, torch, escc
from escc.frontend import zoo
name, path = sys.argv[1:]
shape = zoo.default_shape(name)
model = zoo.settle(zoo.build(name), shape, batches=1)
escc.save(model, torch.zeros(1, *shape), path)
"""


def engines() -> list[str]:
    """The engines that are there: asked of another process, this one stays small."""
    program = "from escc.backend_sim.simulator.timing import make_engine; print(make_engine().name)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return list(ENGINES) if done.stdout.startswith("native") else ["numpy"]


class Network:
    """The files and figures of one network in the working folder."""

    def __init__(self, name: str, work: Path, repeat: int, env: Mapping[str, str]) -> None:
        self.name, self.work, self.repeat, self.env = name, work, repeat, env
        self.model, self.program = work / f"{name}.pt2", work / f"{name}.bin"
        self.results = work / f"{name}.json"

    def kept(self) -> dict[str, Any] | None:
        """What was measured before."""
        return json.loads(self.results.read_text()) if self.results.exists() else None

    def measure(self, names: Sequence[str], profile: bool) -> dict[str, Any]:
        """Compile, simulate with every engine, and keep the figures."""
        if not self.model.exists():
            partial = self.model.with_suffix(".partial.pt2")
            measured([sys.executable, "-c", MAKE, self.name, str(partial)], env=self.env)
            partial.rename(self.model)
        report = self.work / self.name
        compile_words = ["compile", str(self.model), "-o", str(self.program), "--report", str(report)]
        found: dict[str, Any] = {"network": self.name, "input": list(entry(self.name).shape)}
        found["compile"] = self._usage(compile_words, self.repeat)
        content = json.loads((report / "compile.json").read_text())
        found["passes"] = {row["name"]: round(row["seconds"], 3) for row in content["passes"]}
        found["predicted_cycles"] = sum(layer["predicted_cycles"] for layer in content["layers"])
        found["program_bytes"] = self.program.stat().st_size
        for engine in names:
            output = report / f"{engine}.json"
            words = ["sim", str(self.program), "--engine", engine, "--json", str(output)]
            found[engine] = self._usage(words, self.repeat)
            result = json.loads(output.read_text())
            cycles = int(result["cycles"][0])
            if found.setdefault("cycles", cycles) != cycles:
                other = f"{names[0]} {found['cycles']}"
                raise EsccError(f"{engine} gives {cycles} cycles, {other}", where=self.name)
            found[engine]["engine"] = result["engine"]
        if profile:
            samples = report / "samples.json"
            words = ["sim", str(self.program), "--engine", names[0]]
            command = [sys.executable, "-m", "benchmarks.sampling", str(samples), *words]
            measured(command, env=self.env)
            found["profile"] = {"engine": names[0], "seconds": json.loads(samples.read_text())}
        atomic_write(self.results, json.dumps(found, indent=1).encode())
        return found

    def _usage(self, words: list[str], repeat: int) -> dict[str, Any]:
        return dict(measured(escc(*words), repeat=repeat, env=self.env).to_dict())


def cold_start(name: str, program: Path, env: Mapping[str, str], repeat: int) -> dict[str, dict[str, float]]:
    """What starting takes: Python alone, the help page, a simulator with its program read; and a thousand
    small images."""
    ready = [sys.executable, "-c", READY, str(program)]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "escc --help": escc("--help"),
        "escc sim, ready": ready,
    }
    if max(entry(name).shape) <= SMALL_SIDE:
        many = ["sim", str(program), "--functional", "--images", "1000"]
        commands[f"escc sim, {name}, 1,000 images, --functional"] = escc(*many)
    found: dict[str, Usage] = {}
    for title, command in commands.items():
        found[title] = measured(command, repeat=repeat, env=env)
    return {name: usage.to_dict() for name, usage in found.items()}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("networks", nargs=-1)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(WORK),
    show_default=True,
    help="Folder of models, programs and figures.",
)
@click.option("--again", is_flag=True, help="Measure again what was measured before.")
@click.option("--engine", "only", multiple=True, type=click.Choice(ENGINES), help="Only these; repeat.")
@click.option(
    "--repeat", default=3, show_default=True, type=click.IntRange(1), help="Runs, of which the least counts."
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Of BLAS and torch.")
@click.option("--profile", "profiled", multiple=True, metavar="NETWORK", help="Say where its time goes.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write figures.")
@click.option(
    "--page", type=click.Path(dir_okay=False, path_type=Path), help="Write the measured section of this page."
)
def command(
    networks: tuple[str, ...],
    work: Path,
    again: bool,
    only: tuple[str, ...],
    repeat: int,
    threads: int,
    profiled: tuple[str, ...],
    json_file: Path | None,
    page: Path | None,
) -> None:
    """Compile and simulate NETWORKS (default: the whole zoo) at their usual input sizes and print the table.

    Each network is kept as soon as it is measured: stopped at any moment, the same command goes on.
    """
    chosen = list(networks or ZOO)
    for name in (*chosen, *profiled):
        entry(name)
    if extra := set(profiled) - set(chosen):
        raise click.UsageError(f"--profile {min(extra)}: not among the measured networks")
    work.mkdir(parents=True, exist_ok=True)
    env = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    # modules are compiled once, as in an installation
    env |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str((work / "pycache").absolute())}
    names = [name for name in engines() if name in (only or ENGINES)]
    if missing := set(only) - set(names):
        raise EsccError(f"the {min(missing)} engine is not there", hint="build escc where a C++ compiler is")
    rows: list[dict[str, Any]] = []
    for name in chosen:
        network = Network(name, work, repeat, env)
        kept = None if again else network.kept()
        if kept is None or (name in profiled and "profile" not in kept):
            click.echo(f"measuring {name}", err=True)
            kept = network.measure(names, name in profiled)
        rows.append(kept)
    start = cold_start(chosen[0], work / f"{chosen[0]}.bin", env, max(repeat, 3))
    result: dict[str, Any] = {
        "machine": machine(),
        "threads": threads,
        "repeat": repeat,
        "command": "python -m benchmarks.table " + shlex.join(sys.argv[1:]),
        "cold_start": start,
        "networks": rows,
    }
    text = render(result)
    click.echo(text)
    if json_file is not None:
        atomic_write(json_file, (json.dumps(result, indent=1) + "\n").encode())
    if page is not None:
        replace_section(page, text)
        click.echo(f"wrote {page}", err=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; failures a user can act on are one line."""
    return run_command(command, "benchmarks.table", arguments, "; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
