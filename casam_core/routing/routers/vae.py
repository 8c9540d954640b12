"""The paper's router: a variational autoencoder per task (CA-SAM, section on the router).

F -> 128 (gelu) -> mu, logvar in R^64; 64 -> 128 (gelu) -> F. The score, lower is better, is the
mean over F of (reconstruction - f)^2, plus beta * KL; KL is summed over the latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from casam_core.config.named_parts import VaeSpec
from casam_core.protocol.limits import ArraySpec
from casam_core.routing.routers.base import Arrays, Router, RouterSchema
from casam_core.seeding import initialisers_from

HIDDEN, LATENT = 128, 64


class TaskVae(nn.Module):
    """The network: 90,752 parameters at F = 256, Xavier initialisation, zero biases."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.enc_fc1 = nn.Linear(features, HIDDEN)
        self.enc_fc2_mu = nn.Linear(HIDDEN, LATENT)
        self.enc_fc2_logvar = nn.Linear(HIDDEN, LATENT)
        self.dec_fc1 = nn.Linear(LATENT, HIDDEN)
        self.dec_fc2 = nn.Linear(HIDDEN, features)
        for module in self.children():
            assert isinstance(module, nn.Linear)
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    @staticmethod
    def of(state: Arrays, features: int) -> TaskVae:
        """The network with the weights of a state. Raises RuntimeError if the state does not fit."""
        vae = TaskVae(features)
        vae.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
        return vae

    def statistics(self, images: int) -> Arrays:
        """The weights, and the number of images that they were trained on."""
        weights = {name: value.detach().numpy().copy() for name, value in self.state_dict().items()}
        return {"count": np.array([float(images)]), **weights}

    def encode(self, f_BF: Tensor) -> tuple[Tensor, Tensor]:
        """(mu_BL, logvar_BL)."""
        hidden = F.gelu(self.enc_fc1(f_BF))
        return self.enc_fc2_mu(hidden), self.enc_fc2_logvar(hidden)

    def decode(self, latent_BL: Tensor) -> Tensor:
        """Reconstruction_BF."""
        reconstruction: Tensor = self.dec_fc2(F.gelu(self.dec_fc1(latent_BL)))
        return reconstruction

    def score(self, f_BF: Tensor, beta: float, generator: torch.Generator | None) -> Tensor:
        """score_B; the latent is drawn with `generator`; without one, it is the mean.

        beta: the weight of the Kullback-Leibler divergence.
        """
        mu, logvar = self.encode(f_BF)
        latent = mu
        if generator is not None:
            latent = mu + torch.randn(mu.shape, generator=generator) * torch.exp(0.5 * logvar)
        error = (self.decode(latent) - f_BF).pow(2).mean(1)
        divergence = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1)
        return error + beta * divergence


class VaeRouter:
    """Trains one TaskVae per task; `merge` averages the weights of the holders by their image counts."""

    additive: ClassVar[bool] = False

    def __init__(self, spec: VaeSpec) -> None:
        self.spec = spec

    def sufficient_statistics(self, f_NF: Tensor, seed: int) -> Arrays:
        with initialisers_from(seed):
            vae = TaskVae(f_NF.shape[1])
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.Adam(vae.parameters(), lr=self.spec.learning_rate)
        for _ in range(self.spec.epochs):
            order = torch.randperm(len(f_NF), generator=generator)
            for start in range(0, len(f_NF), self.spec.batch):
                batch = order[start : start + self.spec.batch]
                loss = vae.score(f_NF[batch], self.spec.beta, generator).mean()
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return vae.statistics(len(f_NF))

    def merge(self, statistics: Sequence[Arrays]) -> Arrays:
        counts = np.array([part["count"][0] for part in statistics])
        shares = counts / counts.sum()
        merged = {
            key: np.sum([share * part[key] for share, part in zip(shares, statistics, strict=True)], axis=0)
            for key in statistics[0]
            if key != "count"
        }
        return {"count": counts.sum(keepdims=True), **merged}

    def fit(self, statistics: Arrays) -> Arrays:
        return {key: value.astype(np.float32) for key, value in statistics.items() if key != "count"}

    def schema(self, width: int) -> RouterSchema:
        with torch.device("meta"):
            parameters = TaskVae(width).state_dict().items()
        state = {name: ArraySpec(np.float32, tuple(value.shape)) for name, value in parameters}
        return RouterSchema(state, statistics={"count": ArraySpec(np.float64, (1,)), **state})

    @torch.no_grad()
    def score(self, f_F: Tensor, state: Arrays) -> float:
        vae = TaskVae.of(state, len(f_F))
        generator = torch.Generator().manual_seed(0) if self.spec.sampled else None
        return float(vae.score(f_F[None], self.spec.beta, generator)[0])


@torch.no_grad()
def read_by_autoencoder(router: Router, f_NF: Tensor, state: Arrays) -> tuple[Tensor, Tensor]:
    """ReadOut: the reconstruction, around the decoder's output for a latent of zeros."""
    vae = TaskVae.of(state, f_NF.shape[1]).double()
    return vae.decode(torch.zeros(1, LATENT).double())[0], vae.decode(vae.encode(f_NF)[0])
