"""A module: one network as IR text plus the tensor store with its numbers."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from escc.errors import EsccError
from escc.files import atomic_write
from escc.ir.base import LayerOp, describe, from_attribute, to_attribute
from escc.ir.escalate import ESCALATE
from escc.ir.nn import NN
from escc.ir.store import TensorStore
from escc.ir.xdsl import (
    ArrayAttr,
    Attribute,
    Block,
    BlockArgument,
    Builtin,
    Context,
    DictionaryAttr,
    Func,
    FuncOp,
    FunctionType,
    ModuleOp,
    Operation,
    ParseError,
    Parser,
    Printer,
    Region,
    ReturnOp,
    SSAValue,
    StringAttr,
    TypeAttribute,
    VerifyException,
)

FACTS = "escc.facts"


@dataclass(frozen=True)
class Port:
    """An input or output of the network: its name and torch shape without the batch dimension."""

    name: str
    torch_shape: tuple[int, ...]


def make_context() -> Context:
    """An xDSL context with the dialects of escc."""
    context = Context()
    for dialect in (Builtin, Func, NN, ESCALATE):
        context.load_dialect(dialect)
    return context


class Module:
    """One network: a ``func.func @main`` over maps, the store with its arrays, the facts established."""

    def __init__(self, op: ModuleOp, store: TensorStore) -> None:
        self.op = op
        self.store = store

    # -- building -------------------------------------------------------------------------------------------
    @staticmethod
    def create(inputs: Sequence[tuple[Port, TypeAttribute]], store: TensorStore | None = None) -> Module:
        """A module whose ``@main`` takes the given inputs and has an empty body.

        Append operations to ``module.body`` and finish with :meth:`set_outputs`.
        """
        kinds = [kind for _, kind in inputs]
        arguments = ArrayAttr([_port_attributes(port) for port, _ in inputs])
        function = FuncOp(
            "main", FunctionType.from_lists(kinds, []), Region(Block(arg_types=kinds)), arg_attrs=arguments
        )
        return Module(ModuleOp([function]), store if store is not None else TensorStore())

    def set_outputs(self, outputs: Sequence[tuple[Port, SSAValue]]) -> None:
        """Return the given values from ``@main``."""
        self.body.add_op(ReturnOp(*[value for _, value in outputs]))
        self.function.res_attrs = ArrayAttr([_port_attributes(port) for port, _ in outputs])
        self.refresh_signature()

    def refresh_signature(self) -> None:
        """Make the function type follow the argument and result types (after a pass changed them)."""
        block = self.body
        kinds = [argument.type for argument in block.args]
        results = [value.type for value in self.outputs]
        self.function.function_type = FunctionType.from_lists(kinds, results)

    # -- reading --------------------------------------------------------------------------------------------
    @property
    def function(self) -> FuncOp:
        """The function ``@main``."""
        for op in self.op.ops:
            if isinstance(op, FuncOp) and op.sym_name.data == "main":
                return op
        raise EsccError("the module has no func.func @main")

    @property
    def body(self) -> Block:
        """The block of ``@main``."""
        return self.function.body.block

    @property
    def inputs(self) -> list[BlockArgument]:
        """The input values."""
        return list(self.body.args)

    @property
    def outputs(self) -> list[SSAValue]:
        """The returned values."""
        last = self.body.last_op
        if not isinstance(last, ReturnOp):
            raise EsccError("@main does not end with func.return")
        return list(last.operands)

    @property
    def input_ports(self) -> list[Port]:
        """Name and torch shape of each input."""
        return _ports(self.function.arg_attrs, len(self.inputs), "input")

    @property
    def output_ports(self) -> list[Port]:
        """Name and torch shape of each output."""
        return _ports(self.function.res_attrs, len(self.outputs), "output")

    @property
    def layers(self) -> Iterator[LayerOp]:
        """The operations of the network in order (a snapshot: safe to rewrite while iterating)."""
        for op in list(self.body.ops):
            if isinstance(op, LayerOp):
                yield op

    def input_value(self, index: int, name: str, default: Any = None) -> Any:
        """An attribute ``escc.<name>`` of an input, as a Python value."""
        return _port_value(self.function.arg_attrs, index, name, default)

    def set_input_value(self, index: int, name: str, value: Any) -> None:
        """Set an attribute ``escc.<name>`` of an input."""
        entries = [dict(entry.data) for entry in cast("ArrayAttr[DictionaryAttr]", self.function.arg_attrs)]
        entries[index][f"escc.{name}"] = to_attribute(value)
        self.function.arg_attrs = ArrayAttr([DictionaryAttr(entry) for entry in entries])

    # -- facts ----------------------------------------------------------------------------------------------
    @property
    def facts(self) -> frozenset[str]:
        """What passes have established; part of the text."""
        found = self.op.attributes.get(FACTS)
        if not isinstance(found, ArrayAttr):
            return frozenset()
        return frozenset(item.data for item in cast("ArrayAttr[StringAttr]", found))

    def set_facts(self, facts: frozenset[str] | set[str]) -> None:
        """Replace the set of facts."""
        self.op.attributes[FACTS] = ArrayAttr([StringAttr(fact) for fact in sorted(facts)])

    # -- text -----------------------------------------------------------------------------------------------
    def to_text(self, *, locations: bool = True, generic: bool = False) -> str:
        """MLIR text of the module, weights by name only."""
        stream = io.StringIO()
        printer = Printer(stream=stream, print_debuginfo=locations, print_generic_format=generic)
        printer.print_op(self.op)
        return stream.getvalue() + "\n"

    @staticmethod
    def from_text(text: str, store: TensorStore | None = None, name: str = "<text>") -> Module:
        """Parse and verify a module.

        Raises:
            EsccError: syntax or verification error, with line and column.
        """
        try:
            op = Parser(make_context(), text, name).parse_module()
        except ParseError as error:
            line, column = _line_and_column(text, error.span.start)
            raise EsccError(error.msg, where=f"{name}:{line}:{column}") from None
        except VerifyException as error:
            raise EsccError(str(error), where=name) from None
        module = Module(op, store if store is not None else TensorStore())
        module.verify()
        return module

    def save(self, path: str | os.PathLike[str], *, locations: bool = True) -> None:
        """Write ``path`` (text) and ``path.safetensors`` (the store)."""
        self.store.save(f"{os.fspath(path)}.safetensors")
        atomic_write(path, self.to_text(locations=locations).encode())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Module:
        """Read what :meth:`save` wrote (the store may be absent)."""
        target = Path(path)
        try:
            text = target.read_text(encoding="utf-8")
        except OSError as error:
            raise EsccError(f"cannot read: {error.strerror}", where=str(path)) from None
        except UnicodeDecodeError:
            raise EsccError("not an IR text file", where=str(path)) from None
        side = Path(f"{target}.safetensors")
        store = TensorStore.load(side) if side.exists() else None
        return Module.from_text(text, store, str(path))

    # -- checks ---------------------------------------------------------------------------------------------
    def verify(self) -> None:
        """Check every operation; the first failure becomes one line naming operation, module path and source.

        Raises:
            EsccError: an operation is malformed.
        """
        for op in self.body.ops:
            _verify_op(op)
        try:
            self.op.verify()
        except VerifyException as error:
            raise EsccError(str(error).splitlines()[0], where="module") from None

    def clone(self) -> Module:
        """A copy that shares the (read-only) arrays."""
        return Module(self.op.clone(), self.store.copy())

    def snapshot(self) -> object:
        """What :meth:`to_text` shows, as a value to compare: equal while the text is, and far cheaper."""
        numbers: dict[SSAValue, int] = {value: number for number, value in enumerate(self.inputs)}
        operations: list[object] = []
        for op in self.body.ops:
            operands = [numbers[value] for value in op.operands]
            types = [value.type for value in op.results]
            operations.append(
                (op.name, operands, types, dict(op.properties), dict(op.attributes), op.location)
            )
            for value in op.results:
                numbers[value] = len(numbers)
        function = self.function
        return operations, dict(function.properties), dict(function.attributes), dict(self.op.attributes)

    def drop_unused_arrays(self) -> None:
        """Forget arrays no operation refers to."""
        self.store.keep(name for op in self.layers for name in op.symbols().values())


def _verify_op(op: Operation) -> None:
    try:
        op.verify()
    except VerifyException as error:
        raise EsccError(str(error).strip().splitlines()[-1], where=describe(op)) from None


def _port_attributes(port: Port) -> DictionaryAttr:
    return DictionaryAttr(
        {"escc.name": StringAttr(port.name), "escc.shape": to_attribute(tuple(port.torch_shape))}
    )


def _port_value(entries: Attribute | None, index: int, name: str, default: Any) -> Any:
    if not isinstance(entries, ArrayAttr):
        return default
    items = list(cast("ArrayAttr[DictionaryAttr]", entries))
    attribute = items[index].data.get(f"escc.{name}") if index < len(items) else None
    return default if attribute is None else from_attribute(attribute)


def _ports(entries: Attribute | None, count: int, kind: str) -> list[Port]:
    return [
        Port(
            _port_value(entries, index, "name", f"{kind}{index}"),
            tuple(_port_value(entries, index, "shape", ())),
        )
        for index in range(count)
    ]


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1
