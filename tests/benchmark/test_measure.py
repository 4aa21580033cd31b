"""What a model costs: counts against the paper's, and measurements of known launches."""

import csv
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from tests.tiny_artefacts import about, build, random_weights
from van_classification_tensorflow import VAN
from van_classification_tensorflow.benchmark import measure as module
from van_classification_tensorflow.benchmark import report as benchmark_report
from van_classification_tensorflow.benchmark.measure import (
    Measurement,
    UnsteadyError,
    benchmark,
    check_steady,
    count_macs,
    count_parameters,
    summarise,
)
from van_classification_tensorflow.benchmark.request import BenchmarkRequest
from van_classification_tensorflow.benchmark.worker import (
    MIN_STEPS,
    Opened,
    figures,
    images_for,
    open_job,
    step_times,
    work,
)
from van_classification_tensorflow.cli import main
from van_classification_tensorflow.model.fused import FusedVAN, fuse
from van_classification_tensorflow.spec.config import CONFIGURATIONS
from van_classification_tensorflow.support.files import file_bytes
from van_classification_tensorflow.weights.checkpoint import read_weights

# Trainable parameters and convolution + linear MACs at 224 x 224, of the authors' code.
TABLE = {
    "van_b0": (4_105_800, 0.864),
    "van_b1": (13_861_800, 2.495),
    "van_b2": (26_578_472, 4.993),
    "van_b3": (44_765_608, 8.925),
    "van_b4": (60_283_176, 12.144),
    "van_b5": (89_967_688, 17.129),
    "van_b6": (199_829_416, 38.710),
}


# --- Counted ---


@pytest.mark.parametrize(
    "name",
    [
        name if name < "van_b1" else pytest.param(name, marks=pytest.mark.slow)
        for name in CONFIGURATIONS
    ],
)
def test_parameters_and_macs_of_the_family(name):
    model = VAN(name)
    assert count_parameters(model)[0] == TABLE[name][0]
    assert round(count_macs(model) / 1e9, 3) == TABLE[name][1]
    if name == "van_b0":
        assert count_parameters(model)[1] == 7_424
        assert model.count_params() == 4_113_224
    keras.utils.clear_session()


def test_macs_of_one_block_by_hand():
    model = VAN(embed_dims=[8], mlp_ratios=[2], depths=[1], num_classes=5)
    positions = 16 * 8  # a 64 x 32 image at stride 4
    block = 3 * 8 * 8 + 8 * (5 * 5 + 7 * 7) + 2 * 8 * 16 + 16 * 3 * 3
    assert count_macs(model, (64, 32)) == positions * (7 * 7 * 3 * 8 + block) + 8 * 5


def test_a_file_counts_with_what_lies_beside_it(tmp_path):
    (tmp_path / "a.xml").write_bytes(b"x" * 10)
    (tmp_path / "a.bin").write_bytes(b"x" * 1000)
    assert file_bytes(tmp_path / "a.xml") == 1010
    assert file_bytes(tmp_path / "a.bin") == 1000
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_bytes(b"x" * 5)
    assert file_bytes(tmp_path) == 1015


# --- The worker: one launch ---


def test_percentiles_and_throughput_of_known_times():
    times = [*(0.001 * n for n in range(1, 101)), 1.0]  # 1 ... 100 ms, and one of a second
    found = figures(times[::-1], batch_size=4)
    assert found == pytest.approx(
        {
            "latency_p50_ms": 51,
            "latency_p99_ms": 100,
            "images_per_second": 4 * 101 / 6.05,
            "steps": 101,
        }
    )


@pytest.mark.parametrize(("seconds", "steps"), [(0.5, MIN_STEPS), (20.0, 20)])
def test_steps_last_as_long_as_asked_but_ten_at_least(seconds, steps):
    now = [100.0]

    def step():
        now[0] += 1.0

    assert step_times(step, seconds, clock=lambda: now[0]) == [1.0] * steps


