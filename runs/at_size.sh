#!/usr/bin/env bash
# What can be checked of the paper's sizes and formats without its weights: VLM families, trained parameters,
# Seer's checkpoint layouts, the conversion of VITA-1.5, the golden replay, how far `vita-vla plan` is off.
#
# Hardware: two CPU cores, 8 GB of memory, 40 GB of free disk, no GPU. Wall time: about 45 min.
# Expected: results/families, results/seer_layouts, results/bench/convert.json, results/replay, results/plan, and
# the keys b.* and c.* of results/summary.json.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=.venv/bin/python
publish() {  # FOLDER SCRIPT KEY=FILE:FIELD...: the script's numbers under its own command
  local folder=$1 script=$2
  shift 2
  [ -n "${ONLY_PUBLISH:-}" ] || $PYTHON "$script"
  $PYTHON scripts/publish.py "results/$folder" --command "python $script" "$@"
}

publish families runs/families.py b.families=families.json:families_passed \
  b.align_params_calvin=parameters.json:align_params_calvin \
  b.align_params_libero=parameters.json:align_params_libero b.finetune_params=parameters.json:finetune_params
publish seer_layouts runs/seer_layouts.py c.seer_layouts=layouts.json:layouts_exact
publish bench runs/measure_convert.py b.convert_peak_gib=convert.json:convert_peak_gib
publish replay runs/replay_caught.py c.replay_caught=replay_caught.json:caught
# The script's processes run with one thread each, whatever is set here.
publish plan runs/plan_error.py b.plan_error=plan_error.json:largest_error
$PYTHON scripts/readme_tables.py
