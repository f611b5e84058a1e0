"""One core and no network for every test; read before anything heavy is imported."""

import os

# Tiny tensors: more threads only make tests slower and, on a busy machine, their timing random.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from libero_helpers import libero_package  # noqa: E402, F401  (a fixture)
