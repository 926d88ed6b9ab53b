"""What every escc operation shares: one readable syntax, typed access to properties, locations.

Syntax of every operation of the dialects ``nn`` and ``escalate``::

    %r = nn.conv2d %x, %residual weight @"l.weight" stride [1, 1] groups 1 : (types) -> type loc(...)

operands first, then ``name value`` pairs (symbol, number, list, string, true/false), then an optional
``{...}`` dictionary of discardable attributes. Weights are symbols into the tensor store, never IR constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

from escc.errors import EsccError
from escc.ir.xdsl import (
    Attribute,
    DenseArrayBase,
    FileLineColLoc,
    FloatAttr,
    IntAttr,
    IntegerAttr,
    IRDLOperation,
    LocationAttr,
    NameLoc,
    Operation,
    Parser,
    Printer,
    SSAValue,
    StringAttr,
    SymbolRefAttr,
    TensorType,
    TypeAttribute,
    UnitAttr,
    UnknownLoc,
    VerifyException,
    f32,
    f64,
    i1,
    i64,
)


@dataclass(frozen=True)
class Symbol:
    """The name of an array in the tensor store, as a property value."""

    name: str


PropertyValue = bool | int | float | str | Symbol | Sequence[int] | Sequence[float] | None


def to_attribute(value: PropertyValue | Attribute) -> Attribute:
    """The attribute that stands for a Python value (empty sequences are integer lists)."""
    if isinstance(value, Attribute):
        return value
    if isinstance(value, bool):
        return IntegerAttr(int(value), i1)
    if isinstance(value, Symbol):
        return SymbolRefAttr(value.name)
    if isinstance(value, str):
        return StringAttr(value)
    if isinstance(value, int):
        return IntegerAttr(value, i64)
    if isinstance(value, float):
        return FloatAttr(value, f64)
    if value is None:
        return UnitAttr()
    items = list(value)
    if any(isinstance(item, float) for item in items):
        return DenseArrayBase.from_list(f64, [float(item) for item in items])
    return DenseArrayBase.from_list(i64, [int(item) for item in items])


def from_attribute(attribute: Attribute) -> Any:
    """The Python value of an attribute made by :func:`to_attribute`."""
    if isinstance(attribute, IntegerAttr):
        value = cast("IntegerAttr[Any]", attribute)
        return bool(value.value.data) if value.type == i1 else value.value.data
    if isinstance(attribute, FloatAttr):
        return cast("FloatAttr[Any]", attribute).value.data
    if isinstance(attribute, StringAttr):
        return attribute.data
    if isinstance(attribute, SymbolRefAttr):
        return Symbol(attribute.string_value())
    if isinstance(attribute, DenseArrayBase):
        return tuple(cast("DenseArrayBase[Any]", attribute).get_values())
    if isinstance(attribute, UnitAttr):
        return True
    raise TypeError(f"no Python value for attribute {attribute}")


def make_location(path: str, file: str | None = None, line: int = 0) -> LocationAttr:
    """A location that carries the torch module path and, when known, the source file and line."""
    inner = FileLineColLoc(StringAttr(file), IntAttr(line), IntAttr(0)) if file else UnknownLoc()
    return NameLoc(StringAttr(path), inner)


def module_path(op: Operation) -> str:
    """The torch module path an operation came from ('' when unknown)."""
    return op.location.desc.data if isinstance(op.location, NameLoc) else ""


def source_place(op: Operation) -> str:
    """``file:line`` of the torch source an operation came from ('' when unknown)."""
    inner = op.location.location if isinstance(op.location, NameLoc) else op.location
    return f"{inner.filename.data}:{inner.line.data}" if isinstance(inner, FileLineColLoc) else ""


def describe(op: Operation) -> str:
    """``op name at module path (file:line)``, for messages."""
    parts = [op.name]
    if path := module_path(op):
        parts.append(f"at {path}")
    if place := source_place(op):
        parts.append(f"({place})")
    return " ".join(parts)


def tensor_type(height: int, width: int, channels: int) -> TensorType[Any]:
    """The float map type ``tensor<HxWxCxf32>``."""
    return TensorType(f32, [height, width, channels])


def map_shape(value: SSAValue) -> tuple[int, ...]:
    """The shape of a map, stream or sums value, channels last."""
    kind = value.type
    if isinstance(kind, TensorType):
        return tuple(cast("TensorType[Any]", kind).get_shape())
    shape = getattr(kind, "shape_tuple", None)
    if shape is None:
        raise EsccError(f"value of type {kind} has no shape")
    return cast("tuple[int, ...]", shape)


def number_text(value: float) -> str:
    """A number as MLIR reads it back: Python's shortest form, with the point MLIR insists on."""
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return text


