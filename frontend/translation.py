"""What the operator rules of the importer work with: values, one call at a time, and its refusal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from escc.errors import EsccError
from escc.ir.base import LayerOp, PropertyValue, Symbol, map_shape
from escc.ir.xdsl import Block, LocationAttr, SSAValue, VerifyException

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

    from escc.ir.store import TensorStore

Shape = tuple[int, ...]


class Unsupported(Exception):
    """A call that has no exact counterpart in the nn dialect; the text says why."""


@dataclass(frozen=True)
class Map:
    """A tensor that depends on the input: an IR map (H, W, C) seen through a torch shape.

    torch's views never move elements, so a tensor of any shape with C*H*W elements per image stands for the
    map read in (C, H, W) order. ``shape`` is that torch shape without the batch dimension.
    """

    value: SSAValue
    shape: Shape

    @property
    def chw(self) -> tuple[int, int, int]:
        """(C, H, W) of the map."""
        height, width, channels = map_shape(self.value)
        return channels, height, width

    @property
    def is_image(self) -> bool:
        """True when the torch shape is (C, H, W) itself."""
        return self.shape == self.chw


@dataclass(frozen=True)
class Constant:
    """A tensor that does not depend on the input, and the name it gets in the tensor store."""

    tensor: Tensor
    name: str


@dataclass
class Call:
    """One operator call of the captured graph, with its arguments by schema name.

    Attributes:
        node: the graph node.
        arguments: schema name -> Map, Constant, number, list, None.
        shape: torch shape of the (first) result without the batch dimension.
        location: where the call came from.
        block: where operations are appended.
        store: where constants go.
        emitted: names of the operations appended so far.
    """

    node: Node
    arguments: dict[str, Any]
    shape: Shape
    location: LocationAttr
    block: Block
    store: TensorStore
    emitted: list[str] = field(default_factory=list[str])

    # -- arguments ------------------------------------------------------------------------------------------
    def map(self, name: str) -> Map:
        """A tensor argument that depends on the input."""
        value = self.arguments.get(name)
        if isinstance(value, Map):
            return value
        if isinstance(value, Constant):
            raise Unsupported(f"'{name}' is a constant")
        raise Unsupported(f"'{name}' is not a tensor escc follows")

    def image(self, name: str) -> Map:
        """A tensor argument of shape (N, C, H, W)."""
        value = self.map(name)
        if not value.is_image:
            raise Unsupported(f"needs (N, C, H, W), but the shape is {batch_shape(value.shape)}")
        return value

    def constant(self, name: str) -> Constant:
        """A tensor argument that must not depend on the input."""
        value = self.arguments.get(name)
        if not isinstance(value, Constant):
            raise Unsupported(f"'{name}' is computed from the input" if value is not None else f"no '{name}'")
        return value

    def optional_constant(self, name: str) -> Constant | None:
        """As :meth:`constant`, None when absent."""
        return None if self.arguments.get(name) is None else self.constant(name)

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.arguments.get(name)
        if isinstance(value, Constant) and value.tensor.numel() == 1:
            value = float(value.tensor.item())
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Unsupported(f"'{name}' is not a fixed number")
        return float(value)

    def flag(self, name: str) -> bool:
        """A truth value."""
        return bool(self.arguments.get(name))

    def pair(self, name: str, default: tuple[int, int] | None = None) -> tuple[int, int]:
        """One or two integers as a pair; ``default`` when the list is empty or absent."""
        value: Any = self.arguments.get(name)
        if isinstance(value, int):
            value = [value]
        if value is None or len(value) == 0:
            if default is None:
                raise Unsupported(f"no '{name}'")
            return default
        if len(value) > 2 or not all(isinstance(item, int) for item in value):
            raise Unsupported(f"'{name}' is not a pair of fixed numbers")
        return int(value[0]), int(value[-1])

    def dims(self, name: str, rank: int) -> list[int]:
        """Dimension numbers made positive; ``rank`` counts the batch dimension."""
        value: Any = self.arguments.get(name)
        items: Sequence[Any] = [value] if isinstance(value, int) else list(value or ())
        if not all(isinstance(item, int) for item in items):
            raise Unsupported(f"'{name}' is not fixed")
        return [int(item) % rank for item in items]

    # -- results --------------------------------------------------------------------------------------------
    def emit(
        self, op: type[LayerOp], operands: Sequence[SSAValue], /, **properties: PropertyValue
    ) -> SSAValue:
        """Append an operation; its result."""
        try:
            made = op.make(operands, None, self.location, **properties)
            made.verify()
        except VerifyException as error:
            raise Unsupported(str(error).strip().splitlines()[-1]) from None
        self.block.add_op(made)
        self.emitted.append(made.name)
        return made.out

    def result(self, value: SSAValue) -> Map:
        """The call's result: ``value`` seen in the torch shape that the graph says."""
        if math.prod(self.shape) != math.prod(map_shape(value)):
            raise EsccError(
                f"imported as {map_shape(value)}, torch says {batch_shape(self.shape)}",
                where=str(self.node.name),
            )
        return Map(value, self.shape)

    def keep(self, constant: Constant, tensor: Tensor | None = None) -> Symbol:
        """Put a constant (or another form of it) into the store as float32."""
        import numpy as np
        import torch

        values = (constant.tensor if tensor is None else tensor).detach().to("cpu", torch.float32).numpy()
        if not np.isfinite(values).all():
            raise Unsupported(f"weights '{constant.name}' are not finite")
        return Symbol(self.store.add(constant.name, values))


def batch_shape(shape: Shape) -> str:
    """``(N, 16, 28, 28)``."""
    return f"({', '.join(['N', *map(str, shape)])})"


def axis_groups(shape: Shape, chw: Shape) -> list[tuple[int, ...]] | None:
    """Which axes (0: C, 1: H, 2: W) each dimension of a torch shape covers; None when it cuts one apart.

    Axes and dimensions of size 1 are left out: they can stand anywhere.
    """
    groups: list[tuple[int, ...]] = []
    axis = 0
    for size in shape:
        covered: list[int] = []
        product = 1
        while product < size and axis < len(chw):
            product *= chw[axis]
            if chw[axis] > 1:
                covered.append(axis)
            axis += 1
        if product != size:
            return None
        groups.append(tuple(covered))
    return groups if all(size == 1 for size in chw[axis:]) else None
