"""Recipes: what they may say, and that what they may not say is refused by name."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from escc.errors import EsccError
from escc.training.epochs import learning_rate
from escc.training.recipe import TrainOptions, load_recipe, shipped_recipes
from escc.training.transforms import transforms


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_read(name: str) -> None:
    recipe = load_recipe(name, transforms())
    assert recipe.phases
    assert any(phase.train for phase in recipe.phases)


def test_what_a_recipe_says_is_what_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'seed = 7\nprecision = "fp32"\n[data]\nmean = [0.5]\nstd = [0.25]\nflip = false\n'
        '[[phase]]\nkind = "train"\nname = "first"\nepochs = 3\nlearning_rate = 1\n'
        '[[phase]]\nkind = "prune"\nstd = 0.5\n',
    )
    recipe = load_recipe(path, transforms())
    assert (recipe.seed, recipe.precision, recipe.data.mean, recipe.data.flip) == (7, "fp32", (0.5,), False)
    first, second = recipe.phases
    assert first.train is not None
    assert (first.name, first.train.epochs, first.train.learning_rate) == ("first", 3, 1.0)
    assert (second.kind, second.name, second.options) == ("prune", "prune", {"std": 0.5})


def test_settings_change_phases_by_name_and_kind(tmp_path: Path) -> None:
    path = write(tmp_path, '[[phase]]\nkind = "train"\nname = "a"\n[[phase]]\nkind = "train"\nname = "b"\n')
    recipe = load_recipe(path, transforms(), ("a.epochs=5", "train.batch=32", "seed=3", "data.shift=4"))
    options = [phase.train for phase in recipe.phases]
    assert [(item.epochs, item.batch) for item in options if item] == [(5, 32), (1, 32)]
    assert (recipe.seed, recipe.data.shift) == (3, 4)
    assert recipe.digest != load_recipe(path, transforms()).digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no [[phase]]"),
        ("phase = 3", "no [[phase]]"),
        ('[[phase]]\nkind = "trian"', "did you mean 'train'"),
        ('[[phase]]\nkind = "train"\nepocs = 3', "did you mean 'epochs'"),
        ('[[phase]]\nkind = "train"\nepochs = "3"', "expected int"),
        ('[[phase]]\nkind = "train"\nepochs = -1', "not in 0"),
        ('[[phase]]\nkind = "train"\nschedule = "sinus"', "not one of one-cycle"),
        ('[[phase]]\nkind = "prune"\nstdd = 1', "did you mean 'std'"),
        ('sead = 1\n[[phase]]\nkind = "train"', "did you mean 'seed'"),
        ('seed = -1\n[[phase]]\nkind = "train"', "seed is -1"),
        ('[data]\nmean = 3\n[[phase]]\nkind = "train"', "no list of numbers"),
        ("[[phase]\n", "not TOML"),
    ],
)
def test_bad_recipes_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(EsccError) as caught:
        load_recipe(path, transforms())
    line = str(caught.value)
    assert message in line
    assert "\n" not in line
    assert "recipe.toml" in line


@pytest.mark.parametrize("setting", ["epochs", "nothing.epochs=3"])
def test_bad_settings(tmp_path: Path, setting: str) -> None:
    path = write(tmp_path, '[[phase]]\nkind = "train"\n')
    with pytest.raises(EsccError):
        load_recipe(path, transforms(), (setting,))


def test_an_unknown_name_suggests_one() -> None:
    with pytest.raises(EsccError, match="did you mean 'dense'"):
        load_recipe("dens", transforms())


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "steps", "constant"])
def test_schedules(schedule: str) -> None:
    options = TrainOptions(schedule=schedule, learning_rate=2.0, warm_up=0.25)
    rates = [learning_rate(options, step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(2.0, rel=0.01)
    assert min(rates) >= 0
    if schedule == "one-cycle":
        assert rates.index(max(rates)) == pytest.approx(250, abs=2)
        assert rates[0] < 0.02
    if schedule in ("one-cycle", "cosine"):
        assert rates[-1] < 1e-3
        assert all(a >= b for a, b in pairwise(rates[300:]))
    if schedule == "steps":
        assert (rates[499], rates[501], rates[751]) == pytest.approx((2.0, 0.2, 0.02))
