#!/usr/bin/env bash
# The same code on the other Keras backends: parity (a reduced set), layers, weight names.
# Needs the extras: pip install '.[jax,torch,test]'
set -euo pipefail
cd "$(dirname "$0")/.."
for backend in jax torch; do
  echo "== KERAS_BACKEND=$backend"
  KERAS_BACKEND=$backend python -m pytest -q tests/test_layers.py tests/test_convert.py \
    tests/test_parity.py -k "not van_b1 and not van_b2"
done
