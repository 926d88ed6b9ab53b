"""The importer: an exported graph becomes a module of the ``nn`` dialect.

torch's (N, C, H, W) turns into position-major (H, W, C) here, once. Weights keep torch's layout and get their
parameter's name. Every operation carries the torch module path and the source line it came from. What has no
exact counterpart is refused, all of it at once.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from escc.errors import EsccError
from escc.frontend.operators import REASONS, find_rule, in_place_is_safe, is_in_place
from escc.frontend.plain_program import DescribedTensor
from escc.frontend.trained import Rounding, place_pins
from escc.frontend.translation import Call, Constant, Map, Shape, Unsupported, batch_shape
from escc.ir.base import LayerOp, make_location, tensor_type, to_attribute
from escc.ir.module import Module, Port
from escc.ir.nn import AdaptiveAvgPool
from escc.ir.pins import GRAPH_NODE
from escc.ir.store import TensorStore
from escc.ir.xdsl import LocationAttr, TypeAttribute

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

MAX_CONSTANT_ELEMENTS = 1 << 28
USE = "use"
"""Attribute of a rounding: which entry of the list of uses speaks of it."""
FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in (\S+)')
# size arithmetic and checks: nothing that a map flows through
NO_VALUE = re.compile(r"_assert_\w+|sym_constrain_range\w*|sym_size|sym_numel|sym_stride|_set_grad_enabled")


@dataclass(frozen=True)
class OperatorUse:
    """One operator call of a captured graph and what became of it.

    Attributes:
        operator: ATen name, ``aten.conv2d.default``.
        supported: whether it can be compiled.
        becomes: operations of the nn dialect it turned into ("view" for none that computes).
        reason: why not, '' when supported.
        path: torch module path.
        source: ``file:line`` of the model's code, '' when unknown.
    """

    operator: str
    supported: bool
    becomes: str
    reason: str
    path: str
    source: str

    def describe(self) -> str:
        """``aten.softmax.int at head (net.py:12): reason``."""
        place = f" at {self.path}" if self.path else ""
        line = f" ({self.source})" if self.source else ""
        return f"{self.operator}{place}{line}: {self.reason}"


class UnsupportedOperatorsError(EsccError):
    """A model with operators that cannot be compiled; ``uses`` has one entry per call."""

    def __init__(self, uses: Sequence[OperatorUse]) -> None:
        self.uses = list(uses)
        kinds = {use.operator for use in uses}
        super().__init__(
            f"{len(uses)} call(s) of {len(kinds)} operator(s) are not supported: "
            + "; ".join(use.describe() for use in uses),
            hint="escc ops MODEL lists every operator",
        )


def is_importable(exported: ExportedProgram) -> bool:
    """Whether every call has a rule as it stands: then torch's slow rewriting of the graph is left out."""
    for node in exported.graph.nodes:
        if node.op == "call_function" and _gives_tensors(node) and operator_name(node.target) != "getitem":
            in_place = is_in_place(node.target)
            if find_rule(node.target) is None or (in_place and not in_place_is_safe(node)):
                return False
    return not exported.graph_signature.buffers_to_mutate


def import_exported(exported: ExportedProgram) -> Module:
    """Translate a captured program (see :func:`escc.frontend.capture.capture`).

    Raises:
        UnsupportedOperatorsError: listing every operator call that has no exact counterpart.
        EsccError: inputs or outputs of a kind that is not supported.
    """
    return _imported(exported).finish()


def import_with_nodes(exported: ExportedProgram) -> Module:
    """As :func:`import_exported`; operations say which node of the program their result is (``graph_node``).

    Where several nodes are the same map (views, dropout) it is the first one. Passes that fuse and fold keep
    the attribute true, so that values of the compiled network are found again in the program.
    """
    walk = _imported(exported)
    module = walk.finish()
    for node in reversed(list(walk.values)):
        value = walk.values[node]
        if isinstance(value, Map) and isinstance(value.value.owner, LayerOp):
            value.value.owner.set_value(GRAPH_NODE, node.name)
    return module


def _imported(exported: ExportedProgram) -> _Importer:
    walk = _Importer(exported)
    walk.run()
    refused = [use for use in walk.uses if not use.supported]
    if refused:
        raise UnsupportedOperatorsError(refused)
    return walk


def inspect_exported(exported: ExportedProgram) -> list[OperatorUse]:
    """Every operator call of a captured program in order, supported or not.

    Raises:
        EsccError: inputs of a kind that is not supported.
    """
    walk = _Importer(exported)
    walk.run()
    return walk.uses


