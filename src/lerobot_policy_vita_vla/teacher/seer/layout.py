"""Which token sits where in the trunk's sequence, and which may read which.

One time step (Seer's order), with N cameras::

    [text] [state] [image 1..NQ] [cls 1..N] [foresight 1..NF] [action 1..T]
    '------------ observed --------------'  '--------- predicted --------'

H such steps follow each other, oldest first. A token reads

* the observed tokens of its own and of earlier steps, whatever it is;
* the foresight tokens of its own step, if it is itself an action token;
* the tokens of its own kind and step, if it is itself foresight or action, and ``queries_read_peers``.

So nothing reads the future, and predictions never leak into what other steps read. In the published networks
``queries_read_peers`` is False: a query there reads neither its neighbours nor even itself (Seer's code).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepLayout:
    """Token counts of one time step.

    Args:
        n_cameras: N.
        image_tokens: Q, image tokens per camera.
        foresight_tokens: F, foresight queries per camera.
        action_tokens: T, the chunk size.
        queries_read_peers: Foresight reads foresight, action reads action, within a step.
    """

    n_cameras: int
    image_tokens: int
    foresight_tokens: int
    action_tokens: int
    queries_read_peers: bool = True

    @property
    def observed(self) -> int:
        """Tokens that carry the observation."""
        return 2 + self.n_cameras * (self.image_tokens + 1)

    @property
    def foresight(self) -> int:
        """Foresight tokens of all cameras."""
        return self.n_cameras * self.foresight_tokens

    @property
    def per_step(self) -> int:
        """All tokens of one step (paper: 37 for base, 71 for large, both with two cameras)."""
        return self.observed + self.foresight + self.action_tokens

    @property
    def foresight_slice(self) -> slice:
        """Where a step's foresight tokens are."""
        return slice(self.observed, self.observed + self.foresight)

    @property
    def action_slice(self) -> slice:
        """Where a step's action tokens are."""
        return slice(self.observed + self.foresight, self.per_step)

    def attention_mask(self, n_steps: int) -> Tensor:
        """May the row's token read the column's? Bool, (M, M) with M = n_steps * per_step."""
        kind = torch.empty(self.per_step, dtype=torch.long)
        kind[: self.observed], kind[self.foresight_slice], kind[self.action_slice] = 0, 1, 2
        kind, step = kind.repeat(n_steps), torch.arange(n_steps).repeat_interleave(self.per_step)
        reader_kind, reader_step = kind[:, None], step[:, None]
        observed = (kind == 0) & (step <= reader_step)
        peers = kind <= reader_kind if self.queries_read_peers else kind < reader_kind
        own_prediction = (kind > 0) & peers & (step == reader_step)
        return observed | own_prediction
