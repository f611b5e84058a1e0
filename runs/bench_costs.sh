#!/usr/bin/env bash
# What training and starting cost, by `vita-vla bench`: results/bench/, docs/performance.md, results/summary.json.
#
# Hardware: two CPU cores, otherwise idle. Wall time: about fifteen minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
VITA=.venv/bin/vita-vla PYTHON=.venv/bin/python

$VITA bench align compile --threads 1
$VITA bench import startup
$VITA bench data train --threads 2
$PYTHON scripts/publish.py results/bench --command "vita-vla bench align --threads 1" \
  a.align_speedup=align.json:align_speedup a.align_memory_ratio=align.json:align_memory_ratio \
  a.align_grad_diff=align.json:align_grad_diff \
  d.align_speedup=align.json:align_speedup d.align_memory_ratio=align.json:align_memory_ratio
$PYTHON scripts/publish.py results/bench --command "vita-vla bench import" \
  a.import_seconds=import.json:import_seconds
$PYTHON scripts/publish.py results/bench --command "vita-vla bench startup" \
  a.help_seconds=startup.json:help_seconds
$VITA bench --render
$PYTHON scripts/readme_tables.py
