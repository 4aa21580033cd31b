#!/usr/bin/env bash
# The documentation, to docs/_build/html: every warning is an error. Needs pip install '.[docs]'.
#   scripts/docs.sh                        # and open docs/_build/html/index.html
#   scripts/docs.sh --linkcheck            # asks the addresses of others; needs a network
#   scripts/docs.sh -D nb_execution_mode=off   # what else is given goes to sphinx-build
set -euo pipefail
cd "$(dirname "$0")/.."
builder=html
if [ "${1:-}" = --linkcheck ]; then builder=linkcheck; shift; fi
# The package of this checkout, and nothing of what TensorFlow says of itself.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TF_CPP_MIN_LOG_LEVEL=3
python -m sphinx -b "$builder" -c docs -W --keep-going -q -d docs/_build/doctrees "$@" . "docs/_build/$builder"
if [ "$builder" = html ]; then echo "docs/_build/html/index.html"; fi
