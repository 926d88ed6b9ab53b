"""Run ZigZag on layers; started by its own Python, where there is no escc.

``python run_zigzag.py FOLDER``: reads FOLDER/layers.json, writes FOLDER/result.json with the latency in
cycles and the energy that the tool finds for each layer, on the TPU-like machine and mapping of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def workload(layer: dict[str, Any]) -> list[dict[str, Any]]:
    """The layer in ZigZag's terms: a network of one 8-bit convolution (YAML, so JSON will do)."""
    stride, out, kernel = layer["stride"], layer["out_side"], layer["kernel"]
    return [
        {
            "id": 0,
            "name": layer["name"],
            "operator_type": "Conv",
            "equation": "O[b][k][oy][ox]+=W[k][c][fy][fx]*I[b][c][iy][ix]",
            "dimension_relations": [f"ix={stride}*ox+1*fx", f"iy={stride}*oy+1*fy"],
            "loop_dims": ["B", "K", "C", "OY", "OX", "FY", "FX"],
            "loop_sizes": [1, layer["outs"], layer["chans"], out, out, kernel, kernel],
            "operand_precision": {"W": 8, "I": 8, "O": 16, "O_final": 8},
            "operand_source": {"I": 0, "W": 0},
        }
    ]


def main(folder: Path) -> None:
    import zigzag  # pyright: ignore
    from zigzag.api import get_hardware_performance_zigzag  # pyright: ignore

    inputs = Path(str(zigzag.__file__)).parent / "inputs"
    cycles: list[int] = []
    energy: list[float] = []
    for index, layer in enumerate(json.loads((folder / "layers.json").read_text())):
        source = folder / f"layer{index}.yaml"
        source.write_text(json.dumps(workload(layer)))
        found = get_hardware_performance_zigzag(
            workload=str(source),
            accelerator=str(inputs / "hardware" / "tpu_like.yaml"),
            mapping=str(inputs / "mapping" / "tpu_like.yaml"),
            opt="latency",
            dump_folder=str(folder / "dump"),
            pickle_filename=str(folder / "cmes.pickle"),
        )
        energy.append(float(found[0]))
        cycles.append(int(found[1]))
    (folder / "result.json").write_text(json.dumps({"cycles": cycles, "energy_pj": energy}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
