"""Recipes: what ``escc compress`` does to a network, phase after phase, as a TOML file."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, cast

from escc.errors import EsccError

SCHEDULES = ("one-cycle", "cosine", "steps", "constant")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("auto", "bf16", "fp32")
HALVES = ("all", "coefficients", "bases")
NORMS = ("batch", "frozen")

_LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (0, 100_000),
    "batch": (1, 1 << 20),
    "learning_rate": (0, 1e3),
    "coefficient_rate": (0, 1e6),
    "warm_up": (0, 1),
    "momentum": (0, 1),
    "weight_decay": (0, 1e3),
    "label_smoothing": (0, 0.999),
    "l1": (0, 1e6),
    "swap_every": (0, 100_000),
    "distill": (0, 1),
    "temperature": (1e-3, 1e3),
    "clip": (0, 1e6),
    "shift": (0, 1 << 12),
    "validation": (0, 1 << 40),
    "limit": (0, 1 << 40),
}
"""Inclusive range of each number in a recipe."""


@dataclass(frozen=True)
class DataOptions:
    """How images are prepared.

    Attributes:
        mean, std: per channel, for images in 0..1; empty: measured on the training images.
        flip: mirror half of the training images.
        shift: move training images by up to that many pixels.
        validation: how many training images are held out to watch the training (0: the test images are).
        limit: use only the first so many training images (0: all).
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    flip: bool = True
    shift: int = 2
    validation: int = 0
    limit: int = 0


@dataclass(frozen=True)
class TrainOptions:
    """One training phase.

    Attributes:
        epochs: passes over the training images.
        batch: images per step, over all processes.
        optimizer: "sgd" (momentum) or "adamw".
        learning_rate: peak of the schedule.
        coefficient_rate: factor of the rate for the coefficients of decomposed layers. Ternary ones change
            when their latent number has travelled half a unit, which takes larger steps than other weights.
        schedule: "one-cycle" (linear up over ``warm_up`` of all steps, cosine down to 0), "cosine", "steps"
            (a tenth at 50 % and 75 % of the steps, as PENNI trains), "constant".
        momentum, nesterov, weight_decay: of the optimizer.
        decay_all: decay biases and normalisation, too; else only tensors of two and more dimensions.
        label_smoothing: of the cross entropy.
        l1: weight of the sum of all |coefficients| (PENNI's convention: a raw sum, not a mean).
        train: which half of the decomposed layers learns: "all", "coefficients", "bases". What is no
            decomposed layer always learns.
        swap_every: epochs after which coefficients and bases take turns (0: never); starts with
            ``train``, or with the coefficients.
        penni_turns: make the first turn an epoch shorter, as PENNI's code does.
        norm: "batch" (batch norms use and update batch statistics) or "frozen" (they keep their statistics).
        distill: weight of the teacher's soft labels in the loss; the teacher is the network as it was before
            the first transform.
        temperature: of the soft labels (Hinton et al. 2015; their loss is scaled by its square).
        clip: largest norm of the gradient (0: any).
        augment: flips and shifts as [data] says.
    """

    epochs: int = 1
    batch: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    coefficient_rate: float = 1.0
    schedule: str = "one-cycle"
    warm_up: float = 0.2
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = False
    label_smoothing: float = 0.0
    l1: float = 0.0
    train: str = "all"
    swap_every: int = 0
    penni_turns: bool = False
    norm: str = "batch"
    distill: float = 0.0
    temperature: float = 4.0
    clip: float = 0.0
    augment: bool = True


