"""Opening torch.export archives without trusting them.

An archive can run code when torch loads it: through pickles (sample inputs, pickled weights, custom
objects), through compiled libraries, and through strings of the graph description that torch evaluates. So
the archive is read here as data, member by member, everything in it is checked, and torch is given a second
archive, written by this module from the checked values: raw tensors and a rebuilt graph description. No byte
of text reaches torch unread.
"""

from __future__ import annotations

import io
import json
import logging
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from escc.errors import EsccError
from escc.frontend.exported_schema import RefusedArchive, clean_program, clean_tensor, storage_bytes
from escc.frontend.zip_guard import GuardedZip

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MAX_JSON_BYTES = 256 << 20
MAX_TENSOR_BYTES = 16 << 30
SPOOL_BYTES = 256 << 20
NAME = re.compile(r"[\w.-]{1,200}")
MODEL = "model"

IGNORED = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)|\.format_version"
    r"|\.storage_alignment|extra/.*|data/sample_inputs/[^/]*\.pt"
)
"""Members that are either plain markers or are never read (sample inputs are pickles)."""
PAYLOAD = re.compile(r"data/(weights/weight|constants/tensor)_\d{1,9}")
RECIPE = "re-export it with escc.save(model, example, 'model.pt2')"


def load_exported(path: Path) -> ExportedProgram:
    """Check a torch.export archive and load what it says.

    Raises:
        EsccError: damaged, of another torch, or holding anything but a tensor graph and its numbers.
    """
    with GuardedZip(path) as archive, tempfile.SpooledTemporaryFile(SPOOL_BYTES) as rebuilt:
        try:
            _rebuild(archive, cast("IO[bytes]", rebuilt))
        except RefusedArchive as error:
            raise archive.fail(
                f"refused, the archive holds more than a plain graph: {error}", RECIPE
            ) from None
        rebuilt.seek(0)
        return _load(path, cast("IO[bytes]", rebuilt))


@dataclass(frozen=True)
class CheckedArchive:
    """What an archive says, all of it checked: the cleaned description, and its tables of stored tensors by
    folder, each with where its numbers lie (``path_name``) and their form (``tensor_meta``)."""

    program: dict[str, Any]
    tensors: dict[str, dict[str, dict[str, Any]]]


def read_archive(path: Path, keep: Callable[[str, bytes], None]) -> CheckedArchive:
    """Read and check an archive; ``keep(member, data)`` gets the stored numbers, once each.

    Raises:
        EsccError: a damaged file.
        RefusedArchive: it holds anything but a tensor graph and its numbers.
    """
    with GuardedZip(path) as archive:
        return _checked(archive, keep)


def _rebuild(archive: GuardedZip, target: IO[bytes]) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as output:

        def write(member: str, data: bytes) -> None:
            output.writestr(zipfile.ZipInfo(f"{MODEL}/{member}"), data)

        checked = _checked(archive, write)
        write("archive_format", b"pt2")
        write("archive_version", b"0")
        write("byteorder", b"little")
        write(".data/version", b"6\n")
        for folder, cleaned in checked.tensors.items():
            write(f"data/{folder}/{MODEL}_{folder}_config.json", json.dumps({"config": cleaned}).encode())
        write(f"data/sample_inputs/{MODEL}.pt", b"")
        write(f"models/{MODEL}.json", json.dumps(checked.program).encode())


