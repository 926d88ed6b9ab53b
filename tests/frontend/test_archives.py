"""torch.export archives: honest ones open, crafted ones run nothing."""

from __future__ import annotations

import contextlib
import json
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from tests.frontend import attacks
from torch import nn

from escc.errors import EsccError
from escc.frontend.capture import capture, save
from escc.frontend.importer import import_exported
from escc.frontend.open_file import open_model


class Net(nn.Module):
    """A bit of everything that an archive stores: parameters, a non-persistent buffer, a constant."""

    gain: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(4 * 8 * 8, 5)
        self.register_buffer("gain", torch.rand(4, 1, 1), persistent=False)
        self.offset = torch.rand(1, 4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x)) * self.gain + self.offset
        return self.linear(x.view(x.size(0), -1))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Net]:
    torch.manual_seed(0)
    model = Net().eval()
    path = tmp_path_factory.mktemp("archive") / "net.pt2"
    save(model, torch.zeros(2, 3, 8, 8), path)
    return path, model


def test_an_honest_archive_gives_the_same_network(archive: tuple[Path, Net], tmp_path: Path) -> None:
    path, model = archive
    renamed = tmp_path / "model.jpeg"
    renamed.write_bytes(path.read_bytes())
    loaded = open_model(renamed)
    assert loaded.kind == "torch.export archive"
    assert isinstance(loaded.model, torch.export.ExportedProgram)
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(loaded.model.module()(x), model(x))
    assert [op.name for op in import_exported(capture(loaded.model)).layers] == [
        "nn.conv2d",
        "nn.activation",
        "nn.batch_norm",
        "nn.batch_norm",
        "nn.conv2d",
    ]


def test_free_height_and_width_open_and_are_refused_by_the_importer(tmp_path: Path) -> None:
    free = torch.export.Dim.DYNAMIC
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            model, (torch.zeros(2, 3, 9, 9),), dynamic_shapes=({0: free, 2: free, 3: free},)
        )
        assert vars(program)["_guards_code"], "the point of this test: honest guards are let pass"
        torch.export.save(program, tmp_path / "free.pt2")
    loaded = open_model(tmp_path / "free.pt2").model
    assert isinstance(loaded, torch.export.ExportedProgram)
    with pytest.raises(EsccError, match="only the batch size may be free"):
        import_exported(capture(loaded))


