"""Plain torch.export archives read without torch's own reader, which takes seconds to load.

The checked description of an archive (:mod:`escc.frontend.exported_schema`) becomes a torch.fx graph with
just what the importer asks for. What is not plain (several results, sizes that are computed, types and
layouts as arguments, operators without a rule), and every error, is left to torch: this reader then has
nothing to say.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from escc.errors import EsccError
from escc.frontend.exported_archive import read_archive, register_operators
from escc.frontend.exported_schema import RefusedArchive
from escc.frontend.sniff import FileKind, identify

if TYPE_CHECKING:
    import torch
    from torch.fx import Graph, Node

    from escc.ir.module import Module

Json = Any

POSITIONAL, KEYWORD = 1, 2
DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32",
          8: "float64", 12: "bool", 13: "bfloat16"}  # fmt: skip
"""Names of the scalar types by torch's serialisation numbers."""


class _NotPlain(Exception):
    """Something that this reader does not follow."""


@dataclass(frozen=True)
class FreeSize:
    """A size that is open until the network runs; like torch's, it has its expression at ``node.expr``."""

    expr: str

    @property
    def node(self) -> FreeSize:
        """What carries the expression: itself."""
        return self


@dataclass(frozen=True)
class DescribedTensor:
    """Shape and type of a value of the graph, where torch has a tensor without memory."""

    shape: tuple[int | FreeSize, ...]
    dtype: torch.dtype

    def is_floating_point(self) -> bool:
        """Whether the elements are floating-point numbers."""
        return self.dtype.is_floating_point

    def numel(self) -> int:
        """Elements, of a tensor of fixed shape."""
        return math.prod(size for size in self.shape if isinstance(size, int))


@dataclass
class PlainProgram:
    """What the importer asks an exported program for."""

    graph: Graph
    graph_signature: Any
    state_dict: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor]


def import_plain(path: str | os.PathLike[str], input_shape: Sequence[int] | None = None) -> Module | None:
    """The module of an archive, as :func:`escc.driver.import_model` gives it; None where torch is needed to
    read the file or to say what is wrong with it.

    Args:
        path: any file.
        input_shape: (C, H, W) the network has to take, when it is known.
    """
    from escc.frontend.capture import check_shape
    from escc.frontend.importer import import_exported, is_importable

    target = Path(os.fspath(path))
    try:
        if not target.is_file() or identify(target) is not FileKind.EXPORTED:
            return None
        program = cast("Any", read_plain(target))
        if program is None or not is_importable(program):
            return None
        if input_shape is not None:
            check_shape(program, input_shape)
        return import_exported(program)
    except EsccError:
        return None


def read_plain(path: Path) -> PlainProgram | None:
    """The graph and numbers of an archive, None when it is not plain.

    Raises:
        EsccError: a damaged archive.
    """
    payloads: dict[str, bytes] = {}
    try:
        archive = read_archive(path, payloads.__setitem__)
        numbers = {
            folder: {name: _tensor(entry, payloads, folder) for name, entry in entries.items()}
            for folder, entries in archive.tensors.items()
        }
        return _Reader(archive.program).read(numbers["weights"], numbers["constants"])
    except (_NotPlain, RefusedArchive, LookupError, AttributeError, TypeError, ValueError, RuntimeError):
        # whatever is wrong with it, torch's reader finds the words
        return None


