"""What a router state makes of an image: the number that membership inference against routers goes by.

Members lie nearer to the Gaussian (or autoencoder) that was fitted to them than others of their kind do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from casam_core.routing.routers import Arrays, Router


def fits_of(router: Router, f_NF: Tensor, state: Arrays) -> NDArray[np.float64]:
    """fit_N: the score of every feature with its sign turned, so that higher is nearer to the task."""
    return np.array([-router.score(f_F, state) for f_F in f_NF])
