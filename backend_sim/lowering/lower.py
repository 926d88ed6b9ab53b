"""From a scheduled module to a program."""

from __future__ import annotations

from typing import Any

from escc.backend_sim.lowering.actions import Action, check_inside
from escc.backend_sim.lowering.allocator import align
from escc.backend_sim.lowering.assignment import (
    Assignment,
    Home,
    check_memory,
    read_assignment,
    read_homes,
)
from escc.backend_sim.lowering.codegen import generate
from escc.backend_sim.lowering.data import DataSection, LayerData, stream_bytes
from escc.backend_sim.lowering.emit import Emitter
from escc.backend_sim.lowering.operators import extract_layers
from escc.backend_sim.lowering.plan_memory import PlanMemory
from escc.backend_sim.lowering.prediction import predicted_cycles
from escc.backend_sim.lowering.prefetch import hoist_loads
from escc.backend_sim.lowering.schedule import Schedule
from escc.backend_sim.lowering.sync import synchronise
from escc.backend_sim.lowering.values import shape_of
from escc.errors import EsccError
from escc.ir.module import Module, Port
from escc.ir.passes import PassContext, run_pipeline
from escc.ir.types import MapType
from escc.ir.xdsl import SSAValue
from escc.isa.arch import Arch
from escc.isa.maps import MapDescriptor
from escc.isa.program import Program


def lower(module: Module, arch: Arch, *, rolled: bool = True, prefetch: bool = True) -> Program:
    """The program of a module that plan-memory and schedule have run on.

    Args:
        module: a module with the fact "scheduled".
        arch: the machine it was scheduled for.
        rolled: False writes every instruction out instead of using hardware loops.
        prefetch: False leaves every load right before its use.

    Raises:
        EsccError: the module is not scheduled, or not for this machine.
    """
    layers = extract_layers(module, arch)
    assignments = [read_assignment(layer) for layer in layers]
    section = DataSection()
    data = [LayerData.build(assignment, section) for assignment in assignments]
    map_base = align(section.size)
    homes = read_homes(module, layers, map_base)
    check_memory(assignments, homes, arch.sram_bytes)
    sequence: list[Action] = []
    for index, assignment in enumerate(assignments):
        sequence += Emitter(index, assignment, data[index], homes, arch).run()
    check_inside(sequence, arch.sram_bytes, [layer.name for layer in layers])
    if prefetch:
        sequence = hoist_loads(sequence)
    code, origins = generate(synchronise(sequence), rolled=rolled)
    predictions = [round(cycles) for cycles in predicted_cycles(assignments, homes, arch)]
    ends = [home.address + home.size for home in homes.values() if not home.sram]
    return Program(
        arch=arch,
        code=code,
        data=section.array(),
        inputs=_descriptors(module.inputs, module.input_ports, homes),
        outputs=_descriptors(module.outputs, module.output_ports, homes),
        dram_bytes=align(max([map_base, *ends])),
        debug={
            "layers": [
                _layer_record(assignment, data[i]) | {"predicted_cycles": predictions[i]}
                for i, assignment in enumerate(assignments)
            ],
            "instructions": origins,
        },
    )


def compile_module(module: Module, arch: Arch) -> Program:
    """Plan, schedule and lower a module of the level "reordered"; the module itself stays as it is.

    Raises:
        EsccError: the network does not fit the machine.
    """
    scheduled = module.clone()
    run_pipeline(scheduled, [PlanMemory(), Schedule()], PassContext(arch=arch))
    return lower(scheduled, arch)


def _descriptors(values: list[Any], ports: list[Port], homes: dict[SSAValue, Home]) -> list[MapDescriptor]:
    found: list[MapDescriptor] = []
    for value, port in zip(values, ports, strict=True):
        kind = value.type
        home = homes.get(value)
        if not isinstance(kind, MapType) or home is None:
            raise EsccError("is not a quantised map", where=port.name)
        if home.sram:
            raise EsccError("an output must live in DRAM", where=port.name, hint="run plan-memory again")
        height, width, channels = shape_of(value)
        found.append(
            MapDescriptor(
                name=port.name,
                address=home.address,
                height=height,
                width=width,
                channels=channels,
                signed=kind.signed,
                scale=kind.scale_value,
                torch_shape=tuple(port.torch_shape),
            )
        )
    return found


def _layer_record(assignment: Assignment, data: LayerData) -> dict[str, Any]:
    """What the debug section says about a layer: where it comes from, its tiles, the size of its weights."""
    layer = assignment.layer
    work = layer.work
    coding = {"form": work.form, "bases": work.bases, "density": work.density} if work is not None else {}
    return {
        "name": layer.name,
        "op": layer.operation,
        **coding,
        "source": layer.source,
        "output": list(layer.shape),
        "weight_bytes": layer.weight_bytes(),
        "dense_bytes": layer.dense_bytes,
        "stream_bytes": stream_bytes(layer),
        "streams": data.entries,
        "tile_rows": assignment.rows,
        "tile_outs": assignment.outs,
        "order": assignment.order,
        "bands": assignment.bands,
    }