def _tensor(entry: dict[str, Json], payloads: dict[str, bytes], folder: str) -> torch.Tensor:
    import torch

    meta = entry["tensor_meta"]
    sizes, strides = ([size["as_int"] for size in meta[key]] for key in ("sizes", "strides"))
    data, dtype = payloads[f"data/{folder}/{entry['path_name']}"], _dtype(meta)
    if 0 in sizes:
        return torch.empty(sizes, dtype=dtype)
    with warnings.catch_warnings():
        # nobody writes to it: the tensor store holds read-only arrays
        warnings.simplefilter("ignore")
        flat = torch.frombuffer(data, dtype=dtype, count=len(data) // dtype.itemsize)
    return flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"])


def _dtype(meta: dict[str, Json]) -> torch.dtype:
    import torch

    return getattr(torch, DTYPES[meta["dtype"]])


@dataclass
class _Reader:
    """One pass over a checked description; ``nodes``: those of the graph by name."""

    program: dict[str, Json]
    nodes: dict[str, Node] = field(default_factory=lambda: {})

    def read(self, weights: dict[str, torch.Tensor], constants: dict[str, torch.Tensor]) -> PlainProgram:
        """The whole program."""
        from torch.fx import Graph

        register_operators()
        content, signature = (self.program["graph_module"][key] for key in ("graph", "signature"))
        graph = Graph()
        for item in content["inputs"]:
            name = item["as_tensor"]["name"]
            self._enter(graph.placeholder(name), name, content)
        for item in content["nodes"]:
            self._call(graph, item, content)
        graph.output(tuple(self.nodes[item["as_tensor"]["name"]] for item in content["outputs"]))
        return PlainProgram(graph, _signature(signature), weights, constants)

    def _enter(self, node: Node, name: str, content: dict[str, Json]) -> None:
        # fx gives another name where this one means something in Python
        node.name = name
        if name in self.nodes:
            raise _NotPlain
        tensor = content["tensor_values"].get(name)
        node.meta["val"] = _size(content["sym_int_values"][name]) if tensor is None else _described(tensor)
        self.nodes[name] = node

    def _call(self, graph: Graph, item: dict[str, Json], content: dict[str, Json]) -> None:
        target = _operator(item["target"])
        schema: list[str] = [argument.name for argument in target._schema.arguments]
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for given in item["inputs"]:
            value = self._argument(given["arg"])
            if given["kind"] == POSITIONAL and schema[len(args)] == given["name"] and not kwargs:
                args.append(value)
            elif given["kind"] == KEYWORD and given["name"] in schema:
                kwargs[given["name"]] = value
            else:
                raise _NotPlain
        if len(item["outputs"]) != 1:
            raise _NotPlain
        ((kind, value),) = item["outputs"][0].items()
        if kind not in ("as_tensor", "as_sym_int"):
            raise _NotPlain
        name = value["name" if kind == "as_tensor" else "as_name"]
        node = graph.create_node("call_function", target, tuple(args), kwargs, name)
        self._enter(node, name, content)
        metadata = item["metadata"]
        if "stack_trace" in metadata:
            node.meta["stack_trace"] = metadata["stack_trace"]
        if "nn_module_stack" in metadata:
            levels = [level.split(",") for level in metadata["nn_module_stack"].split(";")]
            node.meta["nn_module_stack"] = {key: (path, kind) for key, path, kind in levels}

    def _argument(self, argument: dict[str, Json]) -> Any:
        ((kind, content),) = argument.items()
        match kind:
            case "as_none":
                return None
            case "as_tensor":
                return self.nodes[content["name"]]
            case "as_tensors":
                return [self.nodes[item["name"]] for item in content]
            case "as_int" | "as_ints" | "as_string" | "as_bool" | "as_bools":
                return content
            case "as_float":
                return float(content)
            case "as_floats":
                return [float(item) for item in content]
            case "as_sym_int":
                return self._size(content)
            case "as_sym_ints":
                return [self._size(item) for item in content]
            case _:
                raise _NotPlain

    def _size(self, size: dict[str, Json]) -> int | Node:
        return size["as_int"] if "as_int" in size else self.nodes[size["as_name"]]


def _size(size: dict[str, Json]) -> int | FreeSize:
    return size["as_int"] if "as_int" in size else FreeSize(size["as_expr"]["expr_str"])


def _operator(target: str) -> Any:
    import torch

    space, name, overload = target.removeprefix("torch.ops.").split(".") if "ops" in target else ("",) * 3
    if not space:
        raise _NotPlain
    return getattr(getattr(getattr(torch.ops, space), name), overload)


def _described(meta: dict[str, Json]) -> DescribedTensor:
    return DescribedTensor(tuple(_size(size) for size in meta["sizes"]), _dtype(meta))


def _signature(signature: dict[str, Json]) -> SimpleNamespace:
    kinds = {
        "parameter": ("parameter_name", "inputs_to_parameters"),
        "buffer": ("buffer_name", "inputs_to_buffers"),
        "tensor_constant": ("tensor_constant_name", "inputs_to_lifted_tensor_constants"),
    }
    found: dict[str, Any] = {field: {} for _, field in kinds.values()}
    users: list[str] = []
    for spec in signature["input_specs"]:
        ((kind, content),) = spec.items()
        if kind == "user_input":
            users.append(content["arg"]["as_tensor"]["name"])
        else:
            key, field = kinds[kind]
            found[field][content["arg"]["name"]] = content[key]
    if any("user_output" not in spec for spec in signature["output_specs"]):
        raise _NotPlain
    output = SimpleNamespace(kind=SimpleNamespace(name="USER_OUTPUT"))
    return SimpleNamespace(
        **found,
        user_inputs=users,
        buffers_to_mutate={},
        output_specs=[output] * len(signature["output_specs"]),
    )