def test_images_are_the_same_in_every_launch_and_as_the_model_takes_them():
    opened = Opened(None, "onnx", "int8", "uint8", None, None, (224, 224), channels=3)
    pixels = images_for(opened, 2, (4, 6))
    assert pixels.shape == (2, 4, 6, 3)
    assert pixels.dtype == np.uint8
    assert pixels.max() > 200
    np.testing.assert_array_equal(pixels, images_for(opened, 2, (4, 6)))
    floats = images_for(replace(opened, input="float32"), 2, (4, 6))
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, pixels / 127.5 - 1, atol=1e-6)
    first = images_for(replace(opened, input="float32", channels_first=True), 2, (4, 6))
    np.testing.assert_array_equal(first, floats.transpose(0, 3, 1, 2))


def test_memory_is_the_process_own():
    """`getrusage` of a started process counts what its parent held."""
    code = (
        "from van_classification_tensorflow.benchmark.worker import peak_bytes\n"
        "print(peak_bytes()); held = bytearray(100_000_000); print(peak_bytes())"
    )
    hog = np.ones(50_000_000)  # 400 MB, all of it touched
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 3e6 < before < 150e6 < hog.nbytes
    assert 90e6 < after - before < 120e6


def tiny(**options):
    sizes = {"embed_dims": [8], "mlp_ratios": [2], "depths": [1], "num_classes": 5}
    return VAN(**{**sizes, **options})


@pytest.mark.parametrize("engine", ["fused", "keras"])
def test_a_model_is_run_as_asked(tmp_path, engine):
    path = tmp_path / "m.keras"
    model = tiny(data_format="channels_first", in_chans=4)
    model.save(path)
    opened = open_job(path, engine, None)
    assert opened.engine == f"{engine} {keras.backend.backend()}"
    assert isinstance(opened.step.__self__, FusedVAN) == (engine == "fused")
    assert (opened.channels, opened.channels_first, opened.input) == (4, True, "float32")
    assert (opened.batch_size, opened.image_size, opened.usual_size) == (None, None, (224, 224))
    assert opened.architecture["hidden_dims"] == (16,)
    images = images_for(opened, 2, (32, 64))
    assert images.shape == (2, 4, 32, 64)
    np.testing.assert_allclose(opened.step(images), model.predict_on_batch(images), atol=1e-5)


@pytest.mark.parametrize(
    "engine",
    ["numpy", "onnxruntime", "openvino", "auto", pytest.param("litert", marks=pytest.mark.slow)],
)
def test_weights_are_run_as_van_predict_runs_them(tmp_path, engine):
    if engine == "litert" and keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow converts for it")
    if engine != "auto":
        pytest.importorskip("ai_edge_litert" if engine == "litert" else engine)
    path, model = tmp_path / "m.keras", tiny(in_chans=4)
    model.save(path)
    opened = open_job(path, engine, 1)
    assert opened.engine in ("onnxruntime", "openvino") if engine == "auto" else engine
    assert (opened.channels, opened.input, opened.precision) == (4, "float32", "float32")
    images = images_for(opened, 2, (32, 64))
    logits = keras.Model(model.input, model.get_layer("head").output)
    assert opened.step(images).shape == (2, logits.output_shape[-1])
    assert getattr(opened.step, "runner", None) is None or opened.step.runner.threads == 1


def test_a_fused_model_is_not_fused_again(tmp_path):
    path = tmp_path / "m.keras"
    fuse(tiny(img_resolution=(32, 64))).save(path)
    for engine in ("fused", "keras"):
        opened = open_job(path, engine, None)
        assert opened.engine.startswith("fused ")
        assert (opened.image_size, opened.usual_size) == ((32, 64), (32, 64))


def test_a_launch_says_everything(tmp_path):
    path = tmp_path / "m.keras"
    tiny().save(path)
    job = {"path": str(path), "engine": "fused", "threads": None}
    looked = work(job)
    assert "load_s" not in looked
    job |= {"batch_size": 2, "image_size": [32, 32], "seconds": 0.02}
    job["started"] = time.perf_counter() - 1000
    said = json.loads(json.dumps(work(job)))
    assert json.loads(json.dumps(looked)).items() <= said.items()
    assert said["steps"] >= MIN_STEPS
    assert 0 < said["latency_p50_ms"] <= said["latency_p99_ms"]
    assert 0 < said["load_s"] < 500 < 1000 < said["cold_start_s"]
    assert 0 < said["base_bytes"] <= said["peak_bytes"]
    assert said["versions"]["keras"] == keras.__version__


