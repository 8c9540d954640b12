"""How much of an image's feature a released router state reveals: a sanity check, not a strong attack.

Read-out: a state holds a centre and some directions. A Gaussian router keeps up to 32 directions. For a task
with 33 training images or fewer they span the features of these images exactly, and no other features. Guess:
an attacker with only the state would guess its centre. How similar is the centre to a member, compared with
an image that had no part in the state?

Both stop at the pooled feature (C or 2 C numbers per image). This module does not try to reconstruct
embeddings (C x 64 x 64) or pixels.

f_NF: features. state: of casam_core.routing.routers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from casam_core.routing.routers import ROUTERS, Arrays, Router


def can_read_out(kind: str) -> bool:
    """Whether routers of this kind have a read-out."""
    return kind in ROUTERS and ROUTERS[kind].read_out is not None


def centre_and_read_out(kind: str, router: Router, f_NF: Tensor, state: Arrays) -> tuple[Tensor, Tensor]:
    """(centre_F, read-out of every feature, NF). Raises ValueError unless `can_read_out`.

    kind: the name of `router`.
    """
    if not can_read_out(kind):
        raise ValueError(f"router.kind {kind!r}: there is no read-out of its states")
    read = ROUTERS[kind].read_out
    assert read is not None
    return read(router, f_NF.double(), state)


def read_out(kind: str, router: Router, f_NF: Tensor, state: Arrays) -> NDArray[np.float64]:
    """share_N: the share of each feature's squared distance from the centre that the state explains, <= 1."""
    f_NF = f_NF.double()
    centre_F, read_NF = centre_and_read_out(kind, router, f_NF, state)
    left_N = (f_NF - read_NF).square().sum(1)
    whole_N = (f_NF - centre_F).square().sum(1)
    share_N: NDArray[np.float64] = (1 - left_N / whole_N.clamp(min=1e-12)).numpy()
    return share_N


def resemblance(
    kind: str, router: Router, f_NF: Tensor, others_MF: Tensor, state: Arrays
) -> NDArray[np.float64]:
    """r_N: correlation of the state's centre with each feature, both normalised by the other images.

    others_MF: at least two features of images that had no part in the state. Their mean and standard
    deviation are the attacker's knowledge without the state. If f_NF equals others_MF, each feature is
    compared with the rest.
    """
    same = f_NF.shape == others_MF.shape and bool((f_NF == others_MF).all())
    centre_F = centre_and_read_out(kind, router, f_NF, state)[0].numpy()
    found = []
    for number, f_F in enumerate(f_NF.double().numpy()):
        rest_MF = others_MF.double().numpy()
        if same:
            rest_MF = np.delete(rest_MF, number, axis=0)
        usual_F, spread_F = rest_MF.mean(0), np.maximum(rest_MF.std(0), 1e-9)
        found.append(np.corrcoef((centre_F - usual_F) / spread_F, (f_F - usual_F) / spread_F)[0, 1])
    return np.array(found)
