"""The graph description inside a torch.export archive: every field checked, then written anew.

torch's own reader trusts this JSON: operator names are resolved by attribute look-up, size expressions go
through ``sympify``, names become Python source, tree specifications import modules. So nothing of the
original text is handed on. :func:`clean_program` rebuilds the description from the values it understood and
refuses the rest; what torch then reads was composed here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, cast

from escc.frontend.symbols import RefusedExpression, canonical_size, check_guard

Json = Any

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,500}")
QUALIFIED = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
OPERATOR = re.compile(r"torch\.ops\.([a-z_0-9]+)\.((?!__)\w+|__(?:and|or|xor|lshift|rshift)__)\.((?!__)\w+)")
NAMESPACES = ("aten", "prims")
OWN_OPERATORS = frozenset(
    {"torch.ops.escc.decomposed_conv2d.default", "torch.ops.escc.fake_quantize.default"}
)
"""The operators of ``escc.frontend.custom_ops``, by the names archives use."""
SIZE_FUNCTIONS = re.compile(
    r"_operator\.(add|sub|mul|floordiv|mod|truediv|neg|pos|eq|ne|le|lt|ge|gt|and_|or_)"
    r"|math\.(trunc|ceil|floor)|torch\.sym_(int|float|max|min|not)"
)
FILE_OPERATORS = frozenset({"from_file"})
WORD = re.compile(r"[a-z_]{1,24}")
MODULE_TYPE = re.compile(r"[\w.<>]{0,300}")
MODULE_KEY = re.compile(r"[\w.@]{0,500}")
FRAME = re.compile(r'File "([^"\r\n]{1,500})", line (\d{1,9}), in ([\w.<>]{1,200})')
CONTAINERS = frozenset({"builtins.tuple", "builtins.list", "builtins.dict"})

ITEM_SIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 12: 1, 13: 2}
"""Bytes per element of the scalar types (torch's serialisation numbers) that are accepted."""
STRIDED = 7
LARGEST = (1 << 63) - 1


class RefusedArchive(ValueError):
    """The description holds something that is not a plain tensor graph."""


def _expect(value: Json, kind: type | tuple[type, ...], what: str) -> Json:
    integer_wanted = kind is int
    if not isinstance(value, kind) or (integer_wanted and isinstance(value, bool)):
        raise RefusedArchive(f"{what} is malformed")
    return value


def _name(value: Json, what: str = "a name") -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise RefusedArchive(f"{what} {_short(value)} is not an identifier")
    return value


def _qualified(value: Json, what: str) -> str:
    if not isinstance(value, str) or len(value) > 1000 or not QUALIFIED.fullmatch(value):
        raise RefusedArchive(f"{what} {_short(value)} is not a dotted name")
    return value


def _integer(value: Json, what: str, limit: int = 1 << 62) -> int:
    number = cast("int", _expect(value, int, what))
    if abs(number) > limit:
        raise RefusedArchive(f"{what} {_short(number)} is absurd")
    return number


def _flag(value: Json, what: str = "a flag") -> bool:
    return cast("bool", _expect(value, bool, what))


def _number(value: Json) -> float | str:
    if value in ("Infinity", "-Infinity"):
        return cast("str", value)
    number = cast("float", _expect(value, (int, float), "a number"))
    if isinstance(number, bool) or not math.isfinite(number):
        raise RefusedArchive("a number is malformed")
    return float(number)


def _word(value: Json) -> str:
    if not isinstance(value, str) or not WORD.fullmatch(value):
        raise RefusedArchive(f"string argument {_short(value)}")
    return value


def _list(value: Json, each: Callable[[Json], Json], what: str) -> list[Json]:
    return [each(item) for item in cast("list[Json]", _expect(value, list, what))]


def _dict(value: Json, what: str) -> dict[str, Json]:
    return cast("dict[str, Json]", _expect(value, dict, what))


def _only(value: Json, what: str) -> tuple[str, Json]:
    """Key and value of a one-entry object (how unions are written)."""
    entry = _dict(value, what)
    if len(entry) != 1:
        raise RefusedArchive(f"{what} is malformed")
    return next(iter(entry.items()))


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = "".join(character if character.isprintable() else "?" for character in text[:60])
    return repr(text)


# -- sizes and tensors --------------------------------------------------------------------------------------


def _size(value: Json, what: str) -> Json:
    kind, content = _only(value, what)
    if kind == "as_int":
        return {"as_int": _integer(content, what)}
    if kind == "as_expr":
        return {"as_expr": _expression(content)}
    raise RefusedArchive(f"{what} is malformed")


def _expression(value: Json) -> Json:
    entry = _dict(value, "a size expression")
    try:
        text = canonical_size(entry.get("expr_str"))
    except RefusedExpression as error:
        raise RefusedArchive(f"size expression {_short(entry.get('expr_str'))}: {error}") from None
    hint = entry.get("hint")
    if hint is None:
        return {"expr_str": text, "hint": None}
    kind, content = _only(hint, "a size hint")
    if kind != "as_int":
        raise RefusedArchive("a size hint is not an integer")
    return {"expr_str": text, "hint": {"as_int": _integer(content, "a size hint")}}


def _truth(value: Json) -> Json:
    """A symbolic truth value: only constants are of use to a network of fixed form."""
    kind, content = _only(value, "a symbolic truth value")
    if kind != "as_bool":
        raise RefusedArchive("control flow that depends on sizes")
    return {"as_bool": _flag(content)}


def clean_tensor(value: Json) -> dict[str, Json]:
    """Shape, strides and type of a tensor; the device becomes the CPU."""
    entry = _dict(value, "tensor description")
    dtype = _integer(entry.get("dtype"), "dtype")
    if dtype not in ITEM_SIZE:
        raise RefusedArchive(f"tensor type number {dtype}")
    if entry.get("layout") != STRIDED:
        raise RefusedArchive("a tensor that is not dense")
    sizes = _list(entry.get("sizes"), lambda item: _size(item, "a size"), "sizes")
    strides = _list(entry.get("strides"), lambda item: _size(item, "a stride"), "strides")
    if len(sizes) != len(strides) or len(sizes) > 16:
        raise RefusedArchive("tensor sizes and strides differ")
    return {
        "dtype": dtype,
        "sizes": sizes,
        "requires_grad": _flag(entry.get("requires_grad")),
        "device": {"type": "cpu", "index": None},
        "strides": strides,
        "storage_offset": _size(entry.get("storage_offset"), "a storage offset"),
        "layout": STRIDED,
    }


def storage_bytes(tensor: dict[str, Json]) -> int:
    """Bytes of storage that a cleaned tensor description reaches (it must have constant sizes)."""
    sizes, strides = ([item.get("as_int") for item in tensor[key]] for key in ("sizes", "strides"))
    offset = tensor["storage_offset"].get("as_int")
    if any(item is None or item < 0 for item in (*sizes, *strides, offset)):
        raise RefusedArchive("a stored tensor without constant sizes")
    reach = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return 0 if 0 in sizes else (offset + reach + 1) * ITEM_SIZE[tensor["dtype"]]


# -- arguments ----------------------------------------------------------------------------------------------


def _tensor_name(value: Json) -> Json:
    return {"name": _name(_dict(value, "a tensor argument").get("name"))}


def _size_argument(value: Json) -> Json:
    kind, content = _only(value, "a size argument")
    if kind == "as_name":
        return {"as_name": _name(content)}
    if kind == "as_int":
        return {"as_int": _integer(content, "a size argument")}
    raise RefusedArchive("a size argument is malformed")


def _optional_tensor(value: Json) -> Json:
    kind, content = _only(value, "an optional tensor")
    if kind == "as_none":
        return {"as_none": True}
    if kind == "as_tensor":
        return {"as_tensor": _tensor_name(content)}
    raise RefusedArchive("an optional tensor is malformed")


ARGUMENTS: dict[str, Callable[[Json], Json]] = {
    "as_none": lambda _value: True,
    "as_tensor": _tensor_name,
    "as_tensors": lambda value: _list(value, _tensor_name, "tensors"),
    # the end of an open slice is the largest integer there is
    "as_int": lambda value: _integer(value, "an integer", LARGEST),
    "as_ints": lambda value: _list(value, lambda item: _integer(item, "an integer", LARGEST), "integers"),
    "as_float": _number,
    "as_floats": lambda value: _list(value, _number, "numbers"),
    "as_string": _word,
    "as_sym_int": _size_argument,
    "as_sym_ints": lambda value: _list(value, _size_argument, "sizes"),
    "as_scalar_type": lambda value: _integer(value, "a scalar type", 64),
    "as_memory_format": lambda value: _integer(value, "a memory format", 8),
    "as_layout": lambda value: _integer(value, "a layout", 16),
    "as_device": lambda _value: {"type": "cpu", "index": None},
    "as_bool": _flag,
    "as_bools": lambda value: _list(value, _flag, "flags"),
    "as_optional_tensors": lambda value: _list(value, _optional_tensor, "optional tensors"),
}
"""What an argument of a node may be. Missing on purpose: sub-graphs, operators, custom objects."""


def _argument(value: Json) -> Json:
    kind, content = _only(value, "an argument")
    clean = ARGUMENTS.get(kind)
    if clean is None:
        raise RefusedArchive(f"an argument of kind {_short(kind)}")
    return {kind: clean(content)}


# -- nodes --------------------------------------------------------------------------------------------------


def check_target(target: Json) -> str:
    """The operator name of a node: one of torch's own tensor operators, escc's two, or size arithmetic."""
    text = cast("str", _expect(target, str, "an operator name"))
    found = OPERATOR.fullmatch(text)
    if found is None:
        if SIZE_FUNCTIONS.fullmatch(text):
            return text
        raise RefusedArchive(f"operator {_short(text)}")
    if text in OWN_OPERATORS:
        return text
    if found[1] not in NAMESPACES:
        raise RefusedArchive(f"operator {_short(text)} is not one of torch's or escc's own")
    if found[2] in FILE_OPERATORS:
        raise RefusedArchive(f"operator {_short(text)} reads or writes files")
    return text


def _node(value: Json) -> Json:
    entry = _dict(value, "a node")
    target = check_target(entry.get("target"))
    inputs: list[Json] = []
    for item in cast("list[Json]", _expect(entry.get("inputs"), list, "node inputs")):
        named = _dict(item, "a node input")
        kind = named.get("kind")
        inputs.append(
            {
                "name": _name(named.get("name"), "argument name"),
                "arg": _argument(named.get("arg")),
                "kind": None if kind is None else _integer(kind, "an argument kind", 2),
            }
        )
    name = entry.get("name")
    return {
        "target": target,
        "inputs": inputs,
        "outputs": _list(entry.get("outputs"), _argument, "node outputs"),
        "metadata": _metadata(entry.get("metadata")),
        "is_hop_single_tensor_return": None,
        "name": None if name is None else _name(name, "node name"),
    }


def _metadata(value: Json) -> dict[str, str]:
    """Where a node came from: source frames and module stack; everything else is left out."""
    entry = _dict(value, "node metadata")
    result: dict[str, str] = {}
    trace = entry.get("stack_trace")
    if isinstance(trace, str):
        frames = [
            f'File "{_plain(file)}", line {line}, in {name}' for file, line, name in FRAME.findall(trace)
        ]
        if frames:
            result["stack_trace"] = "\n".join(frames[-20:]) + "\n"
    stack = entry.get("nn_module_stack")
    if isinstance(stack, str):
        levels = [level.split(",") for level in stack.split(";")]
        if all(
            len(level) == 3
            and MODULE_KEY.fullmatch(level[0])
            and MODULE_KEY.fullmatch(level[1])
            and MODULE_TYPE.fullmatch(level[2])
            for level in levels
        ):
            result["nn_module_stack"] = ";".join(",".join(level) for level in levels)
    return result


def _plain(text: str) -> str:
    """Only printable ASCII: the text ends up in a comment of generated Python source."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)


def _graph(value: Json) -> Json:
    entry = _dict(value, "the graph")
    if entry.get("custom_obj_values"):
        raise RefusedArchive("custom objects")
    if entry.get("sym_float_values"):
        raise RefusedArchive("symbolic floating-point values")

    def named(key: str, clean: Callable[[Json], Json]) -> dict[str, Json]:
        return {_name(name): clean(item) for name, item in _dict(entry.get(key), key).items()}

    return {
        "inputs": _list(entry.get("inputs"), _argument, "graph inputs"),
        "outputs": _list(entry.get("outputs"), _argument, "graph outputs"),
        "nodes": _list(entry.get("nodes"), _node, "graph nodes"),
        "tensor_values": named("tensor_values", clean_tensor),
        "sym_int_values": named("sym_int_values", lambda item: _size(item, "a size")),
        "sym_bool_values": named("sym_bool_values", _truth),
        "is_single_tensor_return": _flag(entry.get("is_single_tensor_return", False)),
        "custom_obj_values": {},
        "sym_float_values": {},
    }


# -- signature ----------------------------------------------------------------------------------------------


def _input_spec(value: Json) -> Json:
    kind, content = _only(value, "an input")
    entry = _dict(content, "an input")
    if kind == "user_input":
        return {kind: {"arg": _argument(entry.get("arg"))}}
    if kind == "parameter":
        name = _qualified(entry.get("parameter_name"), "parameter name")
        return {kind: {"arg": _tensor_name(entry.get("arg")), "parameter_name": name}}
    if kind == "buffer":
        name = _qualified(entry.get("buffer_name"), "buffer name")
        persistent = _flag(entry.get("persistent"))
        return {kind: {"arg": _tensor_name(entry.get("arg")), "buffer_name": name, "persistent": persistent}}
    if kind == "tensor_constant":
        name = _qualified(entry.get("tensor_constant_name"), "constant name")
        return {kind: {"arg": _tensor_name(entry.get("arg")), "tensor_constant_name": name}}
    raise RefusedArchive(f"an input of kind {_short(kind)}")


def _output_spec(value: Json) -> Json:
    kind, content = _only(value, "an output")
    entry = _dict(content, "an output")
    if kind == "user_output":
        return {kind: {"arg": _argument(entry.get("arg"))}}
    if kind == "buffer_mutation":
        name = _qualified(entry.get("buffer_name"), "buffer name")
        return {kind: {"arg": _tensor_name(entry.get("arg")), "buffer_name": name}}
    raise RefusedArchive(f"an output of kind {_short(kind)}")


def _tree(text: Json) -> str:
    """A tree specification (how arguments nest) of plain tuples, lists and dictionaries."""
    try:
        version, tree = json.loads(cast("str", _expect(text, str, "a tree specification")))
    except (ValueError, TypeError, RecursionError):
        raise RefusedArchive("a tree specification is malformed") from None
    if version != 1:
        raise RefusedArchive("a tree specification of another version")
    return json.dumps([1, _tree_node(tree, 0)])


def _tree_node(value: Json, depth: int) -> Json:
    if depth > 50:
        raise RefusedArchive("a tree specification is too deep")
    entry = _dict(value, "a tree specification")
    children = cast("list[Json]", _expect(entry.get("children_spec"), list, "a tree specification"))
    kind, context = entry.get("type"), entry.get("context")
    if kind is None:
        if context is not None or children:
            raise RefusedArchive("a tree specification is malformed")
        return {"type": None, "context": None, "children_spec": []}
    if kind not in CONTAINERS:
        raise RefusedArchive(f"arguments or results of type {_short(kind)}")
    if kind == "builtins.dict":
        try:
            keys = json.loads(cast("str", _expect(context, str, "dictionary keys")))
        except (ValueError, RecursionError):
            raise RefusedArchive("dictionary keys are malformed") from None
        context = json.dumps(_list(keys, _key, "dictionary keys"))
    elif context not in (None, "null"):
        raise RefusedArchive("a tree specification is malformed")
    else:
        context = "null"
    return {
        "type": kind,
        "context": context,
        "children_spec": [_tree_node(child, depth + 1) for child in children],
    }


def _key(value: Json) -> str | int:
    if isinstance(value, str):
        return _qualified(value, "dictionary key")
    return _integer(value, "dictionary key")


def _calls(value: Json) -> list[Json]:
    """The root entry of the module call graph; the others only serve unflattening."""
    for item in cast("list[Json]", _expect(value, list, "module call graph")):
        entry = _dict(item, "a module call")
        if entry.get("fqn") == "" and entry.get("signature") is not None:
            signature = _dict(entry.get("signature"), "a call signature")
            names = signature.get("forward_arg_names")
            return [
                {
                    "fqn": "",
                    "signature": {
                        "inputs": [],
                        "outputs": [],
                        "in_spec": _tree(signature.get("in_spec")),
                        "out_spec": _tree(signature.get("out_spec")),
                        "forward_arg_names": None
                        if names is None
                        else _list(names, lambda name: _name(name, "argument name"), "argument names"),
                    },
                }
            ]
    raise RefusedArchive("no call signature")


def clean_program(value: Json) -> dict[str, Json]:
    """A description that says the same as ``value`` and holds nothing that was not understood.

    Raises:
        RefusedArchive: with the reason, when something is not part of a plain tensor graph.
    """
    program = _dict(value, "the model description")
    module = _dict(program.get("graph_module"), "the graph module")
    signature = _dict(module.get("signature"), "the signature")
    version = _dict(program.get("schema_version"), "the schema version")
    for guard in cast("list[Json]", _expect(program.get("guards_code", []), list, "guards")):
        try:
            check_guard(guard)
        except RefusedExpression as error:
            raise RefusedArchive(f"guard code {_short(guard)}: {error}") from None
    ranges: dict[str, Json] = {}
    for name, item in _dict(program.get("range_constraints", {}), "size ranges").items():
        limits = _dict(item, "a size range")
        ranges[_name(name, "size symbol")] = {
            key: None if limits.get(key) is None else _integer(limits.get(key), "a size range")
            for key in ("min_val", "max_val")
        }
    opset = _dict(program.get("opset_version"), "the operator set version")
    return {
        "graph_module": {
            "graph": _graph(module.get("graph")),
            "signature": {
                "input_specs": _list(signature.get("input_specs"), _input_spec, "inputs"),
                "output_specs": _list(signature.get("output_specs"), _output_spec, "outputs"),
            },
            "module_call_graph": _calls(module.get("module_call_graph")),
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": {"aten": _integer(opset.get("aten"), "the operator set version", 1000)},
        "range_constraints": ranges,
        "schema_version": {
            "major": _integer(version.get("major"), "the schema version", 1000),
            "minor": _integer(version.get("minor"), "the schema version", 1000),
        },
        "verifiers": _list(program.get("verifiers"), _verifier, "verifiers"),
        "torch_version": "",
        "guards_code": [],
    }


def _verifier(value: Json) -> str:
    if value not in ("TRAINING", "ATEN"):
        raise RefusedArchive(f"dialect {_short(value)}")
    return cast("str", value)
