"""Graphs made in memory: every runtime the same numbers, whatever the size, number and threads."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.parity import SMALL, seeded_images, seeded_tensor
from van_classification_tensorflow.engines import graph_runner
from van_classification_tensorflow.engines.graph_runner import GraphRunner, Program
from van_classification_tensorflow.engines.numpy_forward import forward
from van_classification_tensorflow.engines.onnx_graph import onnx_model
from van_classification_tensorflow.spec.architecture import Architecture
from van_classification_tensorflow.weights.fold import fold

RUNTIMES = ("onnxruntime", "openvino")


def small(in_chans=3, num_classes=10):
    """(tensors, sizes) of a tiny VAN."""
    dims, depths = tuple(SMALL["embed_dims"]), tuple(SMALL["depths"])
    sizes = Architecture(dims, (32, 32), depths, in_chans, num_classes)
    return {n: seeded_tensor(n, s.shape) for n, s in sizes.tensors().items()}, sizes


def graph_of(tensors, sizes):
    folded = fold(tensors)

    def graph(shape):
        model = onnx_model(folded, sizes, image_size=shape[:2], also_features=True)
        return model.SerializeToString()

    return graph


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("in_chans", [1, 3, 5])
def test_equal_to_numpy(runtime, in_chans):
    """Logits and features, of one size after the other, single and together."""
    pytest.importorskip(runtime)
    tensors, sizes = small(in_chans)
    runner = GraphRunner(graph_of(tensors, sizes), runtime, threads=2)
    for shape in ((1, 33, 47, in_chans), (5, 33, 47, in_chans), (2, 16, 64, in_chans)):
        images = seeded_images(1, shape)
        features, logits = forward(tensors, sizes, images)
        found = runner(images)
        assert [one.shape for one in found] == [logits.shape, features.shape]
        assert all(one.dtype == np.float32 for one in found)
        np.testing.assert_allclose(found[0], logits, atol=1e-6 * abs(logits).max())
        np.testing.assert_allclose(found[1], features, atol=1e-6 * abs(features).max())


def test_without_a_head():
    tensors, sizes = small(num_classes=None)
    images = seeded_images(1, (2, 32, 32, 3))
    (found,) = GraphRunner(graph_of(tensors, sizes))(images)
    np.testing.assert_allclose(found, forward(tensors, sizes, images)[0], atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_pictures(model, runtime):
    pytest.importorskip(runtime)
    found = GraphRunner(graph_of(*model), runtime)(np.zeros((0, 32, 32, 3), np.float32))
    assert [one.shape for one in found] == [(0, 10), (0, 16)]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("threads", [1, 3])
def test_order_whatever_the_number(model, runtime, threads):
    pytest.importorskip(runtime)
    runner = GraphRunner(graph_of(*model), runtime, threads=threads)
    images = seeded_images(2, (9, 32, 32, 3))
    expected = forward(*model, images)[1]
    for count in (1, 2, 3, 4, 9):
        np.testing.assert_allclose(runner(images[:count])[0], expected[:count], atol=1e-5)


@pytest.mark.parametrize(
    "runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)]
)
def test_threads_of_the_caller(model, runtime):
    """Eight at once get what one alone gets; and none of its threads stays."""
    pytest.importorskip(runtime)
    before = set(threading.enumerate())
    runner = GraphRunner(graph_of(*model), runtime, threads=2)

    def ask(some, runner=runner):
        return runner(some)[0], runner(some[:1])[0]

    images = seeded_images(3, (8, 3, 32, 32, 3))
    expected = [ask(some) for some in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for ours, theirs in zip(pool.map(ask, images), expected, strict=True):
                np.testing.assert_array_equal(ours[0], theirs[0])
                np.testing.assert_array_equal(ours[1], theirs[1])
    names = [one for one in set(threading.enumerate()) - before if one.name.startswith("infer")]
    assert len(names) == 2
    del runner, ask, ours, theirs
    gc.collect()
    for one in names:
        one.join(5)
        assert not one.is_alive()


FORKED = """
import os, signal, sys
import numpy as np
from van_classification_tensorflow.engines.graph_runner import GraphRunner
from van_classification_tensorflow.engines.onnx_graph import onnx_model
from van_classification_tensorflow.spec.architecture import Architecture
from van_classification_tensorflow.weights.fold import fold