# --- Launches into figures ---


def contender(name="a.onnx", engine="onnx", **changes):
    said = {
        "engine": engine,
        "precision": "float32",
        "batch_size": None,
        "image_size": None,
        "usual_size": [224, 224],
        "architecture": None,
        "parameters": 77,
    }
    return module.Contender(name, Path(__file__), engine, said | changes)


def said(p50, **changes):
    return {
        "latency_p50_ms": p50,
        "latency_p99_ms": p50 + 5,
        "images_per_second": 1000 / p50,
        "cores_used": p50 / 10,
        "cold_start_s": 3.0,
        "load_s": 2.0,
        "base_bytes": 10_000_000,
        "peak_bytes": 200_000_000,
    } | changes


LAUNCHES = (
    said(12.0, cold_start_s=1.5, peak_bytes=210_000_000, base_bytes=30_000_000),
    said(10.0),
    said(11.0, load_s=1.25),
)


def test_figures_are_the_best_launch():
    b0 = {"embed_dims": [32, 64, 160, 256], "hidden_dims": [256, 512, 640, 1024]}
    b0 |= {"depths": [3, 3, 5, 2], "in_chans": 3, "num_classes": 1000}
    one = contender(architecture=b0, parameters=None)
    found = summarise(one, (8, (224, 224)), 2, LAUNCHES)
    assert found == Measurement(
        weights="a.onnx",
        engine="onnx",
        precision="float32",
        batch_size=8,
        height=224,
        width=224,
        threads=2,
        parameters=4_105_800,
        macs=found.macs,
        file_bytes=Path(__file__).stat().st_size,
        latency_p50_ms=10.0,
        latency_p99_ms=15.0,
        images_per_second=100.0,
        peak_mb=210.0,
        above_base_mb=190.0,  # of another launch than the peak
        cold_start_s=1.5,
        load_s=1.25,
        cores_used=1.0,
        spread=1.2,
        launches=LAUNCHES,
    )
    assert round(found.macs / 1e9, 3) == 0.864


def test_what_is_not_known_is_none():
    found = summarise(contender(), (1, (8, 8)), None, [said(1.0), said(1.0, peak_bytes=None)])
    assert (found.parameters, found.macs) == (77, None)
    assert (found.peak_mb, found.above_base_mb) == (None, None)


def test_launches_that_disagree_are_refused():
    steady = summarise(contender("steady.onnx"), (1, (8, 8)), None, [said(1.0), said(1.2)])
    wild = summarise(contender("wild.onnx"), (4, (8, 16)), None, [said(13.0), said(10.0)])
    check_steady([steady, wild], 1.3)  # no more than allowed
    with pytest.raises(UnsteadyError) as error:
        check_steady([steady, wild], 1.29)
    text = str(error.value)
    assert "wild.onnx (onnx), batch 4 at 8 x 16: medians of 13.00, 10.00 ms" in text
    assert "slowest over best 1.30" in text
    assert "--seconds" in text
    assert "no figures of these: " in text
    assert "steady" not in text
    assert error.value.steady == (steady,)
    with pytest.raises(UnsteadyError, match=r"^no figures: ") as error:
        check_steady([wild], 1.29)
    assert error.value.steady == ()


# --- Who runs at which size ---


def planned(contenders, batches, sizes):
    console = Console(record=True, file=open(os.devnull, "w"), width=200)  # noqa: SIM115 - open for the whole test
    request = BenchmarkRequest(batch_sizes=batches, image_sizes=sizes)
    todo = module.plan(contenders, request, console)
    return {
        setting: [one.weights for one in there] for setting, there in todo.items()
    }, console.export_text()