class _Blocked(Unsupported):
    """An argument comes from a call that was refused: nothing can be said about this one."""


_BLOCKED = object()
"""Stands for the result of a refused call that has no shape to go on with."""


class _Importer:
    """One walk over a graph; ``values``: node -> what stands for it, None for what is not followed."""

    def __init__(self, exported: ExportedProgram) -> None:
        self.exported = exported
        self.store = TensorStore()
        self.values: dict[Node, Any] = {}
        self.uses: list[OperatorUse] = []
        self.batch: Any = None
        constants = _constants(exported)
        signature = exported.graph_signature
        self.mutated = dict(signature.buffers_to_mutate)
        inputs: list[tuple[Node, Port, TypeAttribute]] = []
        for node in exported.graph.find_nodes(op="placeholder"):
            if node.name in constants:
                name, tensor = constants[node.name]
                self.values[node] = Constant(tensor, name)
            elif node.users or node.name in signature.user_inputs:
                inputs.append((node, *self._input(node)))
        if not inputs:
            raise EsccError("the model has no input")
        self.module = Module.create([(port, kind) for _, port, kind in inputs], self.store)
        for (node, port, _), value in zip(inputs, self.module.inputs, strict=True):
            self.values[node] = Map(value, port.torch_shape)

    def _input(self, node: Node) -> tuple[Port, TypeAttribute]:
        value: Any = node.meta.get("val")
        where = f"input '{node.name}'"
        if not _is_tensor(value):
            raise EsccError(f"is a {type(value).__name__}, not a tensor", where=where)
        if not value.is_floating_point():
            raise EsccError(f"has type {value.dtype}; escc takes floating-point images", where=where)
        sizes: list[Any] = list(value.shape)
        if len(sizes) not in (2, 4):
            raise EsccError(f"has {len(sizes)} dimensions; escc takes (N, C, H, W) or (N, F)", where=where)
        if not _all_fixed(sizes[1:]):
            raise EsccError(
                "only the batch size may be free, other dimensions must be fixed",
                where=where,
                hint="export again with dynamic_shapes for dimension 0 only, or with escc.save",
            )
        if self.batch is None:
            self.batch = sizes[0]
        elif not same_size(self.batch, sizes[0]):
            raise EsccError("has another batch size than the first input", where=where)
        shape = tuple(int(size) for size in sizes[1:])
        channels, height, width = shape if len(shape) == 3 else (shape[0], 1, 1)
        return Port(str(node.target), shape), tensor_type(height, width, channels)

    # -- the walk -------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Translate every call; refusals are collected."""
        for node in self.exported.graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op not in ("placeholder", "output"):
                self._refuse(node, f"graph node of kind {node.op}")
        # stand-ins read what the model does not: then nothing can be said about who reads a map
        if all(use.supported for use in self.uses):
            self._place_pins()

    def _place_pins(self) -> None:
        returned = [value.value for _, value in self._returned() if isinstance(value, Map)]
        became = place_pins(self.module, returned, self._refuse_rounding)
        for node, value in self.values.items():
            if isinstance(value, Map) and value.value in became:
                final = value.value
                while final in became:
                    final = became[final]
                self.values[node] = Map(final, value.shape)

    def _refuse_rounding(self, rounding: Rounding, reason: str) -> None:
        index = int(rounding.value(USE))
        self.uses[index] = replace(self.uses[index], supported=False, becomes="", reason=reason)

    def _call(self, node: Node) -> None:
        target: Any = node.target
        name = operator_name(target)
        if name == "getitem":
            whole: Any = self.values.get(cast("Node", node.args[0]))
            self.values[node] = whole[cast("int", node.args[1])] if isinstance(whole, tuple) else None
            return
        if not _gives_tensors(node) or NO_VALUE.fullmatch(name.split(".")[0]):
            return
        if self._fold_constant(node):
            return
        rule = find_rule(target)
        location, path, source = node_location(node)
        call: Call | None = None
        try:
            if rule is None:
                raise Unsupported(REASONS.get(name.split(".")[0], "no rule for this operator"))
            if is_in_place(target) and not in_place_is_safe(node):
                raise Unsupported("overwrites a tensor that is used elsewhere; capture() resolves that")
            call = Call(
                node, self._arguments(node), self._shape(node), location, self.module.body, self.store
            )
            self.values[node] = rule.translate(call)
        except _Blocked:
            becomes = rule.becomes if rule else ""
            self.uses.append(OperatorUse(_full_name(target), True, becomes, "", path, source))
            self.values[node] = self._stand_in(node)
        except Unsupported as error:
            self._refuse(node, str(error))
        except EsccError as error:
            raise EsccError(error.message, where=path or node.name, hint=error.hint) from None
        else:
            emitted = [op for op in dict.fromkeys(call.emitted)]
            becomes = " + ".join(emitted) or ("view" if rule.becomes.startswith("nn.") else rule.becomes)
            value = self.values[node]
            if isinstance(value, Map) and isinstance(value.value.owner, Rounding) and not call.emitted:
                value.value.owner.attributes.setdefault(USE, to_attribute(len(self.uses)))
            self.uses.append(OperatorUse(_full_name(target), True, becomes, "", path, source))

    def _refuse(self, node: Node, reason: str) -> None:
        """Note a refusal; a stand-in of the right shape lets later calls be looked at, too."""
        _, path, source = node_location(node)
        self.uses.append(OperatorUse(_full_name(node.target), False, "", reason, path, source))
        self.values[node] = self._stand_in(node)

    def _stand_in(self, node: Node) -> Any:
        value: Any = node.meta.get("val")
        if isinstance(value, list | tuple):
            return tuple(self._stand_in_for(item) for item in cast("Sequence[Any]", value))
        return self._stand_in_for(value)

    def _stand_in_for(self, value: Any) -> Any:
        try:
            shape = self._fixed_shape(value)
        except Unsupported:
            return _BLOCKED
        channels, height, width = shape if len(shape) == 3 else (math.prod(shape), 1, 1)
        if min(channels, height, width) < 1:
            return _BLOCKED
        block = self.module.body
        # never part of a finished module: a walk with refusals is thrown away
        stand_in = AdaptiveAvgPool.make(
            [block.args[0]], tensor_type(height, width, channels), size=(height, width)
        )
        block.add_op(stand_in)
        return Map(stand_in.out, shape)

    # -- arguments ------------------------------------------------------------------------------------------
    def _arguments(self, node: Node) -> dict[str, Any]:
        """The call's arguments by schema name, defaults included, nodes replaced by what stands for them."""
        schema: Any = schema_of(node.target)
        result: dict[str, Any] = {}
        for position, argument in enumerate(schema.arguments):
            if position < len(node.args):
                given: Any = node.args[position]
            elif argument.name in node.kwargs:
                given = node.kwargs[argument.name]
            else:
                given = argument.default_value
            result[argument.name] = self._argument(given)
        return result

    def _argument(self, given: Any) -> Any:
        from torch.fx import Node

        if isinstance(given, Node):
            value = self.values.get(given)
            if value is _BLOCKED:
                raise _Blocked
            if value is None and _gives_tensors(given):
                raise Unsupported(f"its input '{given.name}' is of a kind that escc does not follow")
            return given if value is None else value
        if isinstance(given, list | tuple):
            return [self._argument(item) for item in cast("Sequence[Any]", given)]
        return given

    def _shape(self, node: Node) -> Shape:
        value: Any = node.meta.get("val")
        first: Any = cast("Any", value[0]) if isinstance(value, list | tuple) else value
        return self._fixed_shape(first)

    def _fixed_shape(self, value: Any) -> Shape:
        """Torch shape without the batch dimension, when that is all that is free."""
        if not _is_tensor(value):
            raise Unsupported("a result that is not a tensor")
        sizes: list[Any] = list(value.shape)
        if not sizes or not same_size(sizes[0], self.batch):
            raise Unsupported(f"a result of shape {tuple(map(str, sizes))}, which mixes images of a batch")
        if not _all_fixed(sizes[1:]):
            raise Unsupported("a result whose size depends on the batch")
        if not value.is_floating_point():
            raise Unsupported(f"a result of type {value.dtype}")
        return tuple(int(size) for size in sizes[1:])

    # -- constants ------------------------------------------------------------------------------------------
    def _fold_constant(self, node: Node) -> bool:
        """Compute a call whose every input is a constant (masks, scaled weights, ...)."""
        import torch

        target: Any = node.target
        arguments = [*node.all_input_nodes]
        if str(target).split(".", 1)[0] not in ("aten", "prims", "escc"):
            return False
        if not all(isinstance(self.values.get(item), Constant) for item in arguments):
            return False
        meta: Any = node.meta.get("val")
        fixed = _is_tensor(meta) and _all_fixed(list(meta.shape))
        seeded = torch.Tag.nondeterministic_seeded in target.tags
        if not fixed or seeded or is_in_place(target) or meta.numel() > MAX_CONSTANT_ELEMENTS:
            return False

        def real(item: Node) -> Any:
            return cast("Constant", self.values[item]).tensor

        from torch.fx import map_arg

        with torch.no_grad():
            result: Any = target(*map_arg(node.args, real), **map_arg(node.kwargs, real))
        _, path, _ = node_location(node)
        self.values[node] = Constant(result, f"{path}.{node.name}" if path else node.name)
        return True

    # -- the end --------------------------------------------------------------------------------------------
    def _returned(self) -> list[tuple[Any, Any]]:
        """The graph's results and what stands for them."""
        (output,) = self.exported.graph.find_nodes(op="output")
        results = cast("Sequence[Any]", output.args[0])
        specs = self.exported.graph_signature.output_specs
        # a model may also overwrite its input; nobody sees that here
        return [
            (result, self.values.get(result) if hasattr(result, "meta") else None)
            for result, spec in zip(results, specs, strict=True)
            if spec.kind.name == "USER_OUTPUT"
        ]

    def finish(self) -> Module:
        """The module, with its outputs and without what nobody uses."""
        if self.mutated:
            raise EsccError(
                f"the model changes its buffers ({', '.join(sorted(self.mutated.values())[:3])})",
                hint="call model.eval() before exporting",
            )
        outputs: list[tuple[Port, Any]] = []
        for index, (result, value) in enumerate(self._returned()):
            if not isinstance(value, Map):
                kind = "a constant" if isinstance(value, Constant) else "not a tensor computed from the input"
                raise EsccError(f"output {index} is {kind}")
            outputs.append((Port(str(result.name), value.shape), value.value))
        self.module.set_outputs(outputs)
        for op in reversed(list(self.module.layers)):
            if not op.out.uses.get_length():
                op.detach()
                op.erase()
        self.module.drop_unused_arrays()
        self.module.verify()
        return self.module


