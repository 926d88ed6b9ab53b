"""The JSON sections of a program file: tensor descriptors and debug information, strictly read."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn, cast

from escc.errors import EsccError
from escc.isa.maps import MapDescriptor

MAX_DIMENSION = 1 << 24
MAX_NAME = 1000
MAX_TENSORS = 4096
MAX_SCALE = 1e300
_MAP_KEYS = ("name", "address", "height", "width", "channels", "signed", "scale", "torch_shape")


def tensors_to_json(inputs: Sequence[MapDescriptor], outputs: Sequence[MapDescriptor]) -> bytes:
    """The tensors section: canonical JSON, scales exact."""
    content = {
        "inputs": [_map_to_dict(item) for item in inputs],
        "outputs": [_map_to_dict(item) for item in outputs],
    }
    return _dump(content)


def tensors_from_json(content: bytes, where: str) -> tuple[list[MapDescriptor], list[MapDescriptor]]:
    """Read the tensors section.

    Raises:
        EsccError: not JSON, or a field is missing, unknown, of the wrong type or absurd.
    """
    place = f"{where}: section tensors"
    body = _record(_parse(content, place), ("inputs", "outputs"), place)
    lists: list[list[MapDescriptor]] = []
    for key in ("inputs", "outputs"):
        items = body[key]
        if not isinstance(items, list):
            raise EsccError(f"{key} must be a list", where=place)
        items = cast("list[Any]", items)
        if len(items) > MAX_TENSORS:
            raise EsccError(f"{key} has {len(items)} entries, at most {MAX_TENSORS}", where=place)
        lists.append([map_from_dict(item, f"{place}: {key}[{i}]") for i, item in enumerate(items)])
    return lists[0], lists[1]


def map_from_dict(item: Any, place: str) -> MapDescriptor:
    """A checked descriptor from decoded JSON.

    Raises:
        EsccError: a field is missing, unknown, of the wrong type or absurd.
    """
    fields = _record(item, _MAP_KEYS, place)
    shape = fields["torch_shape"]
    if not isinstance(shape, list):
        raise EsccError("torch_shape must be a list of integers", where=place)
    dims = tuple(_integer(d, 1, MAX_DIMENSION, "torch_shape", place) for d in cast("list[Any]", shape))
    if not isinstance(fields["signed"], bool):
        raise EsccError("signed must be true or false", where=place)
    scale = fields["scale"]
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise EsccError("scale must be a number", where=place)
    if not 0 < scale < MAX_SCALE:
        raise EsccError(f"scale must lie between 0 and {MAX_SCALE:g}", where=place)
    return MapDescriptor(
        name=check_name(fields["name"], "name", place),
        address=_integer(fields["address"], 0, 1 << 40, "address", place),
        height=_integer(fields["height"], 1, MAX_DIMENSION, "height", place),
        width=_integer(fields["width"], 1, MAX_DIMENSION, "width", place),
        channels=_integer(fields["channels"], 1, MAX_DIMENSION, "channels", place),
        signed=fields["signed"],
        scale=float(scale),
        torch_shape=dims,
    )


def check_maps(
    inputs: Sequence[MapDescriptor],
    outputs: Sequence[MapDescriptor],
    data_bytes: int,
    dram_bytes: int,
    where: str,
) -> None:
    """Check that the maps have sane shapes, lie behind the data and inside DRAM, and do not overlap.

    An output may share memory with an input, and two outputs may be the same map.

    Raises:
        EsccError: naming the map.
    """
    for kind, maps in (("input", inputs), ("output", outputs)):
        names: set[str] = set()
        for item in maps:
            place = f"{where}: {kind} {item.name!r}"
            # Descriptors built in memory take the same road as those of a file.
            map_from_dict(_map_to_dict(item), place)
            if math.prod(item.torch_shape) != item.height * item.width * item.channels:
                shape = f"{item.height}x{item.width}x{item.channels}"
                raise EsccError(f"torch shape {item.torch_shape} does not match the map {shape}", where=place)
            if item.name in names:
                raise EsccError(f"two {kind}s have this name", where=place)
            names.add(item.name)
            if item.address < data_bytes or item.address + item.size_bytes > dram_bytes:
                span = f"{item.address}..{item.address + item.size_bytes}"
                raise EsccError(f"occupies {span}, outside {data_bytes}..{dram_bytes}", where=place)
        ordered = sorted(maps, key=lambda m: (m.address, m.size_bytes))
        for first, second in itertools.pairwise(ordered):
            same = (first.address, first.size_bytes) == (second.address, second.size_bytes)
            if second.address < first.address + first.size_bytes and not (same and kind == "output"):
                raise EsccError(
                    f"overlaps {kind} {first.name!r} in DRAM", where=f"{where}: {kind} {second.name!r}"
                )


def debug_to_json(debug: dict[str, Any], words: int, where: str) -> bytes:
    """The debug section.

    Raises:
        EsccError: the value has not the documented form, or does not survive JSON unchanged.
    """
    try:
        content = _dump(debug)
    except (TypeError, ValueError) as error:
        raise EsccError(f"debug information cannot be written as JSON: {error}", where=where) from None
    debug_from_json(content, words, where)
    return content


def debug_from_json(content: bytes, words: int, where: str) -> dict[str, Any]:
    """Read the debug section of a program with ``words`` instruction words.

    Raises:
        EsccError: not JSON, or not of the documented form.
    """
    place = f"{where}: section debug"
    body = _parse(content, place)
    if not isinstance(body, dict):
        raise EsccError("must be an object", where=place)
    body = cast("dict[str, Any]", body)
    layers = body.get("layers", [])
    if not isinstance(layers, list):
        raise EsccError("layers must be a list", where=place)
    layers = cast("list[Any]", layers)
    for index, layer in enumerate(layers):
        if not isinstance(layer, dict) or "name" not in layer:
            raise EsccError(f"layers[{index}] must be an object with a name", where=place)
        check_name(cast("dict[str, Any]", layer)["name"], f"layers[{index}].name", place)
    ranges = body.get("instructions", [])
    if not isinstance(ranges, list):
        raise EsccError("instructions must be a list", where=place)
    for index, entry in enumerate(cast("list[Any]", ranges)):
        if not _is_range(entry, words, len(layers)):
            raise EsccError(
                f"instructions[{index}] must be [first word, last word, layer], inside the program",
                where=place,
            )
    return body


def check_name(value: Any, field: str, place: str) -> str:
    """A printable name of at most `MAX_NAME` characters.

    Raises:
        EsccError: anything else.
    """
    if not isinstance(value, str) or not value or len(value) > MAX_NAME or not value.isprintable():
        raise EsccError(f"{field} must be a printable text of 1 to {MAX_NAME} characters", where=place)
    return value


def _is_range(entry: Any, words: int, layers: int) -> bool:
    if not isinstance(entry, list) or len(cast("list[Any]", entry)) != 3:
        return False
    first, last, layer = cast("list[Any]", entry)
    if type(first) is not int or type(last) is not int or type(layer) is not int:
        return False
    return 0 <= first <= last < words and 0 <= layer < layers


def _map_to_dict(item: MapDescriptor) -> dict[str, Any]:
    fields = {key: getattr(item, key) for key in _MAP_KEYS}
    fields["torch_shape"] = list(item.torch_shape)
    return fields


def _dump(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _parse(content: bytes, place: str) -> Any:
    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a number")

    try:
        parsed = json.loads(content.decode(), parse_constant=refuse)
        # An escaped half of a surrogate pair parses, but cannot be printed later.
        json.dumps(parsed, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise EsccError(f"not valid JSON: {reason}", where=place) from None
    return parsed


def _record(item: Any, keys: Sequence[str], place: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise EsccError("must be an object", where=place)
    fields = cast("dict[str, Any]", item)
    for key in keys:
        if key not in fields:
            raise EsccError(f"field {key} is missing", where=place)
    for key in fields:
        if key not in keys:
            raise EsccError(f"unknown field {key!r}", where=place)
    return fields


def _integer(value: Any, low: int, high: int, field: str, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        shown = repr(value) if len(repr(value)) <= 40 else "its value"
        raise EsccError(f"{field}: {shown} is not an integer from {low} to {high}", where=place)
    return value