def trusting_load(path: Path) -> None:
    """What a careless program does with an archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with path.open("rb") as stream:
                program = torch.export.load(stream)
            program.module()(torch.zeros(2, 3, 8, 8))
        except Exception:
            pass


@pytest.mark.parametrize("name", attacks.RUNS_CODE)
def test_crafted_archives_run_nothing(
    name: str, archive: tuple[Path, Net], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    marker = tmp_path / "marker"
    members = attacks.read_members(archive[0])
    attacks.RUNS_CODE[name](members, marker)
    crafted = attacks.write_members(tmp_path / "crafted.pt2", members)
    if name in attacks.HARMLESS:
        opened = open_model(crafted).model
        assert isinstance(opened, torch.export.ExportedProgram)
        opened.module()(torch.zeros(2, 3, 8, 8))
        import_exported(capture(opened))
    else:
        with pytest.raises(EsccError) as caught:
            open_model(crafted)
        assert "\n" not in str(caught.value)
    assert not marker.exists()
    # the control: the same file does run code where it is trusted, so the check above checks something
    trusting_load(crafted)
    for module in ("evil_enum", "evil_factory"):
        sys.modules.pop(module, None)
    assert marker.exists()


@pytest.mark.parametrize("name", attacks.REFUSED)
def test_archives_with_more_than_a_plain_graph_are_refused(
    name: str, archive: tuple[Path, Net], tmp_path: Path
) -> None:
    members = attacks.read_members(archive[0])
    attacks.REFUSED[name](members, tmp_path / "marker")
    with pytest.raises(EsccError, match="refused, the archive holds more than a plain graph"):
        open_model(attacks.write_members(tmp_path / "crafted.pt2", members))


def test_source_quoted_in_comments_is_cleaned(archive: tuple[Path, Net], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    members = attacks.read_members(archive[0])
    attacks.edit_json(
        members, "models/model.json", lambda content: attacks.source_in_a_comment(content, marker)
    )
    opened = open_model(attacks.write_members(tmp_path / "crafted.pt2", members)).model
    assert isinstance(opened, torch.export.ExportedProgram)
    opened.module()(torch.zeros(2, 3, 8, 8))
    assert not marker.exists()
    traces = [str(node.meta.get("stack_trace")) for node in opened.graph.nodes]
    assert any("b.py" in trace for trace in traces)
    assert not any("\r" in trace or "marker" in trace for trace in traces)


@pytest.mark.parametrize("member", ["models/model.json", "data/weights/model_weights_config.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"[" * 100_000, b'{"config": 3}', b"\xff"])
def test_damaged_descriptions_are_one_line(
    member: str, content: bytes, archive: tuple[Path, Net], tmp_path: Path
) -> None:
    members = attacks.read_members(archive[0])
    members[member] = content
    with pytest.raises(EsccError):
        open_model(attacks.write_members(tmp_path / "damaged.pt2", members))


def test_every_damaged_value_is_one_line(archive: tuple[Path, Net], tmp_path: Path) -> None:
    """Replace each value of the description by something of another type, a few hundred times."""
    members = attacks.read_members(archive[0])
    original = json.loads(members["models/model.json"])
    places: list[list[str | int]] = []

    def collect(value: object, place: list[str | int]) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                collect(item, [*place, key])
        elif isinstance(value, list):
            for index, item in enumerate(value):
                collect(item, [*place, index])
        else:
            places.append(place)

    collect(original, [])
    assert len(places) > 300
    for number, place in enumerate(places[::7]):
        content = json.loads(members["models/model.json"])
        target = content
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = [{"a": 1}, 7, "os.system", None, [1, 2], True, -1][number % 7]
        damaged = dict(members)
        damaged["models/model.json"] = json.dumps(content).encode()
        path = attacks.write_members(tmp_path / "damaged.pt2", damaged)
        with contextlib.suppress(EsccError):  # and nothing else; many values have no influence
            open_model(path)


def test_zip_bombs_and_odd_zips_are_refused(archive: tuple[Path, Net], tmp_path: Path) -> None:
    members = attacks.read_members(archive[0])
    bomb = tmp_path / "bomb.pt2"
    attacks.write_members(bomb, {**members, "data/weights/weight_9": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(EsccError, match="zip bomb"):
        open_model(bomb)
    with zipfile.ZipFile(tmp_path / "up.pt2", "w") as crafted:
        for name, content in members.items():
            crafted.writestr(f"m/{name}", content)
        crafted.writestr("m/../../evil", b"")
    with pytest.raises(EsccError, match="member name"):
        open_model(tmp_path / "up.pt2")
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "twice.pt2", "w") as crafted:
        warnings.simplefilter("ignore")
        for name, content in members.items():
            crafted.writestr(f"m/{name}", content)
        crafted.writestr("m/models/model.json", b"{}")
    with pytest.raises(EsccError, match="twice"):
        open_model(tmp_path / "twice.pt2")


def test_a_member_that_claims_another_size_is_refused(archive: tuple[Path, Net], tmp_path: Path) -> None:
    raw = bytearray(attacks.write_members(tmp_path / "a.pt2", attacks.read_members(archive[0])).read_bytes())
    name = b"m/data/weights/weight_0"
    entry = raw.rindex(name)  # the central directory comes last
    struct.pack_into("<I", raw, entry - 46 + 24, 1 << 30)
    (tmp_path / "lie.pt2").write_bytes(raw)
    with pytest.raises(EsccError):
        open_model(tmp_path / "lie.pt2")


def test_unsafe_load_is_torch_s_own_loader(archive: tuple[Path, Net], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    members = attacks.read_members(archive[0])
    attacks.sample_inputs(members, marker)
    crafted = attacks.write_members(tmp_path / "crafted.pt2", members)
    with pytest.raises(EsccError, match="cannot load"):
        open_model(crafted, unsafe_load=True)
    assert marker.exists(), "the option says that it runs code, and it does"