def test_fixed_sizes_run_at_their_own_only():
    free = contender("free")
    one = contender("one", batch_size=1, image_size=[224, 224])
    eight = contender("eight", batch_size=8, usual_size=[256, 192])
    todo, text = planned([free, one, eight], [1, 8, 1], [(224, 224), (64, 64), (224, 224)])
    assert todo == {
        (1, (224, 224)): ["free", "one"],
        (1, (64, 64)): ["free"],
        (8, (224, 224)): ["free", "eight"],
        (8, (64, 64)): ["free", "eight"],
    }
    assert (
        "one takes batch 1 at 224 x 224 only; skipped: batch 1 at 64 x 64, batch 8 at 224 x 224, "
        "batch 8 at 64 x 64" in text
    )
    assert "eight takes batch 8 only; skipped: batch 1 at 224 x 224, batch 1 at 64 x 64" in text
    assert "free takes" not in text
    todo, _ = planned([free], [1], [None, (224, 224)])
    assert todo == {(1, (224, 224)): ["free"]}  # once, asked for twice
    todo, _ = planned([free, one, eight], [8], [None])
    assert todo == {(8, (224, 224)): ["free"], (8, (256, 192)): ["eight"]}


def test_nothing_that_fits_is_an_error():
    with pytest.raises(ValueError, match="one takes batch 1 only; skipped: batch 8 at 64 x 64"):
        planned([contender("one", batch_size=1)], [8], [(64, 64)])


def test_images_too_small_for_the_strides_are_refused_before_any_launch():
    sizes = {"embed_dims": [8, 8], "hidden_dims": [8, 8], "depths": [1, 1], "in_chans": 3}
    one = contender(architecture={**sizes, "num_classes": None})
    with pytest.raises(ValueError, match=r"at least 5 for a\.onnx"):
        planned([one], [1], [(64, 4)])
    planned([one], [1], [(64, 5)])


@pytest.fixture
def launches(monkeypatch):
    """Launches that are not made: [(name, engine, threads, job)], each 1 ms slower."""
    made = []

    def launch(name, path, engine, threads, **job):
        made.append((Path(name).name, engine, threads, job))
        opened = contender(engine="onnx" if path.suffix == ".onnx" else f"{engine} jax").about
        return {**opened, **(said(100.0 + len(made)) if job else {})}

    monkeypatch.setattr(module, "launch", launch)
    return made


def files(tmp_path, *names):
    for name in names:
        (tmp_path / name).write_bytes(b"12345")
    return [str(tmp_path / name) for name in names]


def test_contenders_take_turns_at_each_size(tmp_path, launches):
    found = benchmark(
        files(tmp_path, "a.onnx", "b.keras"),
        batch_sizes=(1, 4),
        image_sizes=(64,),
        threads=2,
        rounds=3,
        seconds=7.0,
        engines=("keras", "fused"),
        max_spread=2.0,
    )
    trio = [("a.onnx", "fused"), ("b.keras", "keras"), ("b.keras", "fused")]
    assert [made[:2] for made in launches] == trio * 7
    assert [made[3] for made in launches[:3]] == [{}] * 3  # only looked at
    assert launches[3][2:] == (2, {"batch_size": 1, "image_size": (64, 64), "seconds": 7.0})
    assert [made[3]["batch_size"] for made in launches[3:]] == [1] * 9 + [4] * 9
    assert [(Path(one.weights).name, one.engine, one.batch_size) for one in found] == [
        (name, engine, batch)
        for batch in (1, 4)
        for name, engine in (("a.onnx", "onnx"), ("b.keras", "keras jax"), ("b.keras", "fused jax"))
    ]
    assert [launch["latency_p50_ms"] for launch in found[1].launches] == [105, 108, 111]
    assert found[0].file_bytes == 5


