#!/usr/bin/env bash
# Two-stage against only-finetune on the five tasks: three finetune budgets, three training seeds, one manifest,
# at equal finetune steps and at equal total time; and which schedule avoids the dip in success that the first
# finetune steps were seen to cause (a kept alignment term, averaged weights).
#
# Hardware: two CPU cores with AMX, no GPU. Wall time: about 90 min after runs/five_tasks.sh, whose
# demonstrations, teacher and manifest it uses. Continues where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=${RUN:-work/quickstart}
.venv/bin/vita-vla ablate "$RUN" --variants two_stage,only_finetune,only_finetune_equal_compute \
  --finetune-steps 100,300,600 --seeds 0,1,2
