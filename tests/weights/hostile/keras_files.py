"""`.keras` files: classes of strangers, configurations, and damaged weights in them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.weights.hostile.hdf5s import hdf5s
from tests.weights.hostile.payload import Payload
from tests.weights.hostile.writers import VAN_CONFIG, Part, hdf5, in_keras, nothing, saved, stored


def keras(folder: Path) -> Iterator[Payload]:
    def graph(*layers: Any) -> dict[str, Any]:
        module = "keras.src.models.functional"
        return {"module": module, "class_name": "Functional", "config": {"layers": [*layers]}}

    def inner(value: Any) -> dict[str, Any]:
        return {**VAN_CONFIG, "config": {**VAN_CONFIG["config"], "a": [{"b": value}]}}

    shell = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "x"}}
    foreign = {"module": "evil", "class_name": "Layer", "registered_name": "evil>Layer"}
    wrapper = {"module": "keras.layers", "class_name": "TorchModuleWrapper"}
    ours = {
        "module": "van_classification_tensorflow.model.layers",
        "class_name": "Block",
        "registered_name": "van_classification_tensorflow>Block",
    }
    function = {"module": "builtins", "class_name": "function", "config": "f"}
    for called, found, shown in (
        ("Lambda", shell, "keras.layers.Lambda"),
        ("a foreign class", foreign, "evil.Layer"),
        ("TorchModuleWrapper", wrapper, "TorchModuleWrapper"),
        ("a function", function, "builtins.function"),
        ("__lambda__", {"class_name": "__lambda__", "config": {"value": "x"}}, "__lambda__"),
        ("a class that is a list", {"module": "keras.layers", "class_name": [[]]}, "list"),
        ("a class that is none", {"module": "keras.layers", "class_name": None}, "NoneType"),
        ("a name that is a list", {**foreign, "registered_name": [1]}, "evil.Layer"),
    ):
        says = f"the class .*{shown}.* in its config.json"
        yield Payload(f"{called} as layer", says, in_keras(graph(ours, found)))
        hidden = {**ours, "config": {"layer": {"config": [found]}}}
        yield Payload(f"{called} in a layer of ours", says, in_keras(graph(hidden)))
        yield Payload(f"{called} in VAN", says, in_keras(inner(found)))
        top = {**found, "config": {}}
        yield Payload(f"{called} as model", "a model of class", in_keras(top))
    layers = json.dumps(graph("X")).encode()
    for called, left, right in (("lists", b"[", b"]"), ("objects", b'{"a":', b"}")):
        deep = layers.replace(b'"X"', left * 100_000 + b"1" + right * 100_000)
        yield Payload(f"{called} 100,000 deep", "config.json is nested too deep", in_keras(deep))
        cut = layers.replace(b'"X"]}}', left * 100_000)
        yield Payload(f"{called} without end", "nested too deep|is no JSON", in_keras(cut))
    # What is shown once for every level would be shown 900 times.
    chain: Any = ["a" * 1000] * 1000
    for _ in range(200):
        chain = {"module": chain, "registered_name": "a"}
    chain = {**foreign, "module": chain}
    yield Payload("a module of 200 modules", "the class 'dict.Layer'", in_keras(inner(chain)))
    for called, says, config in (
        ("no JSON", "config.json is no JSON", b"{"),
        ("empty", "config.json is no JSON", b""),
        ("no text", "config.json is no JSON", b"\xff\xfe\xfd"),
        ("half of UTF-16", "config.json is no JSON", b"\xff\xfe{"),
        ("a list", "describes no model", b"[]"),
        ("null", "describes no model", b"null"),
        ("without config", "describes no model", b"{}"),
        ("with a list", "describes no model", b'{"config": []}'),
        ("with a number of 1 MB", "digits|is no JSON", b'{"config": ' + b"9" * 1_000_000 + b"}"),
        ("with a key twice", "has a key twice", b'{"config": {"a": 1, "a": 2}}'),
        ("of 3 MB", "has 3,", b'{"config": "' + b" " * 3_000_000 + b'"}'),
        (
            "of empty objects",
            "a model of class",
            b'{"config": {"a": [' + b"{}," * 340_000 + b"{}]}}",
        ),
        ("of empty lists", "a model of class", b'{"config": {"a": [' + b"[]," * 340_000 + b"[]]}}"),
    ):
        yield Payload(f"a config.json that is {called}", says, in_keras(config))
    registered = json.dumps(VAN_CONFIG).encode().replace(b"[1]", b"[" + b"{}," * 340_000 + b"1]")
    damaged = in_keras(registered, b"\x89HDF\r\n\x1a\n")
    yield Payload("340,000 objects, then no weights", "damaged HDF5", damaged)
    config = Part("config.json", json.dumps(VAN_CONFIG).encode())
    weights = Part("model.weights.h5", hdf5(nothing))
    says = "the archive has no member 'config.json'"
    yield Payload("no config.json", says, stored([weights]))
    yield Payload("no weights", "it needs one data.pkl", stored([config]))
    yield Payload("config.json twice", "is there twice", stored([config, config, weights]))
    changed = replace(weights, crc=1)
    yield Payload("a wrong checksum", "its checksum does not fit", stored([config, changed]))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", config.content)
        archive.writestr("model.weights.h5", weights.content)
    yield Payload("compressed", "is compressed", packed.getvalue())
    for called, content in {"empty": b"", "a text": b"hello", "a pickle": saved()}.items():
        yield Payload(f"weights that are {called}", "HDF5", in_keras(weights=content))
    for one in hdf5s(folder):
        if not one.name.startswith(("a block before it", "25,000")):
            yield Payload(f"HDF5 in it: {one.name}", one.says, in_keras(weights=one.content))
