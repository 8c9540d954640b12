"""A finished bank, ready to use: the layer and the router of every task, and the route of an embedding.

z_CHW, z_BCHW: frozen embeddings, float32. f_F: pooled feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry
from casam_core.bank.inference import entry_layer, one_line, route_among
from casam_core.errors import BankError, NoEntryError, ScenarioError
from casam_core.model.forms import AlignmentLayer, changes_sam
from casam_core.model.forms.affine import channels_in
from casam_core.routing.decision import Route, decide
from casam_core.routing.features import pool
from casam_core.routing.routers import Router, build_router, router_spec
from casam_use.edit import check_alike
from casam_use.router_stack import Stack, stack_of

STACK_FROM = 6
"""From this number of entries on, a stack is worth its memory (70 KB per entry of a Gaussian router)."""


@dataclass(frozen=True)
class LoadedEntry:
    """One task, ready to use. layer: maps z_BCHW to z_BCHW, with frozen weights."""

    entry: Entry
    layer: AlignmentLayer
    router: Router
    channels: int

    @staticmethod
    def of(entry: Entry, frames: Path | None = None) -> LoadedEntry:
        """Build the layer and test the router once. Raises BankError if one of them does not work.

        frames: the bank's folder of public frames.
        """
        channels = 0 if changes_sam(entry.provenance.form) else channels_of(entry)  # entry_layer refuses it
        loaded = LoadedEntry(entry, entry_layer(entry, channels), entry_router(entry, frames), channels)
        try:
            if entry.threshold is not None:
                loaded.score(torch.zeros(channels, 2, 2))
        except Exception as error:  # arrays with other names or shapes can raise any kind of error
            raise BankError(
                f"entry of task {entry.task!r}: its {entry.provenance.router} router does not score a "
                f"{channels}-channel embedding ({type(error).__name__}: {one_line(error)})"
            ) from error
        return loaded

    def score(self, z_CHW: Tensor) -> float:
        """The router's score of an embedding; lower is more similar to this task."""
        return self.score_feature(pool(z_CHW, self.entry.provenance.features))

    def score_feature(self, f_F: Tensor) -> float:
        """The score of a pooled feature."""
        return self.router.score(f_F, self.entry.router)


class LoadedBank(Mapping[str, LoadedEntry]):
    """The tasks of a bank in the order of learning; immutable.

    frames: its folder of public frames. digest: of the bank. backbone: SHA-256 of the frozen weights that it
    needs; None for an empty bank.
    """

    def __init__(self, entries: Iterable[Entry], digest: str, frames: Path | None = None) -> None:
        known = list(entries)
        check_alike(known)
        self._entries = {entry.task: LoadedEntry.of(entry, frames) for entry in known}
        self.digest = digest
        self.backbone = known[0].provenance.backbone if known else None
        self._routable = [loaded for loaded in self._entries.values() if loaded.entry.threshold is not None]

    def __getitem__(self, task: str) -> LoadedEntry:
        if task not in self._entries:
            raise NoEntryError(
                f"no entry for task {task!r}; the bank holds: {', '.join(self._entries) or 'nothing'}"
            )
        return self._entries[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def route(self, z_BCHW: Tensor) -> tuple[Route, ...]:
        """One route per embedding, independent of the others. Raises BankError for another shape."""
        channels = {loaded.channels for loaded in self.values()}
        if z_BCHW.dim() != 4 or not channels <= {z_BCHW.shape[1]}:
            wanted = f"C = {channels.pop()}" if channels else "any C"
            raise BankError(f"expected z_BCHW with {wanted}, found shape {tuple(z_BCHW.shape)}")
        if not self._routable:
            return tuple(decide([], [], []) for _ in z_BCHW)
        # Entries of one bank share their router's features (check_alike).
        features = self._routable[0].entry.provenance.features
        return tuple(self.route_feature(pool(z_CHW, features)) for z_CHW in z_BCHW)

    def route_feature(self, f_F: Tensor) -> Route:
        """The route of one pooled feature; bitwise the same as if every entry were scored separately."""
        near = self._routable
        if self._stack is not None:
            near = [near[i] for i in self._stack.contenders(f_F)]
        return route_among(
            (loaded.entry.head for loaded in near), lambda head: self[head.task].score_feature(f_F)
        )

    @cached_property
    def _stack(self) -> Stack | None:
        """All states together, for enough entries of a router that can do it; else None."""
        if len(self._routable) < STACK_FROM:
            return None
        return stack_of(self._routable[0].router, [loaded.entry.router for loaded in self._routable])


def load_bank(folder: Path | str) -> LoadedBank:
    """The bank in `folder`, ready to use. Raises BankError if it is damaged or its entries do not fit."""
    bank = Bank.open(Path(folder))
    return LoadedBank(bank, bank.digest, bank.frames)


def channels_of(entry: Entry) -> int:
    """C of the embedding, from the layer. Raises BankError if the layer does not contain it."""
    try:
        return channels_in(entry.layer)
    except ValueError as error:
        raise BankError(f"entry of task {entry.task!r}: {error}; restore it from a copy") from error


def entry_router(entry: Entry, frames: Path | None = None) -> Router:
    """The router for this entry's state. Raises BankError for an unknown kind of router.

    frames: the bank's folder of public frames.
    """
    about = entry.provenance
    settings = {"features": about.features, "beta": about.beta, "sampled": about.sampled}
    settings |= {"frame": about.frame} if about.frame else {}
    try:
        return build_router(router_spec(about.router, settings), frames)
    except (ScenarioError, ValueError) as error:
        raise BankError(f"entry of task {entry.task!r} cannot be routed: {one_line(error)}") from error