def _print_value(printer: Printer, attribute: Attribute) -> None:
    if isinstance(attribute, SymbolRefAttr | StringAttr):
        printer.print_attribute(attribute)
    elif isinstance(attribute, UnitAttr):
        return
    else:
        value = from_attribute(attribute)
        if isinstance(value, bool):
            printer.print_string("true" if value else "false")
        elif isinstance(value, tuple):
            items = cast("tuple[int | float, ...]", value)
            printer.print_string("[" + ", ".join(number_text(item) for item in items) + "]")
        else:
            printer.print_string(number_text(value))


def _parse_value(parser: Parser) -> Attribute:
    if parser.parse_optional_punctuation("[") is not None:
        items: list[int | float] = []
        if parser.parse_optional_punctuation("]") is None:
            items.append(parser.parse_number())
            while parser.parse_optional_punctuation(",") is not None:
                items.append(parser.parse_number())
            parser.parse_punctuation("]")
        return to_attribute(items)
    if (flag := parser.parse_optional_boolean()) is not None:
        return to_attribute(flag)
    if (number := parser.parse_optional_number()) is not None:
        return to_attribute(number)
    if (text := parser.parse_optional_str_literal()) is not None:
        return StringAttr(text)
    attribute = parser.parse_optional_attribute()
    return UnitAttr() if attribute is None else attribute


LayerOpT = TypeVar("LayerOpT", bound="LayerOp")


