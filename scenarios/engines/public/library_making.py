"""Make the public library of layers of a backbone from phantom images (casam_core/model/layer_library.py).

First one layer learns all public tasks together. Then, from this layer, each public task and some tasks of
other borders (all structures smaller, all larger) learn a layer of their own. Of a low_rank layer, the matrix
that reduces the channels stays that of the joint layer, so that a sum of such layers has the same rank. The
directions are the leading principal directions of the gradients of public images, at the identity, at the
joint layer and at the layers of other tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from casam_core.config.named_parts import AlignmentSpec
from casam_core.config.scenario import Scenario, TrainingSpec
from casam_core.errors import ScenarioError
from casam_core.files import casam_home
from casam_core.methods import alignment_of
from casam_core.model.backbones import Backbone, load_backbone
from casam_core.model.compute import resolve_compute
from casam_core.model.embeddings import EmbeddingStore
from casam_core.model.examples import Example
from casam_core.model.forms import AlignmentLayer, Weights, build_layer, rank_of, set_weights, weights_of
from casam_core.model.layer_library import IDENTITY, LIBRARIES, LayerLibrary, library_named, uses_library
from casam_core.model.training import decode_batch, draw_instances, train_layer
from casam_core.seeding import numpy_generator
from client.data.phantoms import PHANTOMS
from scenarios.engines.public.frame_making import IMAGES, RECOLOURED, SEED, facts, phantoms_of, recoloured

FIXED = {"low_rank": ("down_RC",), "scale_shift": ()}
"""The forms that a library can hold, and their weights that all layers of a library share."""
JOINT_STEPS, OWN_STEPS, LEARNING_RATE = 160, 24, 3e-3
DIRECTIONS, GRADIENTS = 16, 6
"""Directions; images of each task whose gradients give them."""
BORDER = 0.12
"""How far the borders of smaller and larger structures move, in square roots of their areas."""
SPEC = TrainingSpec(epochs=10**6, batch_images=1, instances=4)

Examples = list[Example]


@dataclass(frozen=True)
class Recipe:
    """What the layers are made with."""

    backbone: Backbone
    spec: AlignmentSpec
    say: Callable[[str], None]

    def layer(self, weights: Weights | None = None) -> AlignmentLayer:
        """A layer of the form; new, or with these weights and the shared ones fixed."""
        layer = build_layer(self.spec, self.backbone.geometry.channels, SEED, self.backbone)
        layer.to(self.backbone.compute.device)
        if weights is not None:
            set_weights(layer, weights)
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_(name not in FIXED[self.spec.form])
        return layer

    def learned(self, layer: AlignmentLayer, examples: Sequence[Example], steps: int, name: str) -> Weights:
        """The layer's weights after this many steps, rounded as the file rounds them."""
        self.say(f"learn {name}")
        spec, rng = SPEC.model_copy(update={"max_steps": steps}), numpy_generator(SEED, "library", name)
        train_layer(layer, self.backbone, list(examples), spec, learning_rate=LEARNING_RATE, rng=rng)
        return rounded(weights_of(layer))


def rounded(weights: Weights) -> Weights:
    """The weights in half precision, as float32."""
    return {name: value.astype(np.float16).astype(np.float32) for name, value in weights.items()}


def public_tasks(backbone: Backbone, without: Collection[str] = ()) -> dict[str, Examples]:
    """Phantoms of every modality, and some of them in other colours."""
    store = EmbeddingStore(casam_home() / "public" / "embeddings")
    tasks: dict[str, Examples] = {}
    for modality in sorted(PHANTOMS.keys() - set(without)):
        loaded = phantoms_of(modality, IMAGES)
        tasks[modality] = [
            Example(store.embed(item.image_HW3, backbone)[1], item.labels_HW) for item in loaded
        ]
        tasks[f"{modality}, recoloured"] = [
            Example(store.embed(recoloured(item.image_HW3), backbone)[1], item.labels_HW)
            for item in loaded[:RECOLOURED]
        ]
    return tasks


def moved_borders(labels_HW: NDArray[np.int32], outwards: bool) -> NDArray[np.int32]:
    """The same structures, smaller or larger; none takes a pixel of another one."""
    moved_HW = np.zeros_like(labels_HW)
    for value in np.unique(labels_HW[labels_HW > 0]):
        own_HW = labels_HW == value
        times = max(1, round(BORDER * float(own_HW.sum()) ** 0.5))
        if outwards:
            grown_HW = ndimage.binary_dilation(own_HW, iterations=times)
            moved_HW[grown_HW & ((labels_HW == 0) | own_HW)] = value
        else:
            moved_HW[ndimage.binary_erosion(own_HW, iterations=times)] = value
    return moved_HW


