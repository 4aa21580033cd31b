#!/usr/bin/env bash
# Formatting, lint and types; fails on the first finding. Same locally and in CI.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff format --check .
ruff check .
mypy
