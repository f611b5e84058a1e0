#!/usr/bin/env bash
# What each part of the recipe adds: every variant of `ablate.py:VARIANTS`, at 100 finetune steps (at
# the recipe's 300 nearly all of them succeed, which compares nothing), on the five tasks' 100 episodes.
#
# Hardware: two CPU cores with AMX, no GPU. Wall time: about 35 min after runs/five_tasks.sh, whose demonstrations,
# teacher and manifest it uses; the same command started in a second terminal shares the work.
# Expected: results/variants/ and the table of docs/ablations.md. Continues where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=${RUN:-work/quickstart}
OMP_NUM_THREADS=1 .venv/bin/vita-vla ablate "$RUN" --out "$RUN/variants" --finetune-steps 100 --seeds "${SEEDS:-0}" \
  --workers 1
cp "$RUN/manifest.json" "$RUN/variants/"
.venv/bin/python scripts/publish.py "$RUN/variants" results/variants --command "bash runs/variants.sh"
.venv/bin/python scripts/readme_tables.py