# -- helpers ------------------------------------------------------------------------------------------------


def _constants(exported: ExportedProgram) -> dict[str, tuple[str, Any]]:
    """Placeholder name -> (parameter, buffer or constant name, tensor)."""
    signature = exported.graph_signature
    targets: dict[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    numbers: dict[str, Any] = {**exported.constants, **exported.state_dict}
    found: dict[str, tuple[str, Any]] = {}
    for placeholder, target in targets.items():
        if target not in numbers:
            raise EsccError(f"the exported program lacks the values of '{target}'")
        found[placeholder] = (target, numbers[target].detach())
    return found


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are the same number or the same symbol, without adding a guard."""
    return bool(_expression(a) == _expression(b))


def _expression(size: Any) -> Any:
    return size if isinstance(size, int) else size.node.expr


def _all_fixed(sizes: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in sizes)


def schema_of(target: Any) -> Any:
    """The operator schema of an ATen operator."""
    return getattr(target, "_schema")  # noqa: B009  the only way torch offers


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor | DescribedTensor)


def _gives_tensors(node: Node) -> bool:
    value: Any = node.meta.get("val")
    items = cast("Sequence[Any]", value) if isinstance(value, list | tuple) else [value]
    return any(_is_tensor(item) for item in items)


def operator_name(target: Any) -> str:
    """``conv2d.default`` for an ATen operator, the plain name of anything else."""
    name = getattr(target, "_name", None)
    return (
        str(target).split(".", 1)[-1] if isinstance(name, str) else str(getattr(target, "__name__", target))
    )


def _full_name(target: Any) -> str:
    return str(target) if hasattr(target, "_name") else operator_name(target)


def node_location(node: Node) -> tuple[LocationAttr, str, str]:
    """IR location, torch module path ('' at the top) and ``file:line`` of a graph node."""
    path = ""
    stack: Any = node.meta.get("nn_module_stack") or {}
    for level in stack.values():
        path = _plain_path(str(level[0]))
    frames = FRAME.findall(str(node.meta.get("stack_trace") or ""))
    own = [frame for frame in frames if "/torch/" not in frame[0].replace(os.sep, "/")]
    if not frames:
        return make_location(path or node.name), path, ""
    file, line, _ = (own or frames)[-1]
    file = _short_file(file)
    return make_location(path or node.name, file, int(line)), path, f"{file}:{line}"


def _plain_path(path: str) -> str:
    """``L['self'].layer1[0]`` as ``layer1.0``."""
    path = re.sub(r"^L\['self'\]\.?", "", path)
    return re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path).lstrip(".")


def _short_file(file: str) -> str:
    """Relative to the working folder when it lies below it."""
    folder = os.getcwd() + os.sep
    return file.removeprefix(folder)


__all__ = ["OperatorUse", "UnsupportedOperatorsError", "batch_shape", "import_exported", "inspect_exported"]
