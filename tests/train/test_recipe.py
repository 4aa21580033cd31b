"""The recipe record: the authors' values, text, checks."""

import dataclasses
from typing import get_type_hints

import pytest

from van_classification_tensorflow.support.options import kind_of
from van_classification_tensorflow.train.recipe import (
    RECIPES,
    Recipe,
    choose_recipe,
    find_recipe,
)


def test_the_default_is_the_authors_recipe():
    r = RECIPES["imagenet"]
    assert (r.epochs, r.warmup_epochs, r.cooldown_epochs, r.total_epochs) == (300, 5, 10, 310)
    assert (r.learning_rate, r.min_learning_rate, r.warmup_learning_rate) == (1e-3, 1e-6, 1e-6)
    assert (r.batch_size, r.weight_decay, r.label_smoothing) == (1024, 0.05, 0.1)
    assert (r.mixup, r.cutmix, r.mix_probability, r.mix_switch) == (0.8, 1.0, 1.0, 0.5)
    assert (r.rand_augment, r.erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (r.crop_scale, r.crop_ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
    assert r.crop_interpolations == ("bilinear", "bicubic")
    assert (r.horizontal_flip, r.vertical_flip) == (0.5, 0.0)
    assert (r.clip_norm, r.average_decay, r.layer_decay) == (None, None, 1.0)
    rates = [r.drop_path(f"van_b{i}") for i in range(7)]
    assert rates == [0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.3]
    assert r.drop_path(None) == 0.1
    assert Recipe(drop_path_rate=0.0).drop_path("van_b6") == 0.0


def test_the_recipe_from_22k_is_the_authors():
    r = RECIPES["in22k-to-1k"]
    assert (r.batch_size, r.learning_rate, r.weight_decay, r.epochs) == (512, 5e-5, 1e-8, 30)
    assert (r.mixup, r.cutmix, r.head_scale, r.pretrained) == (0.0, 0.0, 1e-3, "in22k")


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_and_dict_give_the_recipe_back(name, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(str(RECIPES[name]), encoding="utf-8")
    assert find_recipe(str(path)) == RECIPES[name]
    assert Recipe.from_dict(RECIPES[name].to_dict()) == RECIPES[name]
    assert find_recipe(name) is RECIPES[name]


def test_a_file_names_what_differs_and_from_what(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: finetune\nlearning_rate: 1e-4\ncrop_scale: [0.5, 1]\n")
    assert find_recipe(str(path)) == RECIPES["finetune"].with_(
        learning_rate=1e-4, crop_scale=(0.5, 1.0)
    )
    path.write_text("epochs: 3\nwarmup_epochs: 1")
    assert find_recipe(str(path)) == Recipe(epochs=3, warmup_epochs=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "did you mean epochs"),
        ("epochs: many", "`epochs` must be a whole number"),
        ("recipe: best", "`recipe` must be one of imagenet"),
        ("recipe: [a]", "`recipe` must be one of imagenet"),
        ("recipe: {epochs: 4}\nepochs: 5", "beside `recipe` there is also epochs"),
        ("recipe: {epoch: 4}", "did you mean epochs"),
        ("- 1", "must hold fields"),
        ("a: [", "no YAML file"),
        ("!!python/object/apply:os.system ['exit 1']", "no YAML file"),
    ],
)
def test_a_wrong_file_is_named(text, message, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        find_recipe(str(path))
    assert "wrong.yaml" in str(error.value)


@pytest.mark.parametrize("wrong", [{"crop_pct": 0}, {"input_size": 0}, {"interpolation": ""}])
def test_nought_is_a_value_beside_pretrained_weights(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        RECIPES["finetune"].with_(model=None, pretrained="mine.pth", **wrong)


def test_lists_beside_pretrained_weights_are_overrides_of_theirs():
    one = RECIPES["finetune"].with_(model=None, pretrained="mine.pth", embed_dims=(16, 32))
    assert one.config() is None
    sizes = {"mlp_ratios": (2, 2), "depths": (1, 1)}
    assert one.with_(**sizes).config().num_stages == 2
    with pytest.raises(ValueError, match="same length"):
        one.with_(**sizes | {"depths": (1,)})


def test_unknown_recipe():
    with pytest.raises(ValueError, match="imagenet, finetune, in22k-to-1k, digits"):
        find_recipe("fine-tune")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "`epochs` must be at least 1"),
        ({"epochs": 2.5}, "`epochs` must be a whole number"),
        ({"epochs": True}, "`epochs` must be a whole number"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be a finite number"),
        ({"learning_rate": -1}, "`learning_rate` must be above 0"),
        ({"remat": 1}, "`remat` must be true or false"),
        ({"model": "b0"}, "`model` must be one of van_b0"),
        ({"crop_scale": 0.5}, "`crop_scale` must be a list"),
        ({"crop_scale": (0.5, 1.5)}, "at most 1"),
        ({"crop_ratio": (2, 1)}, "the smaller first"),
        ({"crop_ratio": ()}, "`crop_ratio` must be a list"),
        ({"mean": (0.5,)}, "`mean` and `std` go together"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "`mean` must hold one finite number per channel"),
        ({"crop_pct": 2}, "`crop_pct`"),
        ({"input_size": 16}, "`input_size` must be at least 17"),
        ({"batch_size": 10, "accumulation_steps": 3}, "multiple of `accumulation_steps`"),
        ({"warmup_epochs": 400}, "`warmup_epochs` are the first of `epochs`"),
        ({"clip_norm": 1.0, "devices": 2}, "`clip_norm` with several `devices`"),
        ({"accumulation_steps": 2, "devices": 2}, "`accumulation_steps` do not work"),
        ({"steps_per_execution": 2, "devices": 2}, "`steps_per_execution` with several"),
        ({"steps_per_execution": 2, "average_decay": 0.9}, "`average_decay` moves"),
        ({"embed_dims": (8, 16)}, "same length"),
        ({"class_weights": "equal"}, "`class_weights` must be balanced"),
        ({"sampling": True}, "`sampling` must be text"),
        ({"class_weights": "balanced", "sampling": "balanced"}, "leave one of them out"),
        ({"precision": "float16"}, "`precision` must be one of float32"),
        ({"average_decay": 1.0}, r"in \(0, 1\)"),
        ({"nonsense": 1}, "A recipe has no `nonsense`"),
    ],
)
def test_what_is_not_allowed(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe().with_(**changes)


def test_numbers_may_come_as_text_as_yaml_reads_them():
    assert Recipe().with_(learning_rate="1e-4", epochs="20").learning_rate == 1e-4


def test_every_field_is_documented_and_has_a_kind():
    kinds = {name: kind_of(hint) for name, hint in get_type_hints(Recipe).items()}
    assert list(kinds) == [field.name for field in dataclasses.fields(Recipe)]
    for field in dataclasses.fields(Recipe):
        assert len(field.metadata["option"].help) > 8
    assert {kind for kind, _ in kinds.values()} == {int, float, str, bool}
    assert kinds["crop_scale"] == (float, True)
    assert kinds["embed_dims"] == (int, True)
    assert kinds["clip_norm"] == (float, False)


def test_what_a_command_line_means():
    assert choose_recipe(None, "folder", {}) == RECIPES["imagenet"]
    assert choose_recipe(None, "digits", {}) == RECIPES["digits"]
    assert choose_recipe(None, "folder", {"pretrained": "imagenet"}) == RECIPES["finetune"]
    digits = choose_recipe(None, "digits", {"pretrained": "digits"})
    assert (digits.layer_decay, digits.input_size, digits.model) == (0.8, None, None)
    # A file says its own sizes, unless they are asked for.
    assert choose_recipe(None, "folder", {"pretrained": "my.pth"}).model is None
    asked = {"pretrained": "my.pth", "model": "van_b1"}
    assert choose_recipe(None, "folder", asked).model == "van_b1"
    assert choose_recipe("imagenet", "digits", {"epochs": 9}).epochs == 9


def test_fewer_epochs_get_a_shorter_warm_up():
    for epochs, warmup in ((1, 0), (2, 1), (3, 1), (4, 1), (8, 2), (11, 2), (12, 3), (60, 3)):
        assert RECIPES["finetune"].with_(epochs=epochs).warmup_epochs == warmup
    assert choose_recipe("finetune", "folder", {"epochs": "2"}).warmup_epochs == 1
    assert RECIPES["imagenet"].with_(epochs=100).warmup_epochs == 5
    with pytest.raises(ValueError, match="`warmup_epochs` are the first of `epochs`"):
        RECIPES["finetune"].with_(epochs=2, warmup_epochs=3)  # as it was asked for
    with pytest.raises(ValueError, match="`epochs` must be at least 1"):
        RECIPES["finetune"].with_(epochs=-3)


def test_differences():
    ours, theirs = Recipe(), Recipe(epochs=9, seed=1)
    assert ours.differences(theirs) == {"epochs": (300, 9), "seed": (0, 1)}
