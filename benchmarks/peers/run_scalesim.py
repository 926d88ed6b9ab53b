"""Run SCALE-Sim on layers; started by its own Python, where there is no escc.

``python run_scalesim.py FOLDER``: reads FOLDER/layers.json, writes FOLDER/result.json with the cycles that
the tool reports for each layer.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

CONFIG = """\
[general]
run_name = run
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
[architecture_presets]
ArrayHeight = 32
ArrayWidth = 32
ifmapsramszkB = 64
filtersramszkB = 64
ofmapsramszkB = 64
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = ws
Bandwidth = 10
ReadRequestBuffer = 32
WriteRequestBuffer = 32
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
SparseRep = ellpack_block
OptimizedMapping = false
BlockSize = 4
RandomNumberGeneratorSeed = 40
"""
"""32 x 32 weight-stationary with 64 KiB per operand, bandwidth as needed, no layout conflicts, dense."""


def main(folder: Path) -> None:
    from scalesim.scale_sim import scalesim  # pyright: ignore

    layers = json.loads((folder / "layers.json").read_text())
    (folder / "scale.cfg").write_text(CONFIG)
    topology = ["Layer,IFMAP Height,IFMAP Width,Filter Height,Filter Width,Channels,Num Filter,Strides,"]
    layout = ["Layer," + "x," * 20]
    for index, layer in enumerate(layers):
        # it knows no padding: the map is given with its border
        side = (layer["out_side"] - 1) * layer["stride"] + layer["kernel"]
        sizes = [side, side, layer["kernel"], layer["kernel"], layer["chans"], layer["outs"], layer["stride"]]
        topology.append(f"conv{index}," + "".join(f"{size}," for size in sizes))
        layout.append(f"conv{index}," + "1," * 20)
    (folder / "topology.csv").write_text("\n".join(topology) + "\n")
    (folder / "layout.csv").write_text("\n".join(layout) + "\n")
    # its own switch for this is parsed and ignored; traces would be written otherwise
    run = scalesim(
        save_disk_space=True,
        verbose=False,
        config=str(folder / "scale.cfg"),
        topology=str(folder / "topology.csv"),
        layout=str(folder / "layout.csv"),
    )
    run.run_scale(top_path=str(folder))
    with (folder / "run" / "COMPUTE_REPORT.csv").open(newline="") as stream:
        rows = [{key.strip(): value for key, value in row.items() if key} for row in csv.DictReader(stream)]
    cycles = [int(float(row["Total Cycles"])) for row in rows]
    (folder / "result.json").write_text(json.dumps({"cycles": cycles}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
