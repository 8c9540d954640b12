"""A public frame from features of public images (casam_core/routing/public_frames.py says what a frame is).

A node only reads frames, by their digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.routing.public_frames import LEAST_SCATTER, PublicFrame, axes_of

WHITENING = 0.25
"""Axis a is scaled by (variance of axis 1 / variance of axis a) to this power; 0.5 would whiten fully."""
LONGER = 0.5
"""The share of public images that are longer than 1 before they are clipped."""
TO_DIAGONAL = 0.5
"""How far the scatter inside a task is shrunk towards its diagonal: it is estimated from few images."""


def make_frame(public: Mapping[str, NDArray[np.float64]], about: Mapping[str, Any]) -> PublicFrame:
    """The frame of public images.

    Args:
        public: f_NF of the images of each public modality; at least two modalities of at least two images.
        about: kept in the frame's file.

    Raises:
        ValueError: too few modalities or images.
    """
    if len(public) < 2 or any(len(f_NF) < 2 for f_NF in public.values()):
        raise ValueError("a frame needs at least two public modalities of at least two images")
    groups = [np.asarray(public[name], np.float64) for name in sorted(public)]
    everything_NF = np.concatenate(groups)
    mean_F, deviation_F = everything_NF.mean(0), np.maximum(everything_NF.std(0), 1e-9)
    white_NF = (everything_NF - mean_F) / deviation_F
    values, vectors_FF = np.linalg.eigh(white_NF.T @ white_NF / len(white_NF))
    kept = axes_of(len(mean_F))
    variance_K = np.maximum(values[::-1][:kept], 1e-6 * values[-1])
    axes_FK = vectors_FF[:, ::-1][:, :kept] * (variance_K[0] / variance_K) ** WHITENING / deviation_F[:, None]
    axes_FK /= np.quantile(np.linalg.norm((everything_NF - mean_F) @ axes_FK, axis=1), 1 - LONGER)
    placed = [clipped((f_NF - mean_F) @ axes_FK) for f_NF in groups]
    inside_KK = np.mean([np.cov(u_NK.T, bias=True).reshape(kept, kept) for u_NK in placed], axis=0)
    inside_KK = (1 - TO_DIAGONAL) * inside_KK + TO_DIAGONAL * np.diag(np.diag(inside_KK))
    scatter_K, turned_KK = np.linalg.eigh(inside_KK)
    return PublicFrame(
        mean_F.astype(np.float32),
        (axes_FK @ turned_KK).astype(np.float32),
        np.maximum(scatter_K, LEAST_SCATTER * (1 + 1e-6)).astype(np.float32),
        about,
    )


def clipped(u_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors of a length of at most 1."""
    clipped_NK: NDArray[np.float64] = u_NK / np.maximum(np.linalg.norm(u_NK, axis=1, keepdims=True), 1.0)
    return clipped_NK
