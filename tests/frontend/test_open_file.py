"""Every kind of file opens or is refused in one line."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.frontend.attacks import Touch
from tests.frontend.sample_models import Net
from torch import nn

from escc.errors import EsccError
from escc.frontend import zoo
from escc.frontend.factories import make_module
from escc.frontend.open_file import TORCHSCRIPT_RECIPE, open_model
from escc.frontend.pickled import LAYERS, layer_classes

HERE = "tests.frontend.sample_models"


def plain_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    ).eval()


def test_a_pickled_network_of_torch_s_layers_opens(tmp_path: Path) -> None:
    model = plain_network()
    path = tmp_path / "model.txt"  # the suffix has no say
    torch.save(model, path)
    loaded = open_model(path)
    assert loaded.kind.startswith("torch.save file")
    assert isinstance(loaded.model, nn.Sequential)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.model(x), model(x))


def test_files_from_before_torch_1_6(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save(Net().state_dict(), path, _use_new_zipfile_serialization=False)
    assert isinstance(open_model(path, factory=f"{HERE}:make_net").model, Net)
    torch.save(plain_network(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(EsccError, match=r"before torch 1\.6; save it again"):
        open_model(path)


def test_a_checkpoint_around_a_network_opens(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": plain_network()}, tmp_path / "a.pt")
    assert isinstance(open_model(tmp_path / "a.pt").model, nn.Sequential)


def test_a_user_s_class_needs_to_be_allowed(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(Net(), path)
    with pytest.raises(EsccError) as caught:
        open_model(path)
    flags = f"--allow-class {HERE}:Net --allow-class {HERE}:Block"
    assert flags in str(caught.value)
    with pytest.raises(EsccError, match=rf"--allow-class {HERE}:Block;"):
        open_model(path, allow_classes=[f"{HERE}:Net"])
    loaded = open_model(path, allow_classes=[f"{HERE}:Net", f"{HERE}:Block"])
    assert isinstance(loaded.model, Net)
    assert isinstance(open_model(path, unsafe_load=True).model, Net)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:system", "refused"),
        ("builtins:type", "refused"),
        ("torch.hub:load", "refused"),
        ("Net", "not of the form"),
        (f"{HERE}:Nothing", "has no 'Nothing'"),
        (f"{HERE}:make_net", "not a class"),
        ("no_such_module_here:Net", "cannot import"),
    ],
)
def test_what_may_not_be_allowed(name: str, message: str, tmp_path: Path) -> None:
    torch.save(plain_network(), tmp_path / "a.pt")
    with pytest.raises(EsccError, match=message):
        open_model(tmp_path / "a.pt", allow_classes=[name])


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_malicious_pickle_runs_nothing(modern: bool, nested: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    model = plain_network()
    model.extra = Touch(marker)  # type: ignore[assignment]
    torch.save(model if nested else Touch(marker), tmp_path / "a.pt", _use_new_zipfile_serialization=modern)
    with pytest.raises(EsccError, match=r"would call posix\.mkdir"):
        open_model(tmp_path / "a.pt")
    with pytest.raises(EsccError):
        open_model(tmp_path / "a.pt", factory=f"{HERE}:make_net", allow_classes=[f"{HERE}:Net"])
    assert not marker.exists()
    # the control: an ordinary load does run it
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert marker.exists()


def hook(module: nn.Module, inputs: object) -> None:
    """A forward hook."""


def test_hooks_and_replaced_methods_are_refused(tmp_path: Path) -> None:
    model = plain_network()
    model[0].register_forward_pre_hook(hook)
    torch.save(model, tmp_path / "hook.pt")
    with pytest.raises(EsccError, match="test_open_file:hook"):
        open_model(tmp_path / "hook.pt")
    # the function is a class of torch.nn's own, so that only the look at the module can find it
    model = plain_network()
    vars(model[0])["_forward_hooks"][7] = nn.Identity
    torch.save(model, tmp_path / "hook.pt")
    with pytest.raises(EsccError, match=r"'0\._forward_hooks' holds hooks"):
        open_model(tmp_path / "hook.pt")
    model = plain_network()
    model[2].forward = nn.Identity  # type: ignore[assignment]
    torch.save(model, tmp_path / "method.pt")
    with pytest.raises(EsccError, match=r"'2\.forward' replaces a method"):
        open_model(tmp_path / "method.pt")
    model = plain_network()
    model[2].notes = [nn.Identity]  # type: ignore[assignment]
    torch.save(model, tmp_path / "data.pt")
    with pytest.raises(EsccError, match=r"'2\.notes' is not plain data"):
        open_model(tmp_path / "data.pt")


def test_the_list_of_layers_names_real_classes_only() -> None:
    found = layer_classes()
    assert len(found) == sum(len(names.split()) for names in LAYERS.values())
    assert all(issubclass(kind, nn.Module) for kind in found.values())


# -- state dictionaries -------------------------------------------------------------------------------------


def write_torch(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(tensors, path)


def write_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def write_checkpoint(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}, "best": 0.9}, path)


Writer = Callable[[dict[str, torch.Tensor], Path], None]


@pytest.mark.parametrize("write", [write_torch, write_safetensors, write_checkpoint])
def test_state_dictionaries_fill_a_factory_s_module(write: Writer, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Net()
    write(model.state_dict(), tmp_path / "w")
    with pytest.raises(EsccError, match=r"holds 6 tensors but no network \(give --model pkg.mod:factory\)"):
        open_model(tmp_path / "w")
    loaded = open_model(tmp_path / "w", factory=f"{HERE}:make_net").model
    assert isinstance(loaded, Net)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_missing_and_unexpected_names_are_listed(tmp_path: Path) -> None:
    tensors = dict(Net().state_dict())
    del tensors["head.bias"]
    tensors["tail.bias"] = torch.zeros(1)
    tensors["head.weight"] = torch.zeros(9, 9)
    torch.save(tensors, tmp_path / "w.pt")
    with pytest.raises(EsccError) as caught:
        open_model(tmp_path / "w.pt", factory=f"{HERE}:make_net")
    text = str(caught.value)
    assert "1 missing: head.bias" in text
    assert "1 unexpected: tail.bias" in text
    assert "head.weight (9, 9) for (4, 3)" in text


def test_a_zoo_network_s_weights_are_recognised(tmp_path: Path) -> None:
    model = zoo.build("resnet20", num_classes=7, in_channels=1, seed=3)
    old = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    torch.save(old, tmp_path / "w.pt")
    with pytest.raises(EsccError) as caught:
        open_model(tmp_path / "w.pt")
    name = "zoo:resnet20,num_classes=7,in_channels=1"
    assert f"looks like --model {name}" in str(caught.value)
    loaded = open_model(tmp_path / "w.pt", factory=name)
    assert loaded.input_shape == (1, 32, 32)
    assert isinstance(loaded.model, nn.Module)
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(loaded.model.eval()(x), model(x))


def test_a_zoo_name_is_a_model_itself() -> None:
    loaded = open_model("zoo:resnet8,num_classes=3")
    assert loaded.input_shape == (3, 32, 32)
    assert isinstance(loaded.model, nn.Module)
    assert loaded.model(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zoo:resnet21", "did you mean 'resnet20'"),
        ("zoo:resnet20,depth=3", "is not num_classes=N"),
        (f"{HERE}:broken_factory", "RuntimeError: no GPU$"),
        (f"{HERE}:not_a_module", "returned int"),
        (f"{HERE}:missing", "has no 'missing'"),
        ("just_a_name", "not of the form"),
        ("tests.frontend.nowhere:f", "cannot import"),
    ],
)
def test_factories_that_do_not_work(name: str, message: str) -> None:
    with pytest.raises(EsccError, match=message):
        make_module(name)


def test_a_factory_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_only_here.py").write_text("from torch import nn\ndef f(): return nn.Conv2d(3, 4, 1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    assert isinstance(make_module("mine_only_here:f"), nn.Conv2d)
    assert str(tmp_path) not in sys.path
    assert isinstance(make_module(f"{HERE}:an_instance"), nn.Sequential)


# -- everything else ----------------------------------------------------------------------------------------


def test_torchscript_is_recognised_and_the_recipe_printed(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    # an archive with TorchScript's members: making a real one needs a deprecated function
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__/m.py", "version"):
            archive.writestr(f"script/{name}", b"3\n")
    with pytest.raises(EsccError) as caught:
        open_model(path)
    assert len(TORCHSCRIPT_RECIPE) == 3
    assert all(" ".join(line.split()) in str(caught.value) for line in TORCHSCRIPT_RECIPE)


def truncated(path: Path) -> None:
    torch.save(plain_network(), path)
    path.write_bytes(path.read_bytes()[:-200])


def truncated_legacy(path: Path) -> None:
    torch.save(plain_network(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-200])


def flipped(path: Path) -> None:
    torch.save(plain_network(), path)
    data = bytearray(path.read_bytes())
    data[200:300] = bytes(100)
    path.write_bytes(data)


def damaged_safetensors(path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(3))


def other_zip(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    path.with_suffix(".npz").rename(path)


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text": (lambda path: path.write_text("hello, I am no model\n" * 900), "a text file"),
    "source": (lambda path: path.write_text("import torch\n"), "a text file"),
    "random": (lambda path: path.write_bytes(np.random.default_rng(1).bytes(5000)), "unknown binary data"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "unknown binary data"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"abc")), "gzip data"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps([1])), "a Python pickle"),
    "array": (lambda path: np.save(path.open("wb"), np.zeros(3)), "a numpy array"),
    "npz": (other_zip, "a numpy .npz archive"),
    "zip": (lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)), "an empty zip archive"),
    "zip head": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(300)), "damaged or truncated zip"),
    "truncated": (truncated, "damaged or truncated zip"),
    "legacy": (truncated_legacy, "cannot load|truncated"),
    "flipped": (flipped, "damaged|cannot load"),
    "safetensors": (damaged_safetensors, "damaged safetensors"),
    "a number": (lambda path: torch.save(3, path), "holds a int, neither"),
    "a list": (lambda path: torch.save([torch.zeros(3)], path), "holds a list, neither"),
    "a config": (lambda path: torch.save({"lr": 0.1}, path), "holds a dict, neither"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_anything_else_is_one_line(name: str, tmp_path: Path) -> None:
    make, message = OTHERS[name]
    path = tmp_path / "file.pt"
    make(path)
    with pytest.raises(EsccError, match=message) as caught:
        open_model(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_device_is_not_read() -> None:
    with pytest.raises(EsccError, match="not a regular file"):
        open_model(os.devnull)