def test_a_spread_above_the_limit_is_not_reported(tmp_path, launches):
    (path,) = files(tmp_path, "a.onnx")
    assert benchmark(path, max_spread=104 / 102)[0].spread == 104 / 102
    launches.clear()
    with pytest.raises(UnsteadyError, match=r"102\.00, 103\.00, 104\.00"):
        benchmark(path, max_spread=1.019)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_sizes": (0,)}, "`batch_sizes` must be an integer >= 1"),
        ({"batch_sizes": ()}, "one value at least"),
        ({"image_sizes": (64, True)}, "`image_sizes` must be an integer >= 1"),
        ({"image_sizes": ()}, "one value at least"),
        ({"rounds": 1}, "`rounds` must be an integer >= 2"),
        ({"threads": 0}, "`threads` must be an integer >= 1"),
        ({"seconds": 0}, "`seconds` must be a number > 0"),
        ({"seconds": float("nan")}, "`seconds` must be a number > 0"),
        ({"max_spread": 0.9}, "`max_spread` must be a number >= 1"),
        ({"engines": ("onnx",)}, "`engines` must be among fused, keras"),
        ({"engines": ()}, "`engines` must be among fused, keras"),
        ({"weights": ["a.onnx", "a.onnx"]}, "no two the same"),
        ({"weights": []}, "one or several"),
        ({"weights": "gone.onnx"}, "gone.onnx: there is no such file"),
        ({"weights": "van_b9"}, "no such weights are published"),
        ({"weights": "van_b0.in21k"}, "no such weights are published"),
    ],
)
def test_mistakes_are_found_before_any_launch(tmp_path, monkeypatch, launches, options, says):
    monkeypatch.chdir(tmp_path)
    files(tmp_path, "a.onnx")
    options = {"weights": "a.onnx", **options}
    with pytest.raises((ValueError, OSError), match=says):
        benchmark(options.pop("weights"), **options)
    assert not launches


# --- Weights by name ---


def test_names_whose_weights_are_not_here_are_not_downloaded(tmp_path, monkeypatch, launches):
    monkeypatch.setenv("VAN_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"download van_b0\.in1k, or --random-weights"):
        benchmark("van_b0")
    with pytest.raises(FileNotFoundError, match="/van_b0: there is no such file"):
        benchmark(Path("van_b0"))  # which is no name
    assert not list(tmp_path.iterdir())
    (found,) = benchmark("digits", max_spread=2)  # bundled, and of no configuration
    assert found.file_bytes > 10_000
    cached = tmp_path / "van_b0.in1k" / "van-tiny_8xb128_in1k_20220501-385941af.pth"
    cached.parent.mkdir()
    cached.write_bytes(b"123")
    assert benchmark("van_b0", max_spread=2)[0].file_bytes == 3
    assert benchmark("van_b0", max_spread=2, random_weights=True)[0].file_bytes > 16e6


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("van_b0", "van_b0, 3 input channels, 1,000 classes"),
        ("van_b0.in1k_backbone", "van_b0, 3 input channels, no head"),
        ("van_b1", "van_b1, 3 input channels, 1,000 classes"),
    ],
)
def test_random_weights_are_those_of_the_name(tmp_path, name, says):
    path = module.path_of(name, True, tmp_path)
    weights = read_weights(path)
    assert str(weights.architecture) == says
    kernel = weights.tensors["block1.0.mlp.fc1.weight"]
    assert 0.8 < kernel.std() * np.sqrt(kernel.shape[1]) < 1.2  # keeps the scale
    assert (weights.tensors["patch_embed1.norm.running_var"] == 1).all()


# --- Launches, really ---


