"""`van doctor`: what was found, for a person or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..support.console import messages, print_report, say, to_json
from .engines import Trial, try_all
from .look import look
from .request import DoctorRequest


def run(request: DoctorRequest) -> int:
    """Looks, tries the engines, and prints what was found; 1 where none runs."""
    found = look()
    trials: Mapping[str, Trial] = {}
    if not request.quick:
        if not request.json:
            say(messages(), "Trying the engines, each on a picture; Keras takes longest")
        trials = try_all()
        found["engines"] = {name: trial.to_dict() for name, trial in trials.items()}
    if request.json:
        print(to_json(found, indent=1))
    else:
        print_report(list(lines(found, trials)))
    return int(bool(trials) and not any(trial.runs for trial in trials.values()))


def lines(found: Mapping[str, Any], trials: Mapping[str, Trial]) -> Iterator[str]:
    """A word and what it is, each."""
    python, system, cpu = found["python"], found["system"], found["cpu"]
    yield f"version      {found['version']}"
    yield f"python       {python['version']} ({python['implementation']}), {python['executable']}"
    yield f"system       {system['platform']}{', a container' if system['in_container'] else ''}"
    yield f"processor    {cpu['name']}, {cpu['usable_cores']} of {cpu['cores']} cores"
    if cpu["features"] is not None:
        yield f"features     {', '.join(cpu['features']) or 'none of those that matter'}"
    if found["memory_bytes"]:
        yield f"memory       {found['memory_bytes'] / 2**30:.1f} GiB"
    yield f"keras        backend {found['keras']['backend']}"
    for name, version in found["packages"].items():
        yield f"package      {name} {version}"
    for name, trial in trials.items():
        yield f"engine       {_engine(name, trial)}"
    for name, extra in found["extras"].items():
        if extra["missing"]:
            yield f"extra        {name}: without {', '.join(extra['missing'])}: {extra['install']}"
    complete = [name for name, extra in found["extras"].items() if not extra["missing"]]
    if complete:
        yield f"extra        complete: {', '.join(complete)}"
    cache = found["cache"]
    state = "" if cache["writable"] else ", cannot be written to"
    state += f", {cache['problem']}" if "problem" in cache else ""
    yield (
        f"cache        {cache['folder']}: {cache['files']:,} files, {cache['bytes']:,} bytes{state}"
    )
    for name, problem in found.get("problems", {}).items():
        yield f"problem      {name}: {problem}"
    for name, value in found["environment"].items():
        yield f"environment  {name}={value}"


def _engine(name: str, trial: Trial) -> str:
    if not trial.runs:
        return f"{name}: does not run: {trial.problem}"
    text = f"{name} {trial.version}: answers in {trial.seconds:.1f} s"
    return f"{text}, on {', '.join(trial.devices)}" if trial.devices else text
