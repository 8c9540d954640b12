"""The score of an image under a router state: the basis of attacks on routers.

Members are nearer to the Gaussian (or autoencoder) that was fitted to them than other images of the task.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from casam_core.routing.routers import Arrays, Router


def fits_of(router: Router, f_NF: Tensor, state: Arrays) -> NDArray[np.float64]:
    """fit_N: the negative score of every feature, so that a higher value is nearer to the task."""
    return np.array([-router.score(f_F, state) for f_F in f_NF])