def test_exported_files_are_measured_in_processes_of_their_own(tmp_path):
    free = build(tmp_path, "onnx", random_weights(3), about(32), batch=None, side=None)
    free = free.rename(tmp_path / "free.onnx")
    fixed = build(tmp_path, "onnx", random_weights(32 * 32 * 3), None, batch=2, uint8=True)
    found = benchmark(
        [free, fixed], batch_sizes=(1, 2), threads=1, rounds=2, seconds=0.02, max_spread=1e9
    )
    assert [(Path(one.weights).name, one.batch_size) for one in found] == [
        ("free.onnx", 1),
        ("free.onnx", 2),
        ("m.onnx", 2),
    ]
    for one in found:
        assert (one.engine, one.height, one.width) == ("onnx", 32, 32)
        assert 0 < one.latency_p50_ms <= one.latency_p99_ms
        assert 0 < one.load_s < one.cold_start_s < 60
        assert 0 < one.above_base_mb < one.peak_mb < 500  # without what these tests hold
        for said in one.launches:
            assert set(said["versions"]) == {"numpy", "onnxruntime"}
            assert said["steps"] >= MIN_STEPS
    assert found[0].precision == "float32"
    # Of the architecture that the metadata has, not of the file's own tensors.
    sizes = tiny(num_classes=10)
    assert found[0].parameters == count_parameters(sizes)[0]
    assert found[0].macs == count_macs(sizes, 32)
    assert (found[2].precision, found[2].parameters, found[2].macs) == ("?", None, None)


def test_a_refused_file_is_one_clear_line(tmp_path):
    pytest.importorskip("onnxruntime")
    (path,) = files(tmp_path, "bad.onnx")
    with pytest.raises(ValueError, match=r"^[^\n]*bad\.onnx was refused: [^\n]+$"):
        benchmark(path)


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "kind", "says"),
    [
        (1, "", "Traceback\nNameError: x", ChildProcessError, "a: the launch failed\nTraceback"),
        (-9, "", "", ChildProcessError, "killed by signal 9, perhaps for want of memory"),
        (0, '{"error": "no onnx", "missing": true}', "", ModuleNotFoundError, "a: no onnx"),
        (0, '{"error": "bad", "missing": false}', "", ValueError, "a: bad"),
    ],
)
def test_launches_that_fail(monkeypatch, code, stdout, stderr, kind, says):
    done = subprocess.CompletedProcess([], code, stdout, stderr)
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(kind, match=says):
        module.launch("a", Path("a"), "fused", None)


