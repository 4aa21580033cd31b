"""`van benchmark`: the measurements of `benchmark/measure.py` as tables, files and pictures."""

from __future__ import annotations

import csv
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..support import plots
from ..support.console import Shortened, common_folder, messages, results, say, to_json
from ..support.result_folder import write_folder
from ..support.text import printable
from .measure import Measurement, Setting, UnsteadyError, measure, setting_words
from .request import FILES, BenchmarkRequest


def run(request: BenchmarkRequest, console: Console | None = None) -> int:
    """Measures, prints and writes; 1 where launches disagree.

    Of a contender whose launches disagree there are no figures; of all others there are.

    Args:
        request: What to do.
        console: Where the tables go.

    Raises:
        ValueError: As `benchmark`.
        OSError: As `benchmark`; or the output cannot be written.
        ModuleNotFoundError: As `benchmark`.
    """
    errors, unsteady, output = messages(), "", request.output
    try:
        found = measure(request, errors)
    except UnsteadyError as error:
        found, unsteady = list(error.steady), f"van: {error}"
    console = console or results()
    if found:
        report(found, console)
    if output is not None and found:
        write(found, output, request.overwrite)
        say(console, f"{printable(output)}: {', '.join(FILES)}")
    if unsteady:  # last, where it is seen
        say(errors, unsteady)
    return 1 if unsteady else 0


def report(found: Sequence[Measurement], console: Console) -> None:
    """Prints what the contenders are, and a table of figures for each size."""
    where = machine()
    threads = found[0].threads or "the engines' own choice of"
    console.print(
        f"{where['cpu']}, {where['cores']} cores, {threads} threads", highlight=False, markup=False
    )
    contenders = dict.fromkeys((one.weights, one.engine) for one in found)
    numbers = {key: number for number, key in enumerate(contenders, 1)}
    console.print(_table(found, "", _STATIC, numbers))
    for setting, there in _by_setting(found).items():
        console.print()
        title = _title(setting)
        macs = sorted({one.macs for one in there if one.macs is not None})
        if macs:
            title += f": {', '.join(f'{n / 1e9:.3f}' for n in macs)} GMACs an image"
        console.print(_table(there, title, _FIGURES, numbers))


def _number(digits: int, attribute: str, scale: float = 1) -> Callable[[Measurement], str]:
    def text(one: Measurement) -> str:
        value = getattr(one, attribute)
        if value is None:
            return "-"
        more = value / scale < 10 and digits == 1  # milliseconds of a small model
        return f"{value / scale:,.{digits + more}f}"

    return text


_STATIC: dict[str, Callable[[Measurement], str]] = {
    "Precision": lambda one: one.precision,
    "Parameters, M": _number(2, "parameters", 1e6),
    "File, MB": _number(2, "file_bytes", 1e6),
}
_FIGURES = {
    "p50 ms": _number(1, "latency_p50_ms"),
    "p99 ms": _number(1, "latency_p99_ms"),
    "Images/s": _number(1, "images_per_second"),
    "Peak MB": _number(0, "peak_mb"),
    "+ MB": _number(0, "above_base_mb"),
    "Cold s": _number(2, "cold_start_s"),
    "Load s": _number(2, "load_s"),
    "Cores": _number(2, "cores_used"),
    "Spread": _number(2, "spread"),
}


def _table(
    found: Sequence[Measurement],
    title: str,
    columns: Mapping[str, Callable[[Measurement], str]],
    numbers: Mapping[tuple[str, str], int],
) -> Table:
    """A row for each contender, by its number; narrow enough for a terminal of 80 columns.

    The first table, without a title, has the whole names; in the others a row is one line.
    """
    table = Table(title=title or None, title_justify="left", padding=(0, 0, 0, 1), box=None)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    short, engines = _short_names(found), Counter(weights for weights, _ in numbers)
    rows = {(one.weights, one.engine): [cell(one) for cell in columns.values()] for one in found}
    for key, cells in rows.items():
        weights, engine = short[key].rsplit("\n", 1)
        if engines[key[0]] > 1:
            weights = f"{weights}, {engine}"
        name = Shortened(weights) if title else Text(_two_lines(key))
        table.add_row(str(numbers[key]), name, *map(Text, cells))
    return table


def _title(setting: Setting) -> str:
    return setting_words(setting).capitalize()


def _by_setting(found: Sequence[Measurement]) -> dict[Setting, list[Measurement]]:
    settings: dict[Setting, list[Measurement]] = {}
    for one in found:
        settings.setdefault((one.batch_size, (one.height, one.width)), []).append(one)
    return settings