sizes = Architecture((8, 16), (32, 32), (1, 1), 3, 10)
folded = fold({n: np.full(s.shape, 0.01, np.float32) for n, s in sizes.tensors().items()})

def graph(shape):
    return onnx_model(folded, sizes, image_size=shape[:2]).SerializeToString()

runner = GraphRunner(graph, sys.argv[1], threads=2)
images = np.ones((3, 32, 32, 3), np.float32)
before = runner(images)[0]
runner(images[:1])
child = os.fork()
if not child:
    signal.alarm(20)  # rather than to wait for ever
    same = all(abs(runner(images[:n])[0] - before[:n]).max() < 1e-6 for n in (3, 1))
    os._exit(0 if same else 3)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_forked_process_has_threads_of_its_own(runtime):
    pytest.importorskip(runtime)
    command = [sys.executable, "-c", FORKED, runtime]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


LET_GO = """
import gc, os, signal, threading
from van_classification_tensorflow.engines.openvino import the_core

held = [the_core("this test")]
held[0].get_property("CPU", "OPTIMIZATION_CAPABILITIES")
thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
thread.start()
thread.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
except KeyboardInterrupt:
    print("heard")
"""


@pytest.mark.skipif(not hasattr(signal, "pause"), reason="a system without signals")
def test_ctrl_c_after_openvino_was_let_go_by_another_thread():
    """A segmentation fault, were OpenVINO's core not kept."""
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", LET_GO]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "heard"), done.stderr


AT_ONCE = """
import builtins, threading, time
from van_classification_tensorflow.engines.openvino import the_core

the_core("this test")
import openvino
real = builtins.__import__

def slowly(name, *arguments, **options):
    time.sleep(0.05 if name.startswith("numpy") else 0)
    return real(name, *arguments, **options)

builtins.__import__ = slowly
both = threading.Barrier(2)
threads = [
    threading.Thread(target=lambda: (both.wait(), openvino.Type.f32.to_dtype())) for _ in range(2)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


def test_two_threads_that_are_openvinos_first():
    """They held Python's lock and waited, each for the other one."""
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", AT_ONCE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr


def test_answers_are_the_callers_own(model):
    runner = GraphRunner(graph_of(*model))
    images = seeded_images(4, (1, 32, 32, 3))
    first = runner(images)[0]
    before = first.copy()
    runner(images + 1)
    np.testing.assert_array_equal(first, before)
    first[:] = 0


def test_a_graph_is_made_once_for_a_size_and_old_ones_are_let_go(model, monkeypatch):
    made, graph = [], graph_of(*model)

    def watched(shape):
        made.append(shape)
        return graph(shape)

    monkeypatch.setattr(graph_runner, "_KEPT", 2)
    runner = GraphRunner(watched, threads=1)
    for side in (16, 32, 16, 48, 16, 32):
        runner(np.zeros((1, side, side, 3), np.float32))
    assert made == [(side, side, 3) for side in (16, 32, 48, 32)]


def test_bfloat16_is_near(model):
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ValueError, match="no bfloat16 on this processor"):
            GraphRunner(graph_of(*model), "openvino", "bfloat16")
        return
    images = seeded_images(5, (2, 32, 32, 3))
    expected = forward(*model, images)[1]
    found = GraphRunner(graph_of(*model), "openvino", "bfloat16")(images)[0]
    difference = abs(found - expected).max() / abs(expected).max()
    assert 1e-5 < difference < 0.05  # it is not float32 by another name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"runtime": "tvm"}, "`runtime` must be one of 'onnxruntime', 'openvino', 'litert'. Rec"),
        ({"precision": "int4"}, "`precision` must be one of 'float32', 'bfloat16', 'int8'. Rec"),
        ({"precision": "bfloat16"}, "`precision`='bfloat16' needs OpenVINO, .* runtime='onnx"),
        (
            {"runtime": "litert", "precision": "bfloat16"},
            "needs OpenVINO, on CPUs. Received: runtime='litert'",
        ),
        ({"threads": 0}, "`threads` must be an integer >= 1"),
    ],
)
def test_wrong_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        GraphRunner(lambda shape: b"", **arguments)


