"""Crafted model files. Each tries to create a folder, the marker, when it is opened the trusting way."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Members = dict[str, bytes]
"""Member name without the archive's root folder -> content."""


class Touch:
    """Unpickling it creates the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


def touch_code(marker: Path) -> str:
    """A Python expression that creates the marker and is 3."""
    return f"(__import__('os').mkdir({str(marker)!r}) or 3)"


def read_members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = names[0].split("/")[0] + "/"
        return {name.removeprefix(root): archive.read(name) for name in names}


def write_members(path: Path, members: Members, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"m/{name}", content)
    return path


def edit_json(members: Members, name: str, change: Callable[[Any], None]) -> None:
    content = json.loads(members[name])
    change(content)
    members[name] = json.dumps(content).encode()


def _model(change: Callable[[Any, Path], None]) -> Callable[[Members, Path], None]:
    def attack(members: Members, marker: Path) -> None:
        edit_json(members, "models/model.json", lambda content: change(content, marker))

    return attack


def _tensors(content: Any) -> dict[str, Any]:
    return content["graph_module"]["graph"]["tensor_values"]


def size_expression(content: Any, marker: Path) -> None:
    """sympify evaluates the strings of symbolic sizes."""
    _tensors(content)["x"]["sizes"][0]["as_expr"]["expr_str"] = touch_code(marker)


def stride_expression(content: Any, marker: Path) -> None:
    _tensors(content)["x"]["strides"][1] = {
        "as_expr": {"expr_str": touch_code(marker), "hint": {"as_int": 3}}
    }


def guard_code(content: Any, marker: Path) -> None:
    """Guards become a Python function."""
    content["guards_code"] = [f"{touch_code(marker)} == 3"]


def operator_path(content: Any, marker: Path) -> None:
    """Operator names are resolved by attribute look-up from torch."""
    node = content["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.serialization.os.system"
    node["inputs"] = [{"name": "", "arg": {"as_string": f"mkdir {marker}"}, "kind": 1}]


def source_in_a_name(content: Any, marker: Path) -> None:
    """Names become Python source."""
    text = json.dumps(content)
    name = f"x=__import__('os').mkdir({str(marker)!r})"
    content.clear()
    content.update(json.loads(text.replace('"name": "x"', f'"name": {json.dumps(name)}')))
    graph = content["graph_module"]["graph"]
    graph["tensor_values"][name] = graph["tensor_values"].pop("x")


def source_in_a_comment(content: Any, marker: Path) -> None:
    """Source lines are quoted in a comment; a carriage return ends the comment."""
    node = content["graph_module"]["graph"]["nodes"][0]
    node["metadata"]["stack_trace"] = (
        f'File "/a/b.py", line 3, in forward\n    pass\r    __import__("os").mkdir({str(marker)!r})\n'
    )


def enumeration_import(content: Any, marker: Path) -> None:
    """Tree specifications import the module of an enumeration."""
    (marker.parent / "evil_enum.py").write_text(f"{touch_code(marker)}\nclass E: pass\n")
    key = json.dumps([{"__enum__": True, "fqn": "evil_enum:E", "name": "A"}])
    signature = content["graph_module"]["module_call_graph"][0]["signature"]
    leaf = {"type": None, "context": None, "children_spec": []}
    signature["out_spec"] = json.dumps(
        [1, {"type": "builtins.dict", "context": key, "children_spec": [leaf]}]
    )


def default_factory_import(content: Any, marker: Path) -> None:
    """Tree specifications import the default factory of a defaultdict."""
    (marker.parent / "evil_factory.py").write_text(f"{touch_code(marker)}\ndef f(): pass\n")
    context = {
        "default_factory_module": "evil_factory",
        "default_factory_name": "f",
        "dict_context": ["a"],
    }
    signature = content["graph_module"]["module_call_graph"][0]["signature"]
    leaf = {"type": None, "context": None, "children_spec": []}
    signature["out_spec"] = json.dumps(
        [1, {"type": "collections.defaultdict", "context": context, "children_spec": [leaf]}]
    )


def file_operator(content: Any, marker: Path) -> None:
    """aten.from_file maps a file, creating it when asked to share it."""
    node = content["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.ops.aten.from_file.default"
    node["inputs"] = [
        {"name": "filename", "arg": {"as_string": "marker"}, "kind": 1},
        {"name": "shared", "arg": {"as_bool": True}, "kind": 2},
        {"name": "size", "arg": {"as_int": 4}, "kind": 2},
    ]


def foreign_operator(content: Any, marker: Path) -> None:
    del marker
    content["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.mylib.run.default"


def unknown_own_operator(content: Any, marker: Path) -> None:
    """Of escc's namespace only the two operators of compressed networks are known."""
    del marker
    content["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.escc.fake_quantize.other"


def sub_graph(content: Any, marker: Path) -> None:
    del marker
    node = content["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.ops.higher_order.cond"


def custom_object(content: Any, marker: Path) -> None:
    del marker
    content["graph_module"]["graph"]["custom_obj_values"] = {"a": {"name": "a", "class_fqn": "b.C"}}


def sample_inputs(members: Members, marker: Path) -> None:
    """Sample inputs are a pickle; torch falls back to the unrestricted unpickler."""
    members["data/sample_inputs/model.pt"] = torch_save(Touch(marker))


def pickled_weight(members: Members, marker: Path) -> None:
    members["data/weights/weight_0"] = torch_save(Touch(marker))

    def change(content: Any) -> None:
        for entry in content["config"].values():
            entry["use_pickle"] = entry["path_name"] == "weight_0"

    edit_json(members, "data/weights/model_weights_config.json", change)


def opaque_constant(members: Members, marker: Path) -> None:
    members["data/constants/opaque_obj_0"] = pickle.dumps(Touch(marker))
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    edit_json(
        members,
        "data/constants/model_constants_config.json",
        lambda content: content["config"].update(a=entry),
    )


def legacy_weights(members: Members, marker: Path) -> None:
    members["data/weights/model.pt"] = torch_save(Touch(marker))


def compiled_library(members: Members, marker: Path) -> None:
    del marker
    members["data/aotinductor/model/model.so"] = b"\x7fELF"


def short_weight(members: Members, marker: Path) -> None:
    del marker
    members["data/weights/weight_0"] = members["data/weights/weight_0"][:-8]


def torch_save(value: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


RUNS_CODE: dict[str, Callable[[Members, Path], None]] = {
    "size expression": _model(size_expression),
    "stride expression": _model(stride_expression),
    "guard code": _model(guard_code),
    "source in a name": _model(source_in_a_name),
    "enumeration import": _model(enumeration_import),
    "default factory import": _model(default_factory_import),
    "sample inputs": sample_inputs,
    "pickled weight": pickled_weight,
    "opaque constant": opaque_constant,
    "legacy weights": legacy_weights,
}
"""Attacks that make torch's own loader (and one call of the model) run code."""

REFUSED: dict[str, Callable[[Members, Path], None]] = {
    "operator path": _model(operator_path),
    "file operator": _model(file_operator),
    "foreign operator": _model(foreign_operator),
    "unknown own operator": _model(unknown_own_operator),
    "sub-graph": _model(sub_graph),
    "custom object": _model(custom_object),
    "compiled library": compiled_library,
    "short weight": short_weight,
}
"""Archives that must be refused although opening them runs nothing by itself."""

HARMLESS = {"sample inputs", "source in a comment"}
"""Attacks on parts that are never read or that are cleaned: the model opens, and nothing runs."""
