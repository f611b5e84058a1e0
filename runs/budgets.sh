#!/usr/bin/env bash
# Two-stage against only-finetune on the five tasks: three finetune budgets, three training seeds, one manifest,
# at equal finetune steps and at equal total time. Stage 2 is the paper's: no alignment term is kept.
#
# Hardware: two CPU cores with AMX, no GPU. Wall time: about 45 min after runs/five_tasks.sh, whose
# demonstrations, teacher and manifest it uses. Continues where it was stopped.
# Expected: results/budgets/ and the keys a.two_stage_minus_only_ft* of results/summary.json.
#
# PROCESSES (default: one per core, two at most) single-threaded processes run the same command and share its
# list of trainings: small networks gain little from a second thread. With one process, PyTorch's own threads.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=${RUN:-work/quickstart}
CORES=$(nproc)
PROCESSES=${PROCESSES:-$((CORES < 2 ? CORES : 2))}

ABLATE=(.venv/bin/vita-vla ablate "$RUN" --variants two_stage,only_finetune,only_finetune_equal_compute
  --finetune-steps 30,100,300 --seeds 0,1,2 --policy.align_weight=0)

if [ "$PROCESSES" -gt 1 ]; then
  export OMP_NUM_THREADS=1
  mkdir -p "$RUN/ablation"
  helpers=()
  # A process group each, so that stopping this script stops their trainings too.
  trap 'for helper in "${helpers[@]}"; do kill -- "-$helper" 2>/dev/null || true; done' EXIT
  set -m
  for i in $(seq 2 "$PROCESSES"); do
    "${ABLATE[@]}" --workers 1 >"$RUN/ablation/process_$i.log" 2>&1 &
    helpers+=($!)
  done
  set +m
  "${ABLATE[@]}" --workers 1
  for helper in "${helpers[@]}"; do
    wait "$helper" || { tail -n 20 "$RUN"/ablation/process_*.log; exit 1; }
  done
else
  "${ABLATE[@]}"
fi

.venv/bin/python scripts/publish.py "$RUN" results/budgets --command "bash runs/budgets.sh" \
  a.two_stage_minus_only_ft=ablation:only_finetune@300 \
  a.two_stage_minus_only_ft_30=ablation:only_finetune@30 \
  a.two_stage_minus_only_ft_100=ablation:only_finetune@100 \
  a.two_stage_minus_only_ft_equal_compute=ablation:only_finetune_equal_compute@300 \
  a.two_stage_minus_only_ft_equal_compute_100=ablation:only_finetune_equal_compute@100 \
  a.two_stage_minus_only_ft_equal_compute_30=ablation:only_finetune_equal_compute@30
.venv/bin/python scripts/plot_budgets.py results/budgets
.venv/bin/vita-vla report "$RUN"
.venv/bin/python scripts/readme_tables.py
