"""What can be seen without running anything: packages, extras, processor, cache, environment.

Nothing is imported for it, and nothing that is broken keeps it from being said.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..support.cores import cores
from ..support.text import one_line, printable
from ..weights.cache import cache_dir
from ..weights.download import shown

_PACKAGE = "van-classification-tensorflow"
PACKAGES = (
    "keras",
    "tensorflow",
    "jax",
    "jaxlib",
    "torch",
    "keras-hub",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "nncf",
    "ai-edge-litert",
    "pillow",
    "safetensors",
    "requests",
    "huggingface-hub",
    "transformers",
    "grain",
    "pyarrow",
    "matplotlib",
    "fastapi",
    "ray",
)
_CONTAINERS = ("/.dockerenv", "/run/.containerenv")
_FOR_DEVELOPERS = ("browser", "dev", "test")
# Features of processors that decide how fast a model runs, and in which precisions.
_FEATURES = {
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "avx512_bf16": "AVX-512 bfloat16",
    "avx512_fp16": "AVX-512 float16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX bfloat16",
    "amx_int8": "AMX int8",
    "asimd": "NEON",
    "asimddp": "NEON int8",
    "bf16": "bfloat16",
    "sve": "SVE",
    "i8mm": "int8 matrices",
}
_SECRET = re.compile(
    r"TOKEN|SECRET|PASS|PWD|PRIVATE|KEY|CRED|AUTH|COOKIE|(?<![A-Z])PIN(?![A-Z])", re.I
)
_MATTER = re.compile(
    r"(VAN|HF|HUGGINGFACE|HUGGING_FACE|KERAS|JAX|XLA|CUDA|NVIDIA|ROCR|HIP|TORCH|PYTORCH|OMP|MKL"
    r"|OPENBLAS|ONNXRUNTIME|ORT|OPENVINO|RAY|SLURM_CPUS|TORCHDYNAMO)_[A-Z0-9_]*"
    r"|TF2?_(?!VAR_|CLI_)[A-Z0-9_]*|PYTHON[A-Z0-9]*"  # not Terraform's
    r"|(HTTPS?|ALL|NO)_PROXY|REQUESTS_CA_BUNDLE|SSL_CERT_(FILE|DIR)|CURL_CA_BUNDLE|LANG|LC_ALL"
    r"|XDG_CACHE_HOME|COLUMNS|NO_COLOR|LD_LIBRARY_PATH|LD_PRELOAD",
    re.I,
)


def look() -> dict[str, Any]:
    """All of it, as JSON can hold it; what could not be seen in "problems", with the reason."""
    problems: dict[str, str] = {}

    def seen(name: str, part: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return part()
        except Exception as error:  # whatever is broken here: the rest is said all the same
            problems[name] = one_line(error)
            return otherwise

    unknown_cpu = {"name": "", "cores": os.cpu_count(), "usable_cores": None, "features": None}
    unknown_cache = {"folder": "", "files": 0, "bytes": 0, "writable": False}
    found = {
        "version": __version__,
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
        },
        "system": {
            "platform": platform.platform(),
            "machine": platform.machine(),
            "in_container": any(map(os.path.exists, _CONTAINERS)),
        },
        "cpu": seen("cpu", cpu, unknown_cpu),
        "memory_bytes": seen("memory", _memory, None),
        "keras": {"backend": seen("keras", backend, "")},
        "packages": seen("packages", packages, {}),
        "extras": seen("extras", extras, {}),
        "cache": seen("cache", cache, unknown_cache),
        "environment": seen("environment", partial(environment, os.environ), {}),
    }
    return found | ({"problems": problems} if problems else {})


def packages() -> dict[str, str]:
    """{package that matters: its version} of those that are installed."""
    return {name: version for name in PACKAGES if (version := version_of(name))}


def version_of(distribution: str) -> str:
    """Version of an installed package; "" where there is none."""
    try:
        return metadata.version(distribution) or "?"
    except (metadata.PackageNotFoundError, ValueError, OSError):
        return ""


def extras() -> dict[str, dict[str, Any]]:
    """{extra of this package: what of it is missing, and what installs it}; {} if not installed."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.version import InvalidVersion, Version

    try:
        requirements = metadata.requires(_PACKAGE) or []
        names = metadata.metadata(_PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(names):
        if name in _FOR_DEVELOPERS:
            continue
        lacking = []
        for text in requirements:
            try:
                one = Requirement(text)
            except InvalidRequirement:
                continue
            needed = one.marker is not None and one.marker.evaluate({"extra": name})
            if not needed or one.marker.evaluate({"extra": ""}):
                continue
            there = version_of(one.name)
            if not there:
                lacking.append(one.name)
                continue
            try:
                fits = there == "?" or one.specifier.contains(Version(there), prereleases=True)
            except InvalidVersion:  # of a build of one's own: who knows
                fits = True
            if not fits:
                lacking.append(f"{one.name}{one.specifier} (here: {there})")
        lacking = list(dict.fromkeys(lacking))  # one that two of its extras need
        found[name] = {"missing": lacking, "install": f"pip install '{_PACKAGE}[{name}]'"}
    return found


def backend() -> str:
    """The backend that Keras will start with, by the environment or by its own file."""
    if chosen := os.environ.get("KERAS_BACKEND"):
        return chosen
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    try:
        text = Path(home, "keras.json").read_text("utf-8")
        chosen = json.loads(text).get("backend")
    except (OSError, ValueError, AttributeError, RecursionError):
        chosen = None
    return chosen if isinstance(chosen, str) else "tensorflow"


def cpu() -> dict[str, Any]:
    """Name, cores and features of the processor."""
    name, flags = platform.processor(), set()
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Processor"):
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags |= set(value.split())
    return {
        "name": name or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": cores(),
        # None: this system does not say.
        "features": [what for flag, what in _FEATURES.items() if flag in flags] if flags else None,
    }


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def cache() -> dict[str, Any]:
    """Where weights are kept, and how much of them there is."""
    folder = cache_dir()
    size = files = 0
    problem = ""
    try:
        if os.path.lexists(folder):
            os.scandir(folder).close()  # says what `rglob` passes over
        for path in folder.rglob("*"):
            if path.is_file():
                files += 1
                size += path.stat().st_size
    except OSError as error:
        problem = one_line(error)
    effective = os.access in os.supports_effective_ids
    nearest = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    return {
        "folder": str(folder),
        "files": files,
        "bytes": size,
        "writable": os.path.isdir(nearest)
        and os.access(nearest, os.W_OK | os.X_OK, effective_ids=effective),
        **({"problem": problem} if problem else {}),
    }


def environment(variables: Any) -> dict[str, str]:
    """{variable that matters: value}; of secrets only that they are set."""
    return {
        name: "(set)" if _SECRET.search(name) else _without_password(name, value)
        for name, value in sorted(variables.items())
        if _MATTER.fullmatch(name)
    }


def _without_password(name: str, value: str) -> str:
    return printable(shown(value, bare=name.upper().endswith("_PROXY")))
