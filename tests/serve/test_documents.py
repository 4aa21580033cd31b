"""What `docs/serve.md` shows is what there is."""

import re
from argparse import ArgumentParser
from dataclasses import fields
from pathlib import Path

import yaml

from van_classification_tensorflow.serve.app import App
from van_classification_tensorflow.serve.limits import Limits, Uploads
from van_classification_tensorflow.serve.request import ServeRequest
from van_classification_tensorflow.support.options import add_options

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text("utf-8")
OF_OTHERS = {
    "--mount",
    "--data-binary",
    "--no-cache-dir",
    "--no-deps",
    "--uid",
    "--read-only",
    "--cap-drop",
}


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def manifests():
    return [one for text in blocks("yaml") for one in yaml.safe_load_all(text)]


def inside(value):
    """All dictionaries within."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value:
        if isinstance(one, (dict, list)):
            yield from inside(one)


def options():
    parser = ArgumentParser()
    add_options(parser, ServeRequest)
    return {flag for action in parser._actions for flag in action.option_strings}


def test_options_that_are_shown_are_there():
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - OF_OTHERS
    assert shown
    assert not shown - options()


def test_defaults_that_are_shown():
    given = {one.name: one.default for one in fields(ServeRequest)}
    shown = re.findall(r"\| `--([\w-]+)` \| ([\d,]+) \|", PAGE)
    assert len(shown) > 4
    for name, value in shown:
        assert float(value.replace(",", "")) == given[name.replace("-", "_")], name
    assert Uploads(Limits(1, 1, 1, 1, 1, 1, 1).uploads).most == 256_000_000


def test_manifests_parse_and_ask_for_what_there_is():
    found = manifests()
    kinds = [one["kind"] for one in found]
    assert kinds == ["Deployment", "Service", "ServingRuntime", "InferenceService", "RayService"]
    probes = [one["httpGet"]["path"] for each in found for one in inside(each) if "httpGet" in one]
    assert len(probes) == 4
    assert set(probes) <= {one.path for one in App(None, None).web.routes}
    secured = [one for each in found for one in inside(each) if "readOnlyRootFilesystem" in one]
    assert [one["readOnlyRootFilesystem"] for one in secured] == [True, True]
    for each in found:
        for container in (one for one in inside(each) if "args" in one):
            flags = {one for one in container["args"] if one.startswith("--")}
            assert flags <= options()


def test_the_container_has_no_rights():
    (text,) = blocks("dockerfile")
    lines = text.splitlines()
    user = next(i for i, line in enumerate(lines) if line.startswith("USER"))
    assert not [line for line in lines[user:] if line.startswith(("RUN", "COPY"))]
    # What pyproject asks for, but the frameworks.
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    needed = re.search(r"\ndependencies = \[(.*?)\]", project, re.DOTALL)[1]
    needed += re.search(r"\nserve = \[(.*?)\]\n", project)[1]
    names = set(re.findall(r'"([a-z][a-z0-9-]*)[>=;!]', needed)) - {"keras", "tensorflow"}
    assert names <= set(text.split())


def test_metrics_that_are_shown_are_counted(client):
    text = client.get("/metrics").text
    shown = re.findall(r"`(van_\w+)", PAGE[PAGE.index("## Metrics") : PAGE.index("## A container")])
    assert len(shown) == 10
    for name in shown:
        assert f"# TYPE {name.removesuffix('_total')}" in text, name
