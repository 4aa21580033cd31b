"""Every command and every piece of Python in README and the pages of docs/ runs.

In the order of its page, in a folder with what `stand_ins.py` puts there. `instead.py` lists what
is made smaller or cannot run here, each with its reason; nothing else is left out. `van` commands
run in this process, so that Keras starts once.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from argparse import ArgumentParser
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.stand_in_hub import Hub
from van_classification_tensorflow import cli
from van_classification_tensorflow.support.options import from_options

from . import stand_ins
from .blocks import ROOT, Block, blocks, commands, inline_commands, pages
from .instead import COMMANDS, DATA, PYTHON, Instead

PAGES = pages()
PLAIN = re.compile(r"[^|&;<>$`]*")  # needs no shell


# --- What can be told without running anything ---


@pytest.mark.parametrize("page", PAGES)
def test_kinds_of_blocks(page):
    found = {block.language for block in blocks(PAGES[page])}
    assert found <= DATA | {"bash", "python"}, found


def test_exceptions_are_of_what_is_there_and_say_why():
    assert set(COMMANDS) | set(PYTHON) <= set(PAGES)
    for page, changes in COMMANDS.items():
        there = [c for b in blocks(PAGES[page]) if b.language == "bash" for c in commands(b.text)]
        assert set(changes) <= set(there), set(changes) - set(there)
    for page, edits in PYTHON.items():
        text = "\n".join(b.text for b in blocks(PAGES[page]) if b.language == "python")
        for one in edits:
            assert text.count(one.old) == 1, one.old
    everyone = [one for changes in COMMANDS.values() for one in changes.values()]
    everyone += [one for edits in PYTHON.values() for one in edits]
    assert all(len(one.why) > 5 for one in everyone)


def test_commands_are_found():
    text = "van a \\\n    --b c   # why\n# alone\n\nvan d '#1'\n#SBATCH --x\n"
    assert commands(text) == ["van a --b c", "van d '#1'"]
    assert len([c for p in PAGES.values() for c in inline_commands(p)]) > 30


def options_of(command: str):
    """The request that `van` makes of a command before it begins any work."""
    arguments = shlex.split(command)[1:]
    parser = cli._Parser(prog="van")
    cli._add_commands(parser, cli.COMMANDS, arguments)
    options = vars(parser.parse_args(arguments))
    chosen = options.pop("command")
    options.pop("parser")
    return from_options(cli._found(chosen.request), options)


def _known_options(command: str) -> None:
    """Of a command in running text, which may leave out what it is given: its flags exist."""
    words = command.replace("[", "").replace("]", "").split()
    names, table = [], cli.COMMANDS
    for word in words[1:]:
        if not isinstance(table, dict) or word not in table:
            break
        names.append(word)
        table = table[word]
    wanted = [w.partition("=")[0] for w in words if w.startswith("--")]
    if isinstance(table, dict):  # `van --help`, `van weights`, `van COMMAND --help`
        assert set(wanted) <= {"--help", "--version"}, command
        assert names or len(words) == 1 or not words[1].islower() or words[1][0] == "-", command
        return
    parser = ArgumentParser()
    cli.add_options(parser, cli._found(table.request))
    known = {flag for action in parser._actions for flag in action.option_strings}
    assert set(wanted) <= known, command


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_running_text_are_known(page):
    for command in inline_commands(PAGES[page]):
        _known_options(command.replace("weights download|verify|path NAME", "weights download"))


# --- Running it ---


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """What is copied for every page, and the cache that all share."""
    folder, cache = tmp_path_factory.mktemp("reader"), tmp_path_factory.mktemp("cache")
    stand_ins.fill(folder)
    stand_ins.fill_cache(cache)
    return folder, cache


@pytest.fixture
def hub(filled, tmp_path, monkeypatch):
    """A hub on this machine, which alone is asked, also by the hub's own client."""
    pytest.importorskip("keras_hub", reason="needs the extra `keras-hub`")
    from huggingface_hub import constants

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VAN_OFFLINE", "0")
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        # It reads them when it is imported; Xet is a protocol that the stand-in does not speak.
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "client"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        stand_ins.fill_hub(hub, filled[0])
        yield hub