class LayerOp(IRDLOperation):
    """Base of every operation of ``nn`` and ``escalate``: any number of operands, one result."""

    # -- building and reading -------------------------------------------------------------------------------
    @classmethod
    def make(
        cls,
        operands: Sequence[SSAValue],
        result: TypeAttribute | None = None,
        location: LocationAttr | None = None,
        **properties: PropertyValue | Attribute,
    ) -> Self:
        """Build the operation from Python values.

        Args:
            operands: the map operands in order (an optional residual last).
            result: result type; None lets ``infer_shape`` decide (float maps only).
            location: where it comes from.
            properties: ints, floats, strings, :class:`Symbol`, tuples; ``None`` leaves a property out.
        """
        given = {k: to_attribute(v) for k, v in properties.items() if v is not None}
        # The result type is needed to build; shapes come from a probe with a placeholder type.
        op = cls.create(
            operands=operands,
            result_types=[result if result is not None else tensor_type(1, 1, 1)],
            properties=given,
            location=location,
        )
        if result is None:
            height, width, channels = op.infer_shape()
            op.detach_operands()
            op = cls.create(
                operands=operands,
                result_types=[tensor_type(height, width, channels)],
                properties=given,
                location=location,
            )
        return op

    def detach_operands(self) -> None:
        """Give up all operands so that their use lists forget this operation."""
        self.operands = ()

    def value(self, name: str, default: Any = None) -> Any:
        """A property (or discardable attribute) as a Python value; ``default`` when absent."""
        attribute = self.properties.get(name, self.attributes.get(name))
        return default if attribute is None else from_attribute(attribute)

    def ints(self, name: str) -> tuple[int, ...]:
        """An integer-list property."""
        value = self.value(name)
        if not isinstance(value, tuple):
            raise VerifyException(f"property '{name}' is missing or not a list")
        return tuple(int(item) for item in cast("tuple[int, ...]", value))

    def floats(self, name: str) -> tuple[float, ...]:
        """A float-list property; () when absent."""
        return tuple(float(item) for item in self.value(name, ()))

    def symbol(self, name: str) -> str | None:
        """The store name a symbol property refers to, or None."""
        value = self.value(name)
        return value.name if isinstance(value, Symbol) else None

    def weight_name(self, name: str) -> str:
        """The store name of a symbol property that must be there."""
        found = self.symbol(name)
        if found is None:
            raise EsccError(f"property '{name}' is missing", where=describe(self))
        return found

    def set_value(self, name: str, value: PropertyValue | Attribute) -> None:
        """Set a property the operation declares, or a discardable attribute otherwise; None removes it."""
        declared = name in self.get_irdl_definition().properties
        target = self.properties if declared else self.attributes
        if value is None:
            target.pop(name, None)
        else:
            target[name] = to_attribute(value)

    @property
    def out(self) -> SSAValue:
        """The one result."""
        return self.results[0]

    @property
    def x(self) -> SSAValue:
        """The first operand."""
        return self.operands[0]

    def infer_shape(self) -> tuple[int, ...]:
        """The result shape that operands and properties imply."""
        return map_shape(self.operands[0])

    def symbols(self) -> dict[str, str]:
        """Name -> store name, for every symbol among the properties and discardable attributes."""
        return {
            name: attribute.string_value()
            for name, attribute in (self.properties | self.attributes).items()
            if isinstance(attribute, SymbolRefAttr)
        }

    # -- checks ---------------------------------------------------------------------------------------------
    def verify_(self) -> None:
        actual = map_shape(self.results[0])
        expected = self.infer_shape()
        if min(expected, default=0) < 1:
            raise VerifyException(f"result shape {shape_text(expected)} is empty")
        if actual != expected:
            raise VerifyException(f"result is {shape_text(actual)}, operands imply {shape_text(expected)}")

    # -- syntax ---------------------------------------------------------------------------------------------
    def print(self, printer: Printer) -> None:
        if self.operands:
            printer.print_string(" ")
            printer.print_list(self.operands, printer.print_ssa_value)
        for name, attribute in self.properties.items():
            printer.print_string(f" {name}")
            if not isinstance(attribute, UnitAttr):
                printer.print_string(" ")
                _print_value(printer, attribute)
        if self.attributes:
            printer.print_string(" ")
            printer.print_attr_dict(self.attributes)
        printer.print_string(" : ")
        printer.print_function_type(self.operand_types, self.result_types)

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        operands = parser.parse_optional_undelimited_comma_separated_list(
            parser.parse_optional_unresolved_operand, parser.parse_unresolved_operand
        )
        properties: dict[str, Attribute] = {}
        attributes: dict[str, Attribute] = {}
        definition = cls.get_irdl_definition()
        while (name := parser.parse_optional_identifier()) is not None:
            if name not in definition.properties:
                parser.raise_error(f"'{cls.name}' has no property '{name}'")
            if name in properties:
                parser.raise_error(f"property '{name}' given twice")
            properties[name] = _parse_value(parser)
        attributes |= parser.parse_optional_attr_dict()
        parser.parse_punctuation(":")
        position = parser.pos
        kind = parser.parse_function_type()
        resolved = parser.resolve_operands(operands or [], list(kind.inputs), position)
        return cls.create(
            operands=resolved, result_types=list(kind.outputs), properties=properties, attributes=attributes
        )


def shape_text(shape: Sequence[int]) -> str:
    """``28x28x16``."""
    return "x".join(str(size) for size in shape)


def replace_op(old: Operation, new: Sequence[Operation], result: SSAValue | None = None) -> None:
    """Replace ``old`` by the operations ``new`` (inserted in its place), keeping its location.

    ``result`` takes over the uses of the old result; None means the last new operation's result.
    New operations without a location get the old one's.
    """
    block = old.parent
    if block is None:
        raise ValueError("cannot replace an operation outside a block")
    for op in new:
        if isinstance(op.location, UnknownLoc):
            op.location = old.location
        block.insert_op_before(op, old)
    old.results[0].replace_all_uses_with(result if result is not None else new[-1].results[0])
    old.detach()
    old.erase()
