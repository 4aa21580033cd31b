"""The error stream of `van`: no chatter of TensorFlow, and nothing else is lost."""

import logging
import os
import subprocess
import sys
import threading

import pytest

from van_classification_tensorflow.support.quiet import quiet_converter

CHATTER = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795655776.684519    8325 port.cc:153] oneDNN custom operations are on. You may
W0000 00:00:1795655776.689489    8325 cudart_stub.cc:31] Could not find cuda drivers
E0000 00:00:1795655776.689489    8325 cuda_dnn.cc:8579] Unable to register cuDNN factory
E0000 00:00:1795655776.689489    8325 cuda_platform.cc:51] failed call to cuInit: INTERNAL
2026-01-01 12:00:00.123456: I tensorflow/core/platform/cpu_feature_guard.cc:210] optimised
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
fully_quantize: 0, inference_type: 6, input_inference_type: FLOAT32, output_inference_type: FLOAT32
"""
WORDS = """\
E0000 00:00:1795655776.689489    8325 gpu.cc:51] out of memory
F0000 00:00:1795655776.689489    8325 cpu.cc:1] needs AVX instructions
Illegal instruction
"""
# Stands for TensorFlow, at its worst: it ends the process as soon as it is imported.
FAKE = f"""
import os, subprocess, sys
print("from Python", file=sys.stderr)
subprocess.run([sys.executable, "-c", "import sys; print('a worker', file=sys.stderr)"])
os.write(2, {CHATTER.encode()!r})
os.write(2, {WORDS.encode()!r})
os.abort()
"""


def start(tmp_path, code, **environment):
    (tmp_path / "tensorflow.py").write_text(FAKE)
    clean = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**clean, **environment},
    )


IMPORT = "from van_classification_tensorflow.support.quiet import quiet_start; quiet_start(); "


def test_chatter_is_left_out_and_all_else_gets_through_even_at_a_crash(tmp_path):
    done = start(tmp_path, f"{IMPORT}import tensorflow")
    assert done.returncode < 0
    lines = done.stderr.splitlines()
    assert sorted(lines) == sorted([*WORDS.splitlines(), "from Python", "a worker"])


def test_who_sets_the_variable_sees_everything(tmp_path):
    done = start(tmp_path, f"{IMPORT}import tensorflow", TF_CPP_MIN_LOG_LEVEL="0")
    assert CHATTER + WORDS in done.stderr


def test_only_the_command_does_so(tmp_path):
    code = "import van_classification_tensorflow as v, os; v.Classifier; import sys; "
    code += "print(os.environ.get('TF_CPP_MIN_LOG_LEVEL'), sys.stderr is sys.__stderr__)"
    assert start(tmp_path, code).stdout == "None True\n"


@pytest.mark.slow
def test_commands_that_start_tensorflow_say_nothing_of_their_own(tmp_path, thorough):
    clean = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    said = {}
    others = (
        "evaluate --data digits --weights digits",
        "export --weights digits --output x.onnx",
        "export --weights digits --output x.xml",
        "export --weights digits --output x",
        "evaluate --data digits --weights x",
        "demo --epochs 1",
        "benchmark --weights digits x.tflite --rounds 2 --seconds 0.1 --max-spread 99",
    )
    for command in (
        "export --weights digits --output x.tflite",
        "evaluate --data digits --weights x.tflite",
        "train --data digits --output run --epochs 1 --warmup-epochs 0 --processes 1",
        *(others if thorough else ()),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "van_classification_tensorflow", *command.split()],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=clean,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        said[command] = done.stderr
    # What trains and measures says on the error stream how it goes, in its own words.
    for words in ("absl", "oneDNN", "cuda", "XNNPACK", "WARNING", "Warning", "port.cc"):
        assert not any(words in text for text in said.values()), said


def test_what_is_switched_for_converters_is_as_it_was_after_several_threads():
    """Each would put back what it found, which may be what another one has switched."""
    before = sys.stdout, logging.root.manager.disable, logging.root.handlers[:]
    entered, other, left = threading.Event(), threading.Event(), threading.Event()

    def first():
        with quiet_converter():
            entered.set()
            other.wait(0.3)  # which comes only if both are in it
            logging.warning("which makes a handler")
        left.set()

    def second():
        entered.wait(5)
        with quiet_converter():
            other.set()
            left.wait(5)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sys.stdout, logging.root.manager.disable, logging.root.handlers[:]) == before
