"""Model cards and the page of commands: made of the code, so complete by comparison with it."""

from __future__ import annotations

import importlib.util
import re
from argparse import ArgumentParser

import pytest

import van_classification_tensorflow as package
from van_classification_tensorflow import cli
from van_classification_tensorflow.spec.config import CONFIGURATIONS
from van_classification_tensorflow.weights.catalogue import CATALOGUE, SEGMENTATION

from .blocks import ROOT


@pytest.fixture(scope="module")
def made():
    path = ROOT / "docs" / "made_pages.py"
    spec = importlib.util.spec_from_file_location("made_pages", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sections(text, level):
    """{heading: what stands below it, until the next of its level or above}."""
    parts = re.split(rf"^#{{1,{level}}} (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_a_card_for_each_of_the_catalogue(made):
    cards = sections(made.model_cards(), 3)
    assert set(CATALOGUE) | set(CONFIGURATIONS) <= set(cards)
    for name, weights in CATALOGUE.items():
        card = cards[name]
        assert f"{weights.licence}; {weights.licence_note}" in card
        assert str(weights.preprocessing.input_size) in card
        assert weights.notes in card
        assert all(f"<{one.url}>" in card for one in weights.sources)
        assert all(f"`{one.sha256}`" in card for one in weights.sources if one.sha256)
        if weights.task == SEGMENTATION:
            assert f"| mIoU | {weights.miou:.1f} %" in card
            assert "| decoder | upernet of 512 channels |" in card
            assert "centre crop" not in card
        if weights.top1 is not None:
            assert f"{weights.top1:.2f} %, {weights.top5:.2f} %" in card
        if weights.parameters is not None:
            assert f"{weights.parameters:,}" in card


def test_cards_say_what_the_words_mean(made):
    card = sections(made.model_cards(), 3)["van_b0.in1k"]
    assert "shorter side to 248 (bicubic), centre crop 224, mean 0.5, std 0.5" in card
    assert "4,105,800" in card
    assert "commercial use" in card
    imagenet = sections(made.model_cards(), 3)["van_b4.in22k"]
    assert "mean 0.485 0.456 0.406" in imagenet
    assert "unverified" in imagenet


def test_the_table_has_a_row_for_each(made):
    rows = re.findall(r"^\| \[`([\w.]+)`\]\(#([\w-]+)\)", made.model_cards(), re.MULTILINE)
    assert [name for name, _ in rows] == list(CATALOGUE)
    assert "| 50.1 |" in next(r for r in made.model_cards().splitlines() if "b2.ade20k_u" in r)
    assert all(anchor == name.replace(".", "") for name, anchor in rows)


def test_every_command_with_every_option(made):
    pages = sections(made.commands(), 2)
    names = [name for name, _ in made._all_commands(cli.COMMANDS)]
    assert "van weights verify" in names
    assert set(names) <= set(pages)
    for name, command in made._all_commands(cli.COMMANDS):
        parser = ArgumentParser(add_help=False)
        cli.add_options(parser, cli._found(command.request))
        for action in parser._actions:
            assert all(f"`{flag}`" in pages[name] for flag in action.option_strings), name


def test_tables_have_as_many_cells_in_each_row(made):
    for text in (made.model_cards(), made.commands()):
        for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
            counts = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
            assert len(counts) == 1, table


def test_it_writes_only_what_has_changed(made, tmp_path):
    made.write(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set(before) == {"model-cards.md", "commands.md"}
    made.write(tmp_path)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "api.rst").read_text("utf-8")
    found = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", text, re.MULTILINE))
    assert set(package.__all__) - {"__version__"} - {f"VANB{i}" for i in range(1, 7)} <= found
    for name in found - set(package.__all__):
        module, _, last = name.rpartition(".")
        source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8")
        assert re.search(rf"^(def|class) {last}\b", source, re.MULTILINE), name
