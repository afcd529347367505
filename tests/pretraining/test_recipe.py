"""Recipes and their files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from backend.errors import InvalidSettings
from backend.pretraining.recipe import read_recipe, write_recipe
from tests.support import small_recipe as small

RECIPE = Path(__file__).parents[2] / "backend/models/gner-mini/recipe.json"


def test_rates_rise_stay_and_fall() -> None:
    schedule = replace(small.recipe().schedule, steps=100, warmup_steps=10, decay_steps=20)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(9) == schedule.rate(50) == schedule.rate(80) == 1.0
    assert schedule.rate(90) == pytest.approx(0.5)
    assert schedule.rate(99) == pytest.approx(0.05)


def test_the_bundled_recipe_never_trains_on_the_zero_shot_corpus() -> None:
    recipe = read_recipe(RECIPE)
    assert "crossner-ai" not in recipe.mixture.shares
    assert {*recipe.mixture.foreign} <= {*recipe.mixture.shares}


def test_a_wrong_recipe_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    with pytest.raises(InvalidSettings, match="cannot read"):
        read_recipe(path)
    write_recipe(small.recipe(), path)
    raw = json.loads(path.read_text())
    raw["schedule"]["stepz"] = raw["schedule"].pop("steps")
    path.write_text(json.dumps(raw))
    with pytest.raises(InvalidSettings, match=r"Schedule lacks \['steps'\] and does not know \['stepz'\]"):
        read_recipe(path)


def test_the_first_recipe_can_still_be_read() -> None:
    first = read_recipe(RECIPE.parents[2] / "pretraining/recipes/gner-mini-1.json")
    assert not first.architecture.marks_case
    assert "written" not in first.mixture.shares


def test_the_trial_of_a_second_recipe_can_be_read() -> None:
    trial = read_recipe(RECIPE.parents[2] / "pretraining/recipes/gner-mini-2-trial.json")
    assert trial.architecture.marks_case
    assert "written" in trial.mixture.shares
