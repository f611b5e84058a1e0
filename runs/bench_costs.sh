#!/usr/bin/env bash
# What an align step and starting cost, into results/bench/ and results/summary.json.
#
# Hardware: two CPU cores, otherwise idle. Wall time: about three minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=.venv/bin/python

$PYTHON runs/bench_align.py
$PYTHON scripts/publish.py results/bench --command "python runs/bench_align.py" \
  a.align_speedup=align.json:align_speedup a.align_memory_ratio=align.json:align_memory_ratio \
  a.align_grad_diff=align.json:align_grad_diff
$PYTHON runs/measure_imports.py
$PYTHON scripts/publish.py results/bench --command "python runs/measure_imports.py" \
  a.import_seconds=imports.json:import_seconds a.help_seconds=imports.json:help_seconds
$PYTHON scripts/readme_tables.py