def machine() -> dict[str, Any]:
    """What the figures are of: processor, cores, system."""
    cpu = platform.processor() or platform.machine()
    told = Path("/proc/cpuinfo")
    if told.exists():
        names = [x for x in told.read_text(encoding="utf-8").splitlines() if "model name" in x]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    allowed = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0))
    return {
        "cpu": cpu,
        "cores": allowed or os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


# --- Files ---


def write(found: Sequence[Measurement], output: Path, overwrite: bool = False) -> None:
    """Writes tables and pictures to the folder `output`: all of them, or nothing.

    Raises:
        OSError: It cannot be written, or is in the way.
    """

    def fill(folder: Path) -> None:
        _write_csv(found, folder / "benchmark.csv")
        _write_launches(found, folder / "launches.json")
        draw_latency(found, folder / "latency.png")
        draw_throughput(found, folder / "throughput.png")

    write_folder(output, FILES, "benchmark", overwrite, fill)


def _write_csv(found: Sequence[Measurement], path: Path) -> None:
    columns = [f.name for f in fields(Measurement) if f.name != "launches"]
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([getattr(one, column) for column in columns] for one in found)


def _write_launches(found: Sequence[Measurement], path: Path) -> None:
    document = {
        "package": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "measurements": [asdict(one) for one in found],
    }
    path.write_text(to_json(document, indent=1) + "\n", encoding="utf-8")


# --- Pictures ---


def _short_names(found: Sequence[Measurement]) -> dict[tuple[str, str], str]:
    """{(weights, engine): what is short for it}: the file's name, where it tells them apart."""
    pairs = list(dict.fromkeys((one.weights, one.engine) for one in found))
    short = [_two_lines((Path(weights).name, engine)) for weights, engine in pairs]
    if len(set(short)) < len(pairs):
        folder = common_folder([weights for weights, _ in pairs])
        short = [_two_lines((weights.removeprefix(folder).lstrip("/"), e)) for weights, e in pairs]
    return dict(zip(pairs, short, strict=True))


def _two_lines(pair: tuple[str, str]) -> str:
    return "\n".join(map(printable, pair))


def _texts(figure: Any, names: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    """The names as they may be drawn."""
    return dict(zip(names, plots.shown_lines(figure, list(names.values()), 40), strict=True))


def _bars(
    found: Sequence[Measurement],
    path: Path,
    label: str,
    attribute: str,
    words: Callable[[Measurement], str],
    up_to: str | None = None,
) -> None:
    """Horizontal bars, one panel for each size; a line on to the attribute `up_to`."""
    from matplotlib.figure import Figure

    names, settings = _short_names(found), _by_setting(found)
    rows = [len(there) for there in settings.values()]
    # Inches: a bar with its two lines of text, and the title and axis of its panel.
    figure = Figure(
        figsize=(9, 0.5 + 0.55 * sum(rows) + 0.85 * len(rows)), dpi=110, layout="constrained"
    )
    heights = [n + 0.4 for n in rows]
    panels = list(figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0])
    texts = _texts(figure, names)
    colours = {name: f"C{i % 10}" for i, name in enumerate(names)}
    for axes, (setting, there) in zip(panels, settings.items(), strict=True):
        places = range(len(there))
        values = [getattr(one, attribute) for one in there]
        ends = values if up_to is None else [getattr(one, up_to) for one in there]
        keys = [(one.weights, one.engine) for one in there]
        axes.barh(places, values, height=0.6, color=[colours[key] for key in keys])
        for place, one, value, end in zip(places, there, values, ends, strict=True):
            if up_to is not None:
                axes.plot([value, end], [place, place], color="black", linewidth=1.2, marker="|")
            axes.annotate(words(one), (end, place), (6, 0), textcoords="offset points", va="center")
        axes.set_yticks(places, [texts[key] for key in keys])
        axes.set(title=_title(setting), ylim=(len(there) - 0.5, -0.5))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    longest = max(getattr(one, up_to or attribute) for one in found)
    for axes in panels:  # one scale, so that bars can be compared
        axes.set_xlim(0, longest * 1.35)  # room for the words
    panels[-1].set_xlabel(label)
    plots.save(figure, path)


def draw_latency(found: Sequence[Measurement], path: Path) -> None:
    """Bars of the median time of a call, with a line on to the 99th percentile."""
    _bars(
        found,
        path,
        "Milliseconds a call: bar to the median, line to the 99th percentile",
        "latency_p50_ms",
        lambda one: f"{one.latency_p50_ms:.1f}, p99 {one.latency_p99_ms:.1f}",
        "latency_p99_ms",
    )


def draw_throughput(found: Sequence[Measurement], path: Path) -> None:
    """Images a second against the batch size; bars where there is but one batch size."""
    if len({one.batch_size for one in found}) == 1:
        text = _number(1, "images_per_second")
        _bars(found, path, "Images a second", "images_per_second", text)
        return
    from matplotlib.figure import Figure

    names = _short_names(found)
    sizes = sorted({(one.height, one.width) for one in found})
    figure = Figure(
        figsize=(9, 3.4 * len(sizes) + 0.5 + 0.2 * len(names)), dpi=110, layout="constrained"
    )
    panels = list(figure.subplots(len(sizes), 1, squeeze=False)[:, 0])
    lines: dict[tuple[str, str], Any] = {}
    for axes, size in zip(panels, sizes, strict=True):
        there = [one for one in found if (one.height, one.width) == size]
        for i, key in enumerate(names):
            mine = [one for one in there if (one.weights, one.engine) == key]
            mine.sort(key=lambda one: one.batch_size)
            if mine:
                batches = [one.batch_size for one in mine]
                speeds = [one.images_per_second for one in mine]
                style = ("-", "--", ":")[i // 10 % 3]
                (line,) = axes.plot(batches, speeds, style, color=f"C{i % 10}", marker="o")
                lines.setdefault(key, line)
        axes.set_xscale("log", base=2)
        ticks = sorted({one.batch_size for one in there})
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set(ylabel="Images a second", title=f"{size[0]} x {size[1]}")
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("Batch size")
    texts = _texts(figure, names)
    legend = [texts[key].replace("\n", ", ") for key in lines]
    figure.legend(lines.values(), legend, loc="outside lower center", ncols=2)
    plots.save(figure, path)