def test_chatter_of_libraries_does_not_reach_the_answer(tmp_path):
    code = """
import os
from van_classification_tensorflow.benchmark import worker
def work(job):
    os.write(1, b"chatter")
    print("more")
    return {"engine": "x"}
worker.work = work
worker.main(["{}"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"engine": "x"}
    assert "chatter" in done.stderr


@pytest.mark.slow
def test_the_command_from_end_to_end(tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "van_classification_tensorflow", "benchmark"]
    command += ["--weights", "van_b0", "--random-weights", "--engine", "fused", "keras"]
    command += ["--batch-size", "1", "--image-size", "32", "--threads", "1", "--rounds", "2"]
    command += ["--seconds", "0.1", "--max-spread", "1000", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "van_b0" in done.stdout
    with (output / "benchmark.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["parameters"] for row in rows] == ["4105800"] * 2
    assert {row["engine"].split()[0] for row in rows} == {"fused", "keras"}


# --- Tables, files and pictures ---


def measured(name="a.onnx", engine="onnx", batch=1, size=(224, 224), p50=10.0, **changes):
    one = summarise(contender(name, engine), (batch, size), 2, [said(p50), said(p50 * 1.1)])
    return replace(one, **changes)


FOUND = [
    measured("long/a.onnx", p50=1234.56, parameters=4_105_800, macs=864_000_000, peak_mb=12345.0),
    measured("b $x$ [bold]", "fused tensorflow", p50=10.0, peak_mb=None),
    measured("long/a.onnx", batch=8, p50=8.127, macs=864_000_000),
]


@pytest.fixture
def fixed(monkeypatch):
    """What `run` measures, and with which options."""
    asked = {}

    def measure(request, console):
        asked["request"] = request
        if isinstance(asked.get("raises"), Exception):
            raise asked["raises"]
        return FOUND

    monkeypatch.setattr(benchmark_report, "measure", measure)
    return asked


def run_report(**options):
    return benchmark_report.run(BenchmarkRequest(weights=("a.onnx",), **options))


def test_the_table_fits_a_terminal(tmp_path):
    with (tmp_path / "out").open("w") as file:
        benchmark_report.report(FOUND, Console(file=file, width=80))
    text = (tmp_path / "out").read_text()
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    #        p50        p99        images/s  peak    above  cold    load    cores   spread
    row = ["1,234.6", "1,239.6", "0.81", "12,345", "190", "3.00", "2.00", "123.46", "1.10"]
    assert ["1", "a.onnx", *row] in lines
    assert ["1", "long/a.onnx", "float32", "0.00", "0.03"] in lines
    assert sum("long/a.onnx" in line for line in text.splitlines()) == 1  # then it is short
    assert "b $x$ [bold]" in text
    assert "8.13" in text
    assert "Batch 1 at 224 x 224: 0.864 GMACs an image" in text
    assert "Batch 8 at 224 x 224: 0.864 GMACs an image" in text
    assert "2 threads" in text
    assert text.index("Batch 1") < text.index("1,234.6") < text.index("Batch 8")


def test_output_is_complete(tmp_path, fixed, capsys):
    output = tmp_path / "out"
    assert run_report(output=output, threads=2) == 0
    assert (fixed["request"].weights, fixed["request"].threads) == (("a.onnx",), 2)
    assert sorted(path.name for path in output.iterdir()) == sorted(benchmark_report.FILES)
    assert os.listdir(tmp_path) == ["out"]
    with (output / "benchmark.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["batch_size"] for row in rows] == ["1", "1", "8"]
    assert rows[0]["weights"] == "long/a.onnx"
    assert float(rows[0]["latency_p50_ms"]) == 1234.56
    assert (rows[1]["peak_mb"], rows[1]["macs"]) == ("", "")
    assert "launches" not in rows[0]
    document = json.loads((output / "launches.json").read_text())
    assert document["machine"]["cores"] >= 1
    there = document["measurements"]
    assert [launch["latency_p50_ms"] for launch in there[2]["launches"]] == pytest.approx(
        [8.127, 8.9397]
    )
    for name in ("latency.png", "throughput.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")


def test_disagreeing_launches_write_nothing(tmp_path, fixed, capsys):
    fixed["raises"] = UnsteadyError("no figures: wild")
    assert run_report(output=tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "no figures: wild" in printed.err
    assert not printed.out
    assert not list(tmp_path.iterdir())


def test_figures_of_the_others_are_shown_and_written(tmp_path, fixed, capsys):
    steady = summarise(contender("steady.onnx"), (1, (8, 8)), None, [said(1.0), said(1.2)])
    fixed["raises"] = UnsteadyError("no figures of these: wild", [steady])
    assert run_report(output=tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "no figures of these: wild" in printed.err
    assert "steady.onnx" in printed.out
    assert "steady.onnx" in (tmp_path / "out" / "benchmark.csv").read_text()


def test_an_output_that_is_in_the_way_is_found_before_the_work(tmp_path, fixed):
    output = tmp_path / "out"
    output.mkdir()
    (output / "benchmark.csv").write_text("")
    with pytest.raises(FileExistsError, match="--overwrite"):
        run_report(output=output)
    (output / "thesis.doc").write_text("")
    with pytest.raises(FileExistsError, match="no benchmark wrote"):
        run_report(output=output, overwrite=True)
    with pytest.raises(FileNotFoundError, match="no folder"):
        run_report(output=tmp_path / "no" / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="no folder"):
        run_report(output=tmp_path / "file", overwrite=True)
    assert not fixed


def test_a_failed_write_leaves_the_earlier_output(tmp_path, fixed, monkeypatch):
    output = tmp_path / "out"
    output.mkdir()
    (output / "benchmark.csv").write_text("old")

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(benchmark_report, "draw_throughput", full)
        with pytest.raises(OSError, match="no space"):
            run_report(output=output, overwrite=True)
    assert os.listdir(tmp_path) == ["out"]
    assert (output / "benchmark.csv").read_text() == "old"
    move = os.replace

    def fail_once(source, target):
        if Path(source).name == "made":
            raise OSError("no rename")
        move(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(benchmark_report.os, "replace", fail_once)
        with pytest.raises(OSError, match="no rename"):
            run_report(output=output, overwrite=True)
    assert (output / "benchmark.csv").read_text() == "old"
    run_report(output=output, overwrite=True)
    assert len(os.listdir(output)) == 4


def drawn(monkeypatch, draw, found):
    """The figure that `draw` saves."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path: figures.append(self))
    draw(found, Path("x.png"))
    return figures[0]