@dataclass(frozen=True)
class Phase:
    """A step of a recipe: a training phase (``train`` is set) or a transform with its options."""

    kind: str
    name: str
    train: TrainOptions | None
    options: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A whole recipe.

    Attributes:
        seed: of everything random.
        precision: "bf16" (autocast), "fp32", or "auto": bf16 where the machine is fast at it.
        data: preparation of the images.
        phases: in order.
        source: where it was read.
    """

    seed: int = 0
    precision: str = "auto"
    data: DataOptions = field(default_factory=DataOptions)
    phases: tuple[Phase, ...] = ()
    source: str = ""

    @property
    def digest(self) -> str:
        """Identifies everything that decides the result."""
        content = {key: value for key, value in asdict(self).items() if key != "source"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with escc."""
    folder = resources.files("escc.training") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(source: str, transforms: dict[str, Any], settings: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe from a file, or a shipped one by its bare name.

    Args:
        source: path or name.
        transforms: known transforms by kind; their signatures check the options.
        settings: changes such as ``seed=3``, ``data.shift=4`` or ``phase-name.epochs=2``.

    Raises:
        EsccError: unreadable, an unknown key, kind or choice, a value out of range; with the phase's name.
    """
    path = Path(source)
    try:
        if path.suffix == ".toml" or path.exists():
            text = path.read_text(encoding="utf-8")
        elif source in shipped_recipes():
            text = (resources.files("escc.training") / "recipes" / f"{source}.toml").read_text("utf-8")
        else:
            close = difflib.get_close_matches(source, shipped_recipes(), n=1)
            raise EsccError(
                f"no recipe '{source}'",
                hint=f"did you mean '{close[0]}'?" if close else f"shipped: {', '.join(shipped_recipes())}",
            )
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise EsccError(f"cannot read: {error}", where=source) from None
    except tomllib.TOMLDecodeError as error:
        raise EsccError(f"not TOML: {error}", where=source) from None
    for setting in settings:
        _apply_setting(table, setting)
    return _recipe(table, transforms, source)


def _apply_setting(table: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals:
        raise EsccError(f"'{setting}' is not KEY=VALUE")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    place, dot, option = key.rpartition(".")
    if not dot:
        table[key] = value
    elif place == "data":
        table.setdefault("data", {})[option] = value
    else:
        phases: list[dict[str, Any]] = [
            phase
            for phase in cast("list[Any]", table.get("phase", []))
            if isinstance(phase, dict) and place in (phase.get("name"), phase.get("kind"))
        ]
        if not phases:
            raise EsccError(f"no phase '{place}' to set '{option}' of")
        for phase in phases:
            phase[option] = value


def _recipe(table: dict[str, Any], transforms: dict[str, Any], source: str) -> Recipe:
    _only(table, ("seed", "precision", "data", "phase"), source)
    seed, precision = table.get("seed", 0), table.get("precision", "auto")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 31:
        raise EsccError(f"seed is {seed!r}, not a whole number from 0 on", where=source)
    if precision not in PRECISIONS:
        raise EsccError(f"precision is {precision!r}, not one of {', '.join(PRECISIONS)}", where=source)
    phases = table.get("phase", [])
    if not isinstance(phases, list) or not phases:
        raise EsccError("has no [[phase]]", where=source)
    data = table.get("data", {})
    if not isinstance(data, dict):
        raise EsccError("data is no table", where=source)
    found = [
        _phase(item, index, transforms, source) for index, item in enumerate(cast("list[Any]", phases), 1)
    ]
    options = _fill(DataOptions, cast("Any", data), f"{source}: [data]")
    return Recipe(
        seed, precision, options, tuple(found), source
    )


def _phase(item: Any, index: int, transforms: dict[str, Any], source: str) -> Phase:
    if not isinstance(item, dict):
        raise EsccError(f"phase {index} is no table", where=source)
    options = dict(cast("dict[str, Any]", item))
    kind = options.pop("kind", None)
    name = options.pop("name", kind)
    where = f"{source}: phase {index} ({name})"
    known = ["train", *transforms]
    if kind not in known:
        close = difflib.get_close_matches(str(kind), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"kinds: {', '.join(known)}"
        raise EsccError(f"unknown kind {kind!r}", where=where, hint=hint)
    if not isinstance(name, str) or not name:
        raise EsccError("name is no text", where=where)
    if kind == "train":
        train = _fill(TrainOptions, options, where)
        for option, choices in (
            ("schedule", SCHEDULES),
            ("optimizer", OPTIMIZERS),
            ("train", HALVES),
            ("norm", NORMS),
        ):
            if getattr(train, option) not in choices:
                raise EsccError(
                    f"{option} is {getattr(train, option)!r}, not one of {', '.join(choices)}", where=where
                )
        return Phase(kind, name, train, {})
    _only(options, transforms[kind].options, where)
    return Phase(kind, name, None, options)


def _only(table: dict[str, Any], known: Any, where: str) -> None:
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            raise EsccError(f"unknown key '{key}'", where=where, hint=hint)


def _fill(kind: Any, table: dict[str, Any], where: str) -> Any:
    """A dataclass from a table; types as its defaults have them."""
    _only(table, [item.name for item in fields(kind)], where)
    values: dict[str, Any] = {}
    for item in fields(kind):
        if item.name not in table:
            continue
        value: Any = table[item.name]
        default = item.default
        if isinstance(default, tuple):
            if not isinstance(value, list) or not all(
                isinstance(entry, int | float) for entry in cast("list[Any]", value)
            ):
                raise EsccError(f"{item.name} is no list of numbers", where=where)
            value = tuple(float(entry) for entry in cast("list[Any]", value))
        elif isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif type(value) is not type(default):
            raise EsccError(f"{item.name} is {value!r}, expected {type(default).__name__}", where=where)
        if item.name in _LIMITS:
            low, high = _LIMITS[item.name]
            if not low <= value <= high:
                raise EsccError(f"{item.name} is {value}, not in {low:g}..{high:g}", where=where)
        values[item.name] = value
    return kind(**values)
