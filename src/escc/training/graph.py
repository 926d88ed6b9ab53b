"""A captured network as a graph that learns, under the names its parameters had, and back to an export.

:func:`trainable` undoes what capturing for inference did: convolutions, linear layers and batch norms are
modules again, at their original paths, and batch norms use and update statistics in training mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn

from escc.errors import EsccError
from escc.frontend.capture import capture
from escc.training.decomposition import decompose
from escc.training.exporting import export, frozen
from escc.training.modules import Conv2d, Linear
from escc.training.quantize import quantize_activations, quantize_weights
from escc.training.structure import apply_structure, structure

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def trainable(model: nn.Module | ExportedProgram, **capturing: Any) -> fx.GraphModule:
    """The network as a torch graph of modules that learn.

    Parameters are float32 copies, under the names of the original's state dictionary. In evaluation mode (as
    returned) the outputs are those of the original. In training mode batch norms normalise by the batch and
    update their statistics, and dropout is active again. Everything between the layers stays as captured.

    Args:
        model: a module, or an exported program (exported in evaluation mode).
        **capturing: ``example`` or ``input_shape`` for a module, see :func:`escc.frontend.capture.capture`.

    Returns:
        A graph that takes what the original takes and returns its output (a tuple when there are several).

    Raises:
        EsccError: the model cannot be captured, or changes its buffers in evaluation mode.
    """
    exported = capture(model, **capturing)
    signature = exported.graph_signature
    if signature.buffers_to_mutate:
        raise EsccError(
            f"the model changes its buffers ({', '.join(sorted(signature.buffers_to_mutate.values())[:3])})",
            hint="call model.eval() before exporting",
        )
    return _Builder(exported).build().eval()


class _Builder:
    """One walk over an exported graph.

    ``values`` maps nodes of the old graph to nodes of the new one, ``constants`` placeholders of numbers to
    (name in the state dictionary, tensor).
    """

    def __init__(self, exported: ExportedProgram) -> None:
        self.exported = exported
        signature = exported.graph_signature
        self.numbers = cast("dict[str, Tensor]", {**exported.constants, **exported.state_dict})
        self.parameters = frozenset(signature.parameters)
        self.persistent = frozenset(exported.state_dict)
        targets: dict[str, str] = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.constants: dict[fx.Node, str] = {}
        self.values: dict[fx.Node, Any] = {}
        self.layers: dict[str, nn.Module] = {}
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.batch: tuple[int, fx.Node] | None = None
        for node in exported.graph.find_nodes(op="placeholder"):
            if node.name in targets:
                self.constants[node] = targets[node.name]
            else:
                self._input(node)

    def _input(self, node: fx.Node) -> None:
        made = self.graph.create_node("placeholder", str(node.target), name=node.name)
        self.values[node] = made
        sizes: list[Any] = list(getattr(node.meta.get("val"), "shape", ()))
        if self.batch is None and sizes and isinstance(sizes[0], int):
            self.batch = (sizes[0], made)

    def build(self) -> fx.GraphModule:
        """The whole graph."""
        for node in self.exported.graph.nodes:
            if node.op == "call_function" and not _is_check(node):
                self.values[node] = self._call(node)
        (output,) = self.exported.graph.find_nodes(op="output")
        specs = self.exported.graph_signature.output_specs
        results = [
            self._value(result)
            for result, spec in zip(cast("Sequence[Any]", output.args[0]), specs, strict=True)
            if spec.kind.name == "USER_OUTPUT"
        ]
        self.graph.output(results[0] if len(results) == 1 else tuple(results))
        model = fx.GraphModule(self.root, self.graph)
        for node in self.graph.find_nodes(op="get_attr"):
            # fx copies what the graph reads, and forgets which buffers are not for the state dictionary
            name = str(node.target)
            path, _, leaf = name.rpartition(".")
            owner = model.get_submodule(path)
            if name not in self.parameters and name not in self.persistent:
                delattr(owner, leaf)
                owner.register_buffer(leaf, self._tensor(name), persistent=False)
        known = model.state_dict()
        for name in self.persistent - known.keys():
            self._register(model, name)
        return model

    # -- calls ----------------------------------------------------------------------------------------------
    def _call(self, node: fx.Node) -> Any:
        target: Any = node.target
        kind = str(target)
        if kind in _LAYERS:
            arguments = _arguments(node)
            layer = _LAYERS[kind](self, node, arguments)
            if layer is not None:
                name, read = layer
                return self._emit(node, "call_module", name, (self._value(read),), {})
        if getattr(target, "__name__", "") == "getitem":
            whole = self.values[cast("fx.Node", node.args[0])]
            if whole.op == "call_module":
                return whole  # a batch norm that gave its statistics, too
        args: Any = fx.map_arg(node.args, self._value)
        kwargs: Any = fx.map_arg(node.kwargs, self._value)
        if kind in _VIEWS and self.batch is not None:
            args = (args[0], self._free_batch(args[1]), *args[2:])
        return self._emit(node, "call_function", _without_overwriting(target), args, kwargs)

    def _emit(self, node: fx.Node, kind: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
        made = self.graph.create_node(kind, target, args, kwargs, name=node.name)
        for key in ("nn_module_stack", "stack_trace"):
            if key in node.meta:
                made.meta[key] = node.meta[key]
        return made

    def _free_batch(self, sizes: Any) -> list[Any]:
        """Sizes of a view with the batch size of the example replaced by that of the input."""
        assert self.batch is not None
        count, source = self.batch
        wanted: list[Any] = list(sizes)
        if wanted and wanted[0] == count:
            wanted[0] = self.graph.call_function(cast("Any", torch.ops.aten.sym_size.int), (source, 0))
        return wanted

    def _value(self, value: Any) -> Any:
        """What stands for an argument; numbers that belong to no layer are read from their name."""
        if not isinstance(value, fx.Node):
            return value
        if value in self.constants and value not in self.values:
            name = self.constants[value]
            self._register(self.root, name)
            self.values[value] = self.graph.create_node("get_attr", name, name=value.name)
        return self.values[value]

    def _tensor(self, name: str) -> Tensor:
        tensor = self.numbers[name].detach().clone(memory_format=torch.contiguous_format)
        return tensor.to(torch.float32) if tensor.is_floating_point() else tensor

    def _register(self, root: nn.Module, name: str) -> None:
        path, _, leaf = name.rpartition(".")
        owner = root
        for part in path.split(".") if path else ():
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = cast("nn.Module", getattr(owner, part))
        tensor = self._tensor(name)
        if name in self.parameters:
            owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
        else:
            owner.register_buffer(leaf, tensor, persistent=name in self.persistent)

    # -- layers ---------------------------------------------------------------------------------------------
    def place(self, owned: dict[str, Any], layer: nn.Module) -> str | None:
        """Put a layer where its numbers come from: ``owned`` maps its own names to nodes (or None).

        Returns:
            The module path; None when the numbers do not belong to one module, or to another kind of layer.
        """
        names = {leaf: self.constants.get(node) for leaf, node in owned.items() if node is not None}
        paths = {(name or "").rpartition(".")[0] for name in names.values()}
        path = next(iter(paths), "")
        if len(paths) != 1 or not path or any(name != f"{path}.{leaf}" for leaf, name in names.items()):
            return None
        found = self.layers.get(path)
        if found is not None:
            return path if repr(found) == repr(layer) else None
        for leaf, name in names.items():
            tensor = self._tensor(cast("str", name))
            is_parameter = isinstance(getattr(layer, leaf), nn.Parameter)
            setattr(layer, leaf, nn.Parameter(tensor) if is_parameter else tensor)
        counter = f"{path}.num_batches_tracked"
        if counter in self.numbers and isinstance(getattr(layer, "num_batches_tracked", None), Tensor):
            cast("Any", layer).num_batches_tracked = self._tensor(counter)
        owner = self.root
        *parents, leaf = path.split(".")
        for part in parents:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = cast("nn.Module", getattr(owner, part))
        if hasattr(owner, leaf):
            return None
        owner.add_module(leaf, layer)
        self.layers[path] = layer
        return path

    def shape(self, node: Any) -> tuple[int, ...]:
        """The shape of a stored number."""
        return tuple(self.numbers[self.constants[node]].shape)


def _conv(builder: _Builder, node: fx.Node, given: dict[str, Any]) -> tuple[str, Any] | None:
    if given.get("transposed") or given["weight"] not in builder.constants:
        return None
    shape = builder.shape(given["weight"])
    if len(shape) != 4:
        return None
    groups = int(given["groups"])
    dilation = _pair(given["dilation"])
    padding = given["padding"]
    if isinstance(padding, str):
        reach = [dilation[axis] * (shape[2 + axis] - 1) for axis in (0, 1)]
        if padding == "same" and any(size % 2 for size in reach):
            return None
        padding = (reach[0] // 2, reach[1] // 2) if padding == "same" else (0, 0)
    with torch.device("meta"):
        layer = Conv2d(
            shape[1] * groups,
            shape[0],
            (shape[2], shape[3]),
            _pair(given["stride"]),
            _pair(padding),
            dilation,
            groups,
            given["bias"] is not None,
        )
    return _placed(builder, {"weight": given["weight"], "bias": given["bias"]}, layer, given["input"])


def _linear(builder: _Builder, node: fx.Node, given: dict[str, Any]) -> tuple[str, Any] | None:
    if given["weight"] not in builder.constants:
        return None
    outputs, inputs = builder.shape(given["weight"])
    with torch.device("meta"):
        layer = Linear(inputs, outputs, given["bias"] is not None)
    return _placed(builder, {"weight": given["weight"], "bias": given["bias"]}, layer, given["input"])


def _batch_norm(builder: _Builder, node: fx.Node, given: dict[str, Any]) -> tuple[str, Any] | None:
    owned = {name: given[name] for name in ("weight", "bias", "running_mean", "running_var")}
    if given.get("training") or owned["running_mean"] is None or owned["running_var"] is None:
        return None
    if (owned["weight"] is None) != (owned["bias"] is None):
        return None
    value: Any = cast("fx.Node", given["input"]).meta.get("val")
    kind = nn.BatchNorm2d if value is None or value.dim() == 4 else nn.BatchNorm1d
    momentum = float(given["momentum"])
    with torch.device("meta"):
        layer = kind(
            builder.shape(owned["running_mean"])[0],
            eps=float(given["eps"]),
            # torch writes an average over all batches down as 0
            momentum=momentum if momentum else None,
            affine=owned["weight"] is not None,
        )
    layer.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return _placed(builder, owned, layer, given["input"])


def _dropout(builder: _Builder, node: fx.Node, given: dict[str, Any]) -> tuple[str, Any] | None:
    kind = nn.Dropout2d if "feature" in str(node.target) else nn.Dropout
    builder.root.add_module(node.name, kind(float(given["p"])))
    return node.name, given["input"]


def _placed(builder: _Builder, owned: dict[str, Any], layer: nn.Module, read: Any) -> tuple[str, Any] | None:
    path = builder.place(owned, layer)
    return None if path is None else (path, read)


def _pair(value: Any) -> tuple[int, int]:
    items: list[int] = [value] if isinstance(value, int) else list(value)
    return items[0], items[-1]


_NATIVE_NORM = "aten._native_batch_norm_legit_no_training.default"
_LAYERS = {
    "aten.conv2d.default": _conv,
    "aten.conv2d.padding": _conv,
    "aten.convolution.default": _conv,
    "aten.linear.default": _linear,
    "aten.batch_norm.default": _batch_norm,
    _NATIVE_NORM: _batch_norm,
    "aten.dropout.default": _dropout,
    "aten.feature_dropout.default": _dropout,
}
"""Operators that become modules: gives (module path, what it reads), None where it stays an operator."""

_VIEWS = frozenset({"aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"})


def _is_check(node: fx.Node) -> bool:
    """Assertions about sizes: they hold for the example only, or always."""
    name = str(node.target)
    return "_assert" in name or "sym_constrain" in name


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by schema name, defaults included."""
    schema: Any = getattr(node.target, "_schema")  # noqa: B009  the only way torch offers
    result: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            result[argument.name] = node.args[position]
        else:
            result[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return result


def _without_overwriting(target: Any) -> Any:
    """The plain form of an operator that overwrites its argument: gradients need what it would overwrite."""
    schema = getattr(target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return target
    namespace, _, name = str(schema.name).partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    return getattr(packet, schema.overload_name or "default", target)


__all__ = [
    "apply_structure",
    "decompose",
    "export",
    "frozen",
    "quantize_activations",
    "quantize_weights",
    "structure",
    "trainable",
]
