#!/usr/bin/env bash
# The documentation, to docs/_build/html: every warning is an error. Needs pip install '.[docs]'.
#   scripts/docs.sh                             # then open docs/_build/html/index.html
#   scripts/docs.sh -D nb_execution_mode=off    # what is given goes to sphinx-build
#   scripts/docs.sh --linkcheck                 # asks the addresses of others; needs a network
set -euo pipefail
cd "$(dirname "$0")/.."
builder=html
if [ "${1:-}" = --linkcheck ]; then builder=linkcheck; shift; fi
output=${VAN_DOCS_OUTPUT:-docs/_build/$builder}
# The package of this checkout, also for the notebooks.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TF_CPP_MIN_LOG_LEVEL=3
# What TensorFlow and the kernel of the notebooks say of themselves, whatever they are told.
chatter='absl::InitializeLog|^[IWE][0-9]{4} [0-9:. ]+|IPKernelApp'
python -m sphinx -b "$builder" -c docs -W --keep-going -q -d docs/_build/doctrees "$@" . "$output" \
  2> >(grep -vE "$chatter" >&2 || true)
echo "$output"
