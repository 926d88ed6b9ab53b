"""``python -m benchmarks.peers [scalesim|zigzag ...]``: the same layers in other simulators and in escc.

Every simulator runs in a process of its own; figures are CPU seconds and peak memory of these processes, and
their ratios to escc per multiply-accumulate. What they do differs, and the table says so: escc computes the
layer's real outputs, cycles from the real zeros and energy; SCALE-Sim counts the cycles of a dense systolic
array; ZigZag searches a mapping for an analytical model of energy and latency.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.commands import run_command
from benchmarks.peers.environments import PEERS, environment
from benchmarks.peers.layers import LAYERS
from benchmarks.processes import Usage, escc, machine, measured
from escc.errors import EsccError
from escc.files import atomic_write

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WORK = "build/peers"


@dataclass(frozen=True)
class Line:
    """One simulator on one layer; ``cycles`` are those of the machine that it models."""

    layer: str
    simulator: str
    macs: int
    usage: Usage
    cycles: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "usage": self.usage.to_dict()}


def run_peer(key: str, name: str, folder: Path, env: Mapping[str, str]) -> Line:
    """A peer on a layer.

    Raises:
        EsccError: it cannot be installed, fails, or leaves no result.
    """
    layer = LAYERS[name]
    python = environment(key, (folder / "environments").absolute())
    place = (folder / f"{key}-{name}").absolute()
    place.mkdir(parents=True, exist_ok=True)
    result = place / "result.json"
    result.unlink(missing_ok=True)
    content = asdict(layer) | {"out_side": layer.out_side, "name": name}
    (place / "layers.json").write_text(json.dumps([content]))
    usage = measured([str(python), str(HERE / PEERS[key].driver), str(place)], env=env, cwd=place)
    if not result.exists():
        raise EsccError(f"{PEERS[key].name} ended without a result", where=str(place))
    return Line(name, PEERS[key].name, layer.macs, usage, int(json.loads(result.read_text())["cycles"][0]))


def run_escc(name: str, folder: Path, env: Mapping[str, str], repeat: int) -> Line:
    """escc on a layer: compiled beforehand, the whole ``escc sim`` measured."""
    folder.mkdir(parents=True, exist_ok=True)
    program, output = folder / f"{name}.bin", folder / f"{name}.json"
    make = [sys.executable, "-m", "benchmarks.peers.layers", name, str(program.absolute())]
    measured(make, env=env, cwd=ROOT)
    words = escc("sim", str(program), "--json", str(output))
    usage = measured(words, env=env, repeat=repeat)
    result = json.loads(output.read_text())
    return Line(name, f"escc ({result['engine']})", LAYERS[name].macs, usage, int(result["cycles"][0]))


def table(lines: Sequence[Line]) -> list[str]:
    """The lines with ratios to escc's line of the same layer."""
    own = {line.layer: line for line in lines if line.simulator.startswith("escc")}
    text = [f"{'layer':16} {'simulator':22} {'MMAC':>7} {'CPU s':>8} {'MiB':>6} {'ns/MAC':>8} {'x escc':>8}"]
    text[0] += f" {'cycles':>12}"
    for line in lines:
        per_mac = 1e9 * line.usage.cpu / line.macs
        ratio = line.usage.cpu / line.macs / (own[line.layer].usage.cpu / own[line.layer].macs)
        text.append(
            f"{line.layer:16} {line.simulator:22} {line.macs / 1e6:7.1f} {line.usage.cpu:8.2f} "
            f"{line.usage.mib:6.0f} {per_mac:8.2f} {ratio:8.1f} {line.cycles:12,}"
        )
    return text


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("peers", nargs=-1, type=click.Choice(list(PEERS)))
@click.option("--layer", "layers", multiple=True, type=click.Choice(list(LAYERS)), help="Only these; repeat.")
@click.option(
    "--work", type=click.Path(file_okay=False, path_type=Path), default=Path(WORK), show_default=True,
    help="Folder of environments and figures.",
)  # fmt: skip
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1), help="Runs of escc.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write figures.")
def command(
    peers: tuple[str, ...], layers: tuple[str, ...], work: Path, repeat: int, json_file: Path | None
) -> None:
    """Run PEERS (default: all) and escc on the same layers and print ratios per multiply-accumulate."""
    env = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    lines: list[Line] = []
    for name in layers or LAYERS:
        for key in peers or PEERS:
            click.echo(f"{PEERS[key].name} on {name}", err=True)
            lines.append(run_peer(key, name, work, env))
        lines.append(run_escc(name, work / "escc", env, repeat))
    click.echo("\n".join(table(lines)))
    if json_file is not None:
        content = {
            "machine": machine(),
            "command": "python -m benchmarks.peers " + shlex.join(sys.argv[1:]),
            "lines": [line.to_dict() for line in lines],
        }
        atomic_write(json_file, (json.dumps(content, indent=1) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; failures a user can act on are one line."""
    return run_command(command, "benchmarks.peers", arguments)


if __name__ == "__main__":
    sys.exit(main())