def library_for(
    backbone: Backbone,
    spec: AlignmentSpec,
    say: Callable[[str], None] = lambda line: None,
    without: Collection[str] = (),
) -> bytes:
    """The file of the library for layers of this form. Raises ScenarioError for another form.

    without: modalities that are left out, so that a measurement can use them as private tasks.
    """
    if spec.form not in FIXED:
        raise ScenarioError(
            f"alignment.form: a library of layers can hold {' or '.join(FIXED)}, found {spec.form!r}; choose "
            "one of them, or privacy.method dp_sgd"
        )
    recipe, tasks = Recipe(backbone, spec, say), public_tasks(backbone, without)
    everything = [example for examples in tasks.values() for example in examples]
    joint = recipe.learned(recipe.layer(), everything, JOINT_STEPS, "all tasks together")
    learned = {"joint": joint}
    for name, examples in tasks.items():
        learned[name] = recipe.learned(recipe.layer(joint), examples, OWN_STEPS, name)
    for name, outwards in (("smaller", False), ("larger", True)):
        other = [Example(e.seen_CHW, moved_borders(e.labels_HW, outwards)) for e in everything]
        learned[name] = recipe.learned(recipe.layer(joint), other, OWN_STEPS, name)
    fixed = FIXED[spec.form]
    shared = {name: value for name, value in joint.items() if name in fixed}
    starts = {
        name: {key: value for key, value in weights.items() if key not in fixed}
        for name, weights in learned.items()
    }
    gradients_ND = gradients(recipe, tasks, {**shared}, starts)
    free = sorted(starts["joint"])
    directions = principal(gradients_ND, {name: starts["joint"][name].shape for name in free})
    flat_KD = np.concatenate([directions[name].reshape(len(directions[name]), -1) for name in free], axis=1)
    ways_ND = np.stack([flattened(starts[name], free) - flattened(starts["joint"], free) for name in tasks])
    about = {
        "backbone": backbone.digest,
        "compute": backbone.compute.variant,
        "form": spec.form,
        "rank": rank_of(spec) if spec.form == "low_rank" else 0,
        "images": {name: len(examples) for name, examples in tasks.items()},
    }
    return LayerLibrary(
        shared=shared,
        starts=starts,
        directions=directions,
        clip=float(np.median(np.linalg.norm(gradients_ND @ flat_KD.T, axis=1))),
        reach=float(np.median(np.linalg.norm(ways_ND @ flat_KD.T, axis=1))),
        about=about,
    ).to_bytes()


def flattened(weights: Weights, names: Sequence[str]) -> NDArray[np.float64]:
    """The named weights in one row."""
    return np.concatenate([weights[name].ravel() for name in names]).astype(np.float64)


def gradients(
    recipe: Recipe, tasks: dict[str, Examples], shared: Weights, starts: dict[str, Weights]
) -> NDArray[np.float64]:
    """gradient_ND of public images, each at the identity, at the joint layer and at another task's layer."""
    rng = numpy_generator(SEED, "library", "gradients")
    zero = {name: np.zeros_like(value) for name, value in starts["joint"].items()}
    at = {IDENTITY: zero, **starts}
    rows = []
    for task, examples in tasks.items():
        recipe.say(f"gradients of {task}")
        other = str(rng.choice(sorted(starts.keys() - {task, "joint"})))
        for place in (IDENTITY, "joint", other):
            layer = recipe.layer({**shared, **at[place]})
            for example in examples[:GRADIENTS]:
                drawn = draw_instances(example, recipe.backbone, SPEC, "box", rng)
                if drawn is None:
                    continue
                layer.zero_grad()
                batch = decode_batch(layer, recipe.backbone, [drawn])
                batch.overlap_loss().backward()  # type: ignore[no-untyped-call]
                found = {n: p.grad.cpu().numpy() for n, p in layer.named_parameters() if p.grad is not None}
                rows.append(flattened(found, sorted(zero)))
    return np.stack(rows)


def principal(gradients_ND: NDArray[np.float64], shapes: dict[str, tuple[int, ...]]) -> Weights:
    """The leading principal directions of the gradients, each gradient with a length of 1."""
    lengths_N1 = np.linalg.norm(gradients_ND, axis=1, keepdims=True)
    rows_KD = np.linalg.svd(gradients_ND / np.maximum(lengths_N1, 1e-12), full_matrices=False)[2][:DIRECTIONS]
    directions, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        directions[name] = rows_KD[:, start : start + size].reshape(-1, *shape)
        start += size
    return rounded({name: value.astype(np.float32) for name, value in directions.items()})


def with_library(scenario: Scenario, say: Callable[[str], None] = lambda line: None) -> Scenario:
    """The scenario with the digest of its library; a library that is missing is made and kept here.

    Raises CheckpointError if the backbone cannot be loaded, ScenarioError for a form without libraries.
    """
    privacy = scenario.privacy
    if not uses_library(scenario) or privacy.library is not None:
        return scenario
    backbone = load_backbone(scenario.backbone, resolve_compute(scenario.compute))
    digest = LIBRARIES.keep(library_for(backbone, alignment_of(scenario), say), LIBRARIES.here)
    return scenario.model_copy(update={"privacy": privacy.model_copy(update={"library": digest})})


def about_library(scenario: Scenario) -> dict[str, str]:
    """Facts about the library of a scenario. Raises ScenarioError for a scenario without one."""
    digest = library_named(scenario)
    if not digest:
        raise ScenarioError(
            f"privacy.method: expected subspace, or alignment.start library; found "
            f"{scenario.privacy.method!r} and {scenario.alignment.start!r}, which use no library"
        )
    data = LIBRARIES.data(digest, LIBRARIES.here)
    library = LayerLibrary.from_bytes(data)
    own = {
        "form": f"{library.about.get('form', '')} {library.about.get('rank') or ''}".strip(),
        "starts": ", ".join(library.names),
        "directions": str(len(library.flat_directions)),
    }
    return facts(LIBRARIES, data, own, scenario, library.about)


def difference_to_a_new_one(scenario: Scenario) -> float:
    """How much of the directions of a library made on this machine lies outside those of the scenario's: 0
    for equal bits, 1 if none is the same."""
    backbone = load_backbone(scenario.backbone, resolve_compute(scenario.compute))
    new = LayerLibrary.from_bytes(library_for(backbone, alignment_of(scenario)))
    old = LayerLibrary.from_bytes(LIBRARIES.data(library_named(scenario), LIBRARIES.here))
    inside = float(np.square(old.flat_directions @ new.flat_directions.T).sum())
    return max(0.0, 1 - inside / len(new.flat_directions))
