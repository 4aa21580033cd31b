"""A command, its request and its Python function have the same options with the same defaults."""

import dataclasses
import inspect
from argparse import ArgumentParser
from importlib import import_module

import pytest

from van_classification_tensorflow import cli
from van_classification_tensorflow.support.options import add_options, from_options

# Command: what it must be given, and its Python function, if it has one.
COMMANDS = {
    "demo": ("", None),
    "train": ("--data digits --output x", "train.train:train"),
    "predict": ("x.png", "inference.classifier:Classifier"),
    "merge": ("x.csv", None),
    "explain": ("x.png --output x", "explanation.explain:explain"),
    "segment": ("x.png --weights x.pth --output x", "segment.segmenter:Segmenter"),
    "evaluate": ("--data digits", "evaluate.evaluate:evaluate"),
    "benchmark": ("", "benchmark.measure:benchmark"),
    "serve": ("", None),
    "convert": ("a.pth b.pth", "export.convert:convert"),
    "export": ("--output x.onnx", "export.export:export"),
    "push": ("hf://me/x --weights digits --output x", None),
    "pull": ("hf://me/x", None),
    "doctor": ("", None),
}
# The folder of a run on the command line; in Python, whether the run goes on.
OTHERWISE = {("train", "resume")}


def found(place):
    module, _, name = place.partition(":")
    return getattr(import_module(f"van_classification_tensorflow.{module}"), name)


def flat(record):
    """{field: default} of what is an option, those of a record inside included."""
    values = {}
    for one in dataclasses.fields(record):
        if "part" in one.metadata:
            values |= flat(one.metadata["part"])
        elif "option" in one.metadata and one.default is not dataclasses.MISSING:
            values[one.name] = one.default
    return values


def values_of(request):
    values = {}
    for one in dataclasses.fields(request):
        value = getattr(request, one.name)
        values |= values_of(value) if "part" in one.metadata else {one.name: value}
    return values


def test_every_command_is_here():
    assert set(COMMANDS) == {n for n, one in cli.COMMANDS.items() if isinstance(one, cli.Command)}


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults(command, tmp_path, monkeypatch):
    """Those of the record are those of the command line and those of the function."""
    monkeypatch.chdir(tmp_path)
    needed, function = COMMANDS[command]
    record = found(cli.COMMANDS[command].request)
    parser = ArgumentParser()
    add_options(parser, record)
    given = vars(parser.parse_args(needed.split()))
    defaults = {name: value for name, value in flat(record).items() if name not in given}
    request = from_options(record, given)
    assert {n: v for n, v in values_of(request).items() if n in defaults} == defaults
    if function:
        parameters = inspect.signature(found(function)).parameters.values()
        named = {p.name: p.default for p in parameters if p.default is not p.empty}
        named = {n: v for n, v in named.items() if (command, n) not in OTHERWISE}
        assert {n: v for n, v in named.items() if n in defaults} == {
            n: v for n, v in defaults.items() if n in named
        }
        assert len(set(named) & set(defaults))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help(command):
    record = found(cli.COMMANDS[command].request)
    parser = ArgumentParser()
    add_options(parser, record)
    for action in parser._actions:
        assert action.help
        assert "{" not in action.help
