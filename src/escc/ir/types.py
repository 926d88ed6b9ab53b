"""Types of the dialect ``escalate``: quantised maps, streams of combined values, sums."""

from __future__ import annotations

from typing import cast

from escc.ir.base import number_text
from escc.ir.xdsl import (
    ArrayAttr,
    Attribute,
    AttrParser,
    FloatAttr,
    IntAttr,
    IntegerType,
    ParametrizedAttribute,
    Printer,
    Signedness,
    TypeAttribute,
    f64,
    irdl_attr_definition,
    param_def,
)


class ShapedType(ParametrizedAttribute, TypeAttribute):
    """Shared behaviour of the shaped types of this dialect."""

    @property
    def shape_tuple(self) -> tuple[int, ...]:
        """Sizes, channels (and bases) last."""
        shape = cast("ArrayAttr[IntAttr]", self.parameters[0])
        return tuple(size.data for size in shape)

    def _print_shape(self, printer: Printer) -> None:
        printer.print_string("".join(f"{size}x" for size in self.shape_tuple))
        printer.print_attribute(self.parameters[1])


def _parse_shape(parser: AttrParser) -> list[Attribute]:
    sizes, element = parser.parse_ranked_shape()
    return [ArrayAttr([IntAttr(size) for size in sizes]), element]


@irdl_attr_definition
class MapType(ShapedType):
    """A quantised activation map: H x W x C of si8 or ui8, zero-point 0: real = scale * integer."""

    name = "escalate.map"
    shape: ArrayAttr[IntAttr] = param_def()
    element: IntegerType = param_def()
    scale: FloatAttr = param_def()

    @staticmethod
    def of(shape: tuple[int, ...], signed: bool, scale: float) -> MapType:
        """Build from Python values."""
        sign = Signedness.SIGNED if signed else Signedness.UNSIGNED
        return MapType(
            ArrayAttr([IntAttr(size) for size in shape]), IntegerType(8, sign), FloatAttr(scale, f64)
        )

    @property
    def signed(self) -> bool:
        """True for si8, False for ui8."""
        return self.element.signedness.data == Signedness.SIGNED

    @property
    def scale_value(self) -> float:
        """The real value of integer 1."""
        return float(self.scale.value.data)

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        return (-128, 127) if self.signed else (0, 255)

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            self._print_shape(printer)
            printer.print_string(f", {number_text(self.scale_value)}")

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        with parser.in_angle_brackets():
            parameters = _parse_shape(parser)
            parser.parse_punctuation(",")
            parameters.append(FloatAttr(float(parser.parse_number()), f64))
        return parameters


@irdl_attr_definition
class StreamType(ShapedType):
    """Linear combinations Z: H x W x K x M integers, consumed as they appear and never stored."""

    name = "escalate.stream"
    shape: ArrayAttr[IntAttr] = param_def()
    element: IntegerType = param_def()

    @staticmethod
    def of(shape: tuple[int, ...], bits: int) -> StreamType:
        """Build from Python values."""
        return StreamType(ArrayAttr([IntAttr(size) for size in shape]), IntegerType(bits))

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            self._print_shape(printer)

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        with parser.in_angle_brackets():
            return _parse_shape(parser)


@irdl_attr_definition
class SumsType(ShapedType):
    """Convolution sums before requantisation: H x W x K of i32."""

    name = "escalate.sums"
    shape: ArrayAttr[IntAttr] = param_def()
    element: IntegerType = param_def()

    @staticmethod
    def of(shape: tuple[int, ...]) -> SumsType:
        """Build from Python values."""
        return SumsType(ArrayAttr([IntAttr(size) for size in shape]), IntegerType(32))

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            self._print_shape(printer)

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        with parser.in_angle_brackets():
            return _parse_shape(parser)