def test_throughput_against_the_batch_size(monkeypatch):
    found = [
        measured(name, batch=batch, size=size, p50=10.0 * batch)
        for name in ("x/a.onnx", "x/b.onnx")
        for size in ((64, 64), (32, 32))
        for batch in (8, 1)
    ]
    figure = drawn(monkeypatch, benchmark_report.draw_throughput, found[:-1])
    assert [axes.get_title() for axes in figure.axes] == ["32 x 32", "64 x 64"]
    lines = figure.axes[0].lines
    assert lines[0].get_xydata().tolist() == [[1, 100.0], [8, 12.5]]
    assert lines[1].get_xydata().tolist() == [[8, 12.5]]
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["a.onnx, onnx", "b.onnx, onnx"]


@pytest.mark.parametrize("attribute", ["latency", "throughput"])
def test_bars_for_each_size(monkeypatch, attribute):
    found = [measured("x/m.onnx", p50=10.0), measured("y/m.onnx", p50=40.0)]
    if attribute == "latency":
        found.append(measured("x/m.onnx", batch=8, p50=80.0))
    draw = getattr(benchmark_report, f"draw_{attribute}")
    figure = drawn(monkeypatch, draw, found)
    axes = figure.axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == ([10, 40] if attribute == "latency" else [100, 25])
    # The names that tell them apart.
    assert [t.get_text() for t in axes.get_yticklabels()] == ["x/m.onnx\nonnx", "y/m.onnx\nonnx"]
    assert axes.get_xlim()[1] > max(widths)
    if attribute == "latency":
        assert [axes.get_title() for axes in figure.axes] == [
            "Batch 1 at 224 x 224",
            "Batch 8 at 224 x 224",
        ]
        assert len({axes.get_xlim() for axes in figure.axes}) == 1  # bars can be compared
        assert axes.lines[1].get_xdata().tolist() == [40, 45]  # on to the 99th percentile
        assert axes.texts[1].get_text() == "40.0, p99 45.0"


def test_names_in_pictures_are_short_and_no_formulas(monkeypatch):
    names = [f"{'x' * 30}{i}_price_in_$_and_$.onnx" for i in range(2)]
    figure = drawn(monkeypatch, benchmark_report.draw_latency, [measured(n) for n in names])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        f"{'x' * 13}…xxx{i}_price_in_\\$_and_\\$.onnx\nonnx" for i in range(2)
    ]


# --- The command ---


def test_options_of_the_command(monkeypatch):
    asked = []
    monkeypatch.setattr(benchmark_report, "run", lambda request: asked.append(request) or 1)
    with pytest.raises(SystemExit) as done:
        main(["benchmark"])
    assert done.value.code == 1
    assert asked[0] == BenchmarkRequest()
    line = "benchmark --weights a.onnx van_b1 --batch-size 1 8 --image-size 32 64 --engine keras"
    with pytest.raises(SystemExit):
        main(line.split())
    assert asked[1] == BenchmarkRequest(
        weights=("a.onnx", "van_b1"),
        batch_sizes=(1, 8),
        image_sizes=(32, 64),
        engines=("keras",),
    )


def test_modules_start_without_keras():
    code = (
        "import sys, van_classification_tensorflow.benchmark.report\n"
        "import van_classification_tensorflow.benchmark.worker\n"
        "print(sorted({'keras', 'tensorflow', 'onnxruntime', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("numpy", "its content is none of"),
        pytest.param("keras", r"is no \.keras file", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_file_is_named_once(tmp_path, engine, says):
    path = tmp_path / "bad.keras"
    path.write_text("xx")
    with pytest.raises(ValueError, match=says) as caught:
        module.launch(str(path), path, engine, None)
    assert str(caught.value).count("bad.keras") == 1
