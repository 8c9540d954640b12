"""What of an image's own feature can be read out of a released router state: a sanity check, no strong
attack.

Read-out: a state holds directions besides its centre, and what lies inside of them is described by a few
numbers. A Gaussian router keeps up to 32: of a task with 33 training images or fewer they span every one of
its images' features exactly, and nobody else's. Guess: who has the state alone would name its centre; how
much does that resemble a member, compared with an image that had no part in it?

Both end at the pooled feature (C or 2 C numbers an image). From there to an embedding (C x 64 x 64), let
alone to pixels, is another and longer way that is not gone here.

f_NF: features. state: of casam_core.routing.routers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.routing.routers import Arrays
from casam_core.routing.routers.vae import LATENT, TaskVae

Read = Callable[[Tensor, Arrays], tuple[Tensor, Tensor]]
"""(f_NF, state) -> (centre_F, read-out of every feature)."""


def read_by_directions(f_NF: Tensor, state: Arrays) -> tuple[Tensor, Tensor]:
    """Gaussian: the projection onto the released directions around the released mean."""
    mean_F, directions_KF = array(state, "mean_F"), array(state, "directions_KF")
    # Directions are stored times their spread; those of next to none are rounding.
    length_K = torch.linalg.vector_norm(directions_KF, dim=1)
    kept_KF = directions_KF[length_K > 1e-6 * length_K.max()] if len(length_K) else directions_KF
    axes_FK, _ = torch.linalg.qr(kept_KF.T)
    return mean_F, mean_F + (f_NF - mean_F) @ axes_FK @ axes_FK.T


def read_by_mean(f_NF: Tensor, state: Arrays) -> tuple[Tensor, Tensor]:
    """Nearest mean: there is nothing but the mean."""
    mean_F = array(state, "mean_F")
    return mean_F, mean_F.expand_as(f_NF)


@torch.no_grad()
def read_by_autoencoder(f_NF: Tensor, state: Arrays) -> tuple[Tensor, Tensor]:
    """VAE: the reconstruction, around what the decoder makes of nothing."""
    vae = TaskVae(f_NF.shape[1])
    vae.load_state_dict({name: array(state, name) for name in state})
    vae = vae.double()
    return vae.decode(torch.zeros(1, LATENT).double())[0], vae.decode(vae.encode(f_NF)[0])


def array(state: Arrays, name: str) -> Tensor:
    """One array of a state, in double precision."""
    return torch.from_numpy(np.array(state[name])).double()


READS: dict[str, Read] = {
    "gaussian": read_by_directions,
    "nearest_mean": read_by_mean,
    "vae": read_by_autoencoder,
}
"""By the names of casam_core.routing.routers.ROUTERS."""


def read_out(kind: str, f_NF: Tensor, state: Arrays) -> NDArray[np.float64]:
    """share_N: of each feature's squared distance from the centre, what the state explains; 1 is all."""
    f_NF = f_NF.double()
    centre_F, read_NF = READS[kind](f_NF, state)
    left_N = (f_NF - read_NF).square().sum(1)
    whole_N = (f_NF - centre_F).square().sum(1)
    share_N: NDArray[np.float64] = (1 - left_N / whole_N.clamp(min=1e-12)).numpy()
    return share_N


def resemblance(kind: str, f_NF: Tensor, others_MF: Tensor, state: Arrays) -> NDArray[np.float64]:
    """r_N: correlation of the state's centre with each feature, both as differences from what others look
    like.

    others_MF: two features or more of images that had no part in the state; their mean and standard
    deviation are what somebody knows without the state. Where f_NF are these very features, each is
    compared with the rest.
    """
    same = f_NF.shape == others_MF.shape and bool((f_NF == others_MF).all())
    centre_F = READS[kind](f_NF.double(), state)[0].numpy()
    found = []
    for number, f_F in enumerate(f_NF.double().numpy()):
        rest_MF = others_MF.double().numpy()
        if same:
            rest_MF = np.delete(rest_MF, number, axis=0)
        usual_F, spread_F = rest_MF.mean(0), np.maximum(rest_MF.std(0), 1e-9)
        found.append(np.corrcoef((centre_F - usual_F) / spread_F, (f_F - usual_F) / spread_F)[0, 1])
    return np.array(found)
