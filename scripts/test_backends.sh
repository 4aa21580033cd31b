#!/usr/bin/env bash
# The same code on the other Keras backends: layers, loading, parity (a reduced set), the imports,
# and of the model: saving, sizes, data formats. Then torch and transformers as judges of the
# weight files that are read and written here. Keras's and KerasHub's own tests of layers run whole.
# Needs the extras: pip install '.[jax,keras-hub,torch,original,test]'
set -euo pipefail
cd "$(dirname "$0")/.."
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
pids=()

# JAX compiles each operation by itself, the same ones in each of the processes below.
export JAX_COMPILATION_CACHE_DIR=$logs/compiled
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

# pytest, compiled by XLA as it comes: all that holds numbers to the authors' or to torch's.
exact() { KERAS_BACKEND=$1 python -m pytest -q "${@:2}"; }
# pytest where XLA need not optimise what it compiles, in about half of the time: what is built,
# saved, read, refused and trained.
quick() { XLA_FLAGS=--xla_backend_optimization_level=0 exact "$@"; }

model() {
  quick $1 tests/model/test_layers.py tests/model/test_load.py tests/inference/test_classifier.py
  exact $1 tests/model/test_parity.py
  exact $1 tests/model/test_fused.py tests/export/test_export.py \
    -k "every_stage or saved_and or head_of or (every_precision and onnx-float32)"
  exact $1 tests/segment/test_resize.py tests/segment/test_losses.py tests/segment/test_parity.py \
    -k "every_size or means or factorisation or (every_map and ham)"
  exact $1 -m "" tests/train/test_optim.py
  quick $1 tests/inference/test_accelerate.py -k "same_numbers or messages or structures or weights"
  quick $1 tests/engines/test_keras_graph.py -k "fused or lora or behind"
}
explanations() {
  quick $1 tests/explanation/test_methods.py -k "micro and (every_method or alone or saliency)"
  quick $1 tests/explanation/test_explain.py -k "any_model or one_output or gate"
}
layers() {
  quick $1 tests/model/test_keras_harness.py
}
training() {
  quick $1 -m "" tests/train/test_train.py \
    -k "folder or best_model or last or readmes or textbook"
  quick $1 tests/model/test_van.py \
    -k "save or saving or sizes or channels_first or headless or clone or pyramid"
  python -m pytest -q -m "" tests/test_public_api.py -k "$1"
}
judges() {
  python -c "import torch, transformers"  # or the tests below would be skipped
  python -m pytest -q tests/test_torch_oracle.py
  python -m pytest -q tests/evaluate/test_evaluate.py -k original
}
keras_hub() {
  exact torch -m slow tests/keras_hub/test_backbone.py tests/keras_hub/test_heads.py
}

# Starts each of its arguments, waits for all, shows what they said, and fails if one did.
together() {
  local name failed=0
  for name in "$@"; do
    (set -euo pipefail; "$name") > "$logs/$name" 2>&1 &
    pids+=($!)
  done
  for name in "$@"; do
    wait "${pids[0]}" || failed=1
    pids=("${pids[@]:1}")
    echo "== $name"
    cat "$logs/$name"
  done
  return $failed
}

# Each takes about half of the time.
one_core() {
  model jax
  layers jax
  explanations torch
}
other_core() {
  training jax
  exact jax -m "" tests/model/test_shifted.py
  explanations jax
  model torch
  layers torch
  training torch
  judges
  keras_hub
}

# The Ctrl-C tests need SIGINT, which bash has its background jobs ignore.
set -m
together one_core other_core
