#!/usr/bin/env bash
# The same code on the other Keras backends: layers, loading, parity (a reduced set), the imports,
# and of the model: saving, sizes, data formats. Then torch and transformers as judges of the
# weight files that are read and written here. Keras's and KerasHub's own tests of layers run whole.
# Needs the extras: pip install '.[jax,keras-hub,torch,original,test]'
set -euo pipefail
cd "$(dirname "$0")/.."
for backend in jax torch; do
  echo "== KERAS_BACKEND=$backend"
  KERAS_BACKEND=$backend python -m pytest -q tests/test_layers.py tests/test_load.py tests/test_classifier.py \
    tests/test_parity.py -k "not van_b1 and not van_b2"
  KERAS_BACKEND=$backend python -m pytest -q tests/test_fusion.py tests/test_export.py \
    -k "every_stage or saved_and or head_of or (every_precision and onnx-float32)"
  KERAS_BACKEND=$backend python -m pytest -q tests/test_optim.py
  KERAS_BACKEND=$backend python -m pytest -q -m "" tests/test_keras_harness.py
  KERAS_BACKEND=$backend python -m pytest -q tests/test_train.py \
    -k "folder or best_model or last or readmes or textbook"
  KERAS_BACKEND=$backend python -m pytest -q tests/test_model.py \
    -k "save or saving or sizes or channels_first or headless or clone or pyramid"
  python -m pytest -q tests/test_public_api.py -k "$backend"
done
echo "== KerasHub's tests, channels-first as well"
KERAS_BACKEND=torch python -m pytest -q -m slow tests/test_keras_hub.py
echo "== torch and transformers as judges"
python -c "import torch, transformers"  # or the tests below would be skipped
python -m pytest -q tests/test_torch_oracle.py tests/test_evaluate.py