def _checked(archive: GuardedZip, keep: Callable[[str, bytes], None]) -> CheckedArchive:
    root = archive.root()
    if not root:
        raise archive.fail("a torch.export archive without a root folder")
    members = {name.removeprefix(root) for name in archive.members}
    if archive.read(f"{root}archive_version", 64).strip() != b"0":
        raise archive.fail("a torch.export archive of another format version", RECIPE)
    if "byteorder" in members and archive.read(f"{root}byteorder", 64) != b"little":
        raise archive.fail("a torch.export archive from a big-endian machine", RECIPE)
    models = [name for name in members if re.fullmatch(r"models/[^/]+\.json", name)]
    if len(models) != 1:
        raise archive.fail(f"a torch.export archive with {len(models)} models; escc takes one", RECIPE)
    name = models[0].removeprefix("models/").removesuffix(".json")
    configs = {
        f"data/weights/{name}_weights_config.json": "weights",
        f"data/constants/{name}_constants_config.json": "constants",
    }
    for member in sorted(members):
        if not (
            member in configs or member == models[0] or IGNORED.fullmatch(member) or PAYLOAD.fullmatch(member)
        ):
            raise RefusedArchive(f"member {member[:80]!r}")
    program = clean_program(_json(archive, root + models[0]))
    tensors: dict[str, dict[str, dict[str, Any]]] = {}
    for config, folder in configs.items():
        payloads = _json(archive, root + config) if config in members else {"config": {}}
        tensors[folder] = _copy_payloads(archive, root, folder, payloads, keep)
    return CheckedArchive(program, tensors)


def _json(archive: GuardedZip, name: str) -> Any:
    try:
        return json.loads(archive.read(name, MAX_JSON_BYTES))
    except (ValueError, RecursionError):
        raise archive.fail(f"member {name!r} is not JSON") from None


def _copy_payloads(
    archive: GuardedZip, root: str, folder: str, payloads: Any, write: Any
) -> dict[str, dict[str, Any]]:
    """Check the table of stored tensors, copy their bytes, return the cleaned table."""
    config = payloads.get("config") if isinstance(payloads, dict) else None
    if not isinstance(config, dict):
        raise RefusedArchive("the table of tensors is malformed")
    result: dict[str, dict[str, Any]] = {}
    written: dict[str, int] = {}
    for name, item in cast("dict[str, Any]", config).items():
        entry: dict[str, Any] = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
        file = entry.get("path_name")
        if not NAME.fullmatch(name) or not isinstance(file, str):
            raise RefusedArchive("the table of tensors is malformed")
        member = f"data/{folder}/{file}"
        if not PAYLOAD.fullmatch(member):
            raise RefusedArchive(f"tensor {name!r} is stored as {file[:80]!r}, not as numbers")
        if entry.get("use_pickle"):
            raise RefusedArchive(f"tensor {name!r} is a pickled object")
        tensor = clean_tensor(entry.get("tensor_meta"))
        needed = storage_bytes(tensor)
        if file not in written:
            data = archive.read(root + member, MAX_TENSOR_BYTES)
            written[file] = len(data)
            write(member, data)
        if needed > written[file]:
            raise RefusedArchive(f"tensor {name!r} reaches beyond its {written[file]} bytes")
        result[name] = {
            "path_name": file,
            "is_param": bool(entry.get("is_param")),
            "use_pickle": False,
            "tensor_meta": tensor,
        }
    return result


def _load(path: Path, rebuilt: IO[bytes]) -> ExportedProgram:
    import torch

    register_operators()
    # SpooledTemporaryFile is not an io.IOBase everywhere; torch wants one.
    stream = rebuilt if isinstance(rebuilt, io.IOBase) else io.BytesIO(rebuilt.read())
    with quiet_torch(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.export.load(cast("Any", stream))
        except Exception as error:  # torch raises almost anything for a graph that does not fit together
            raise EsccError(
                f"torch {torch.__version__} cannot load this archive: {first_line(error)}",
                where=str(path),
                hint=RECIPE,
            ) from None


def register_operators() -> None:
    """Make torch know escc's own operators (``escc.frontend.custom_ops``): archives may contain them."""
    import_module("escc.frontend.custom_ops")


def first_line(error: BaseException) -> str:
    """The first telling line of another library's exception, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


@contextmanager
def quiet_torch() -> Generator[None]:
    """Silence torch's loggers: what matters is raised or returned."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