class Reader:
    """Does what a page says, in a folder."""

    def __init__(self, page: str, folder: Path):
        self.folder = folder
        self.changes = dict(COMMANDS.get(page, {}))
        self.edits = PYTHON.get(page, [])
        self.names: dict = {"__name__": "__main__"}
        exec(stand_ins.GIVEN.get(page, ""), self.names)  # noqa: S102 - of this repository
        self.servers: list[subprocess.Popen] = []
        self.port = "8000"
        (folder / "bin").mkdir()
        van = folder / "bin" / "van"
        van.write_text(f'#!/bin/sh\nexec {sys.executable} -m van_classification_tensorflow "$@"\n')
        van.chmod(0o755)
        (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")

    def follow(self, block: Block) -> None:
        if block.language == "python":
            self.python(block)
        elif block.language == "bash":
            for command in commands(block.text):
                instead = self.changes.get(command)
                if instead is None:
                    self.command(command)
                else:
                    self.instead(command, instead)

    def instead(self, command: str, one: Instead) -> None:
        if one.checked is not None:  # first, as the work may make a folder that is then in the way
            options_of(one.checked or command)
        for other in one.run.splitlines():
            self.command(other)

    def command(self, command: str) -> None:
        print(f"$ {command}")
        if command.startswith("pip install "):
            _check_requirements(command)
        elif command.startswith("van serve "):
            self.serve(command)
        elif command.startswith("van ") and PLAIN.fullmatch(command):
            self.van(shlex.split(command)[1:])
        else:
            self.shell(command.replace("localhost:8000", f"localhost:{self.port}"))

    def van(self, arguments: list[str]) -> None:
        try:
            cli.main(arguments)
        except SystemExit as stopped:
            if stopped.code:
                raise AssertionError(f"van {' '.join(arguments)}: exit {stopped.code}") from None
        if "--output" in arguments and "--shard" not in arguments:  # which writes a part of it
            assert Path(arguments[arguments.index("--output") + 1]).exists()

    def shell(self, command: str) -> None:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {
            "PATH": path,
            "HOME": str(self.folder),
            "CURL_HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
            check=False,
        )
        print(done.stdout, done.stderr)
        assert done.returncode == 0, command

    def serve(self, command: str) -> None:
        """In the background, at a free port, which later commands and blocks are given."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        arguments = [*shlex.split(command)[1:], "--port", self.port]
        server = subprocess.Popen(
            [sys.executable, "-m", "van_classification_tensorflow", *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        self.servers.append(server)
        for _ in range(600):
            assert server.poll() is None, command
            try:
                with urlopen(f"http://localhost:{self.port}/v2/health/ready", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"{command}: not ready after a minute")

    def python(self, block: Block) -> None:
        text = block.text
        for edit in self.edits:
            if edit.old not in text:
                continue
            if edit.new is None:
                ast.parse(text)
                return
            text = text.replace(edit.old, edit.new)
        text = text.replace("localhost:8000", f"localhost:{self.port}")
        # The numbers of the lines are those of the page.
        code = compile("\n" * block.line + text, "the page", "exec")
        exec(code, self.names)  # noqa: S102 - of this repository

    def close(self) -> None:
        for server in self.servers:
            server.send_signal(signal.SIGTERM)
        for server in self.servers:
            assert server.wait(60) == 0


def _check_requirements(command: str) -> None:
    """Nothing is installed here; .ci/run does. But what is asked for exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for one in shlex.split(command)[2:]:
        if one == "-e":
            continue
        name, extras = re.fullmatch(r"([\w.-]+)(?:\[([\w,-]+)\])?", one).groups()
        assert name in (".", project["name"]), command
        assert set((extras or "").split(",")) - {""} <= set(project["optional-dependencies"])


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_page(page, filled, tmp_path, monkeypatch, request):
    folder, cache = filled
    here = tmp_path / "reader"
    shutil.copytree(folder, here)
    # What the authors published is in the cache, and under its own name beside the pictures.
    os.link(next(cache.glob("van_b0.in1k/*.tar")), here / "van_tiny_754.pth.tar")
    monkeypatch.chdir(here)
    monkeypatch.setenv("VAN_CACHE", str(cache))
    monkeypatch.setenv("VAN_OFFLINE", "1")
    if page == "hubs":
        request.getfixturevalue("hub")
    reader = Reader(page, here)
    try:
        for block in blocks(PAGES[page]):
            reader.follow(block)
    finally:
        reader.close()