def test_what_fails_is_one_line(model):
    with pytest.raises(ValueError, match=r"ONNX Runtime refuses the model: .") as caught:
        GraphRunner(lambda shape: b"no graph")(np.zeros((1, 32, 32, 3), np.float32))
    assert "\n" not in str(caught.value)
    runner = GraphRunner(graph_of(*model))
    with pytest.raises(ValueError, match=r"ONNX Runtime does not run the model: ."):
        runner(np.zeros((1, 32, 32, 4), np.float32))
    with pytest.raises(ValueError, match=r"`images` must be \(N, H, W, C\)"):
        runner(np.zeros((32, 32, 3), np.float32))


def test_a_runtime_that_gives_another_shape(model, monkeypatch):
    program = Program(((1, 10),), lambda image: [np.zeros((1, 9), np.float32)])
    monkeypatch.setattr(graph_runner, "_OnnxRuntime", lambda precision: lambda *_: program)
    runner = GraphRunner(graph_of(*model), threads=2)
    for count in (1, 3):
        with pytest.raises(ValueError, match=r"it gave \(1, 9\); it promised \(1, 10\)"):
            runner(np.zeros((count, 32, 32, 3), np.float32))


@pytest.mark.parametrize("threads", [1, 3])
def test_each_interpreter_of_litert_is_for_one_thread_at_a_time(monkeypatch, threads):
    """And there are no more of them than threads, none before it is needed."""
    module = pytest.importorskip("ai_edge_litert.interpreter")
    made, busy = [], set()

    class Interpreter:  # of one that takes a picture and gives its mean and its first number
        def __init__(self, model_content, num_threads):
            self.content, self.threads = model_content, num_threads
            made.append(self)

        def allocate_tensors(self):
            pass

        def get_input_details(self):
            return [{"index": 7}]

        def get_signature_runner(self):
            return self

        def get_output_details(self):  # by their names, in another order than they are given
            shape = {"shape": np.array([1, 1], np.int32)}
            return {"features": {"index": 1, **shape}, "logits": {"index": 2, **shape}}

        def set_tensor(self, index, image):
            assert self not in busy
            busy.add(self)
            assert index == 7
            self.image = image

        def invoke(self):
            time.sleep(1e-3)
            if self.image[0, 0, 0, 0] < 0:
                busy.remove(self)
                raise RuntimeError("negative")

        def get_tensor(self, index):
            if index == 1:
                busy.discard(self)
            return (self.image.max((1, 2)) if index == 1 else self.image.min((1, 2)))[:, :1]

    monkeypatch.setattr(module, "Interpreter", Interpreter)
    runner = GraphRunner(lambda shape: b"flat", "litert", threads=threads)
    images = seeded_images(3, (20, 4, 4, 3)) ** 2
    logits, features = runner(images[:1])
    assert [(one.content, one.threads) for one in made] == [(b"flat", threads)]
    np.testing.assert_array_equal(logits[:, 0], images[:1, ..., 0].min((1, 2)))
    np.testing.assert_array_equal(features[:, 0], images[:1, ..., 0].max((1, 2)))
    with ThreadPoolExecutor(4) as pool:
        for logits, _ in pool.map(runner, [images] * 4):
            np.testing.assert_array_equal(logits[:, 0], images[..., 0].min((1, 2)))
    assert len(made) <= 1 + threads
    for _ in range(2 * threads):  # what fails gives its interpreter back
        with pytest.raises(ValueError, match="LiteRT does not run the model: negative"):
            runner(-images[:1] - 1)
    np.testing.assert_array_equal(runner(images[:1])[0], images[:1, ..., 0].min((1, 2))[:, None])


@pytest.mark.parametrize(("runtime", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed(monkeypatch, runtime, extra):
    monkeypatch.setitem(__import__("sys").modules, runtime, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {runtime}: pip install .*\[{extra}\]"):
        GraphRunner(lambda shape: b"", runtime)


def test_threads_by_default_are_the_cores_of_the_process(monkeypatch):
    monkeypatch.setattr(graph_runner, "cores", lambda: 7)
    assert GraphRunner(lambda shape: b"").threads == 7
