"""Make the public library of layers of a backbone from phantom images (casam_core/model/layer_library.py).

One layer learns all public tasks together. The directions are the leading principal directions of the
gradients of public images, at frozen SAM and at this layer. Of a low_rank layer, the matrix that reduces the
channels stays that of the joint layer, so that every layer that starts from it has the same basis.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
from casam_core.model.layer_library import LIBRARIES, LayerLibrary, library_named, uses_library
from casam_core.model.training import decode_batch, draw_instances, train_layer
from casam_core.privacy.dp_training import flat
from casam_core.seeding import numpy_generator
from client.data.phantoms import PHANTOMS
from scenarios.engines.public.frame_making import IMAGES, RECOLOURED, SEED, facts, phantoms_of, recoloured

FIXED = {"low_rank": ("down_RC",), "scale_shift": ()}
"""The forms that a library can hold, and their weights that all layers of a library share."""
JOINT_STEPS, LEARNING_RATE = 160, 3e-3
DIRECTIONS, GRADIENTS = 64, 8
"""Directions; images of each task whose gradients give them."""
MISSED = 0.25
"""The share of the square of a gradient's length that the directions miss for a task that is not among the
public ones: 0.18 to 0.35 for phantoms that were left out."""
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

    def joint(self, examples: Sequence[Example]) -> Weights:
        """A layer for all examples, rounded as the file rounds it."""
        self.say("learn all tasks together")
        layer, rng = self.layer(), numpy_generator(SEED, "library", "all tasks together")
        spec = SPEC.model_copy(update={"max_steps": JOINT_STEPS})
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
    joint = recipe.joint([example for examples in tasks.values() for example in examples])
    fixed = FIXED[spec.form]
    free = {name: value for name, value in joint.items() if name not in fixed}
    shared = {name: value for name, value in joint.items() if name in fixed}
    directions, shares_K = principal(gradients(recipe, tasks, shared, free), free)
    about = {
        "backbone": backbone.digest,
        "compute": backbone.compute.variant,
        "form": spec.form,
        "rank": rank_of(spec) if spec.form == "low_rank" else 0,
        "images": {name: len(examples) for name, examples in tasks.items()},
    }
    library = LayerLibrary(shared=shared, joint=free, directions=directions, shares_K=shares_K, about=about)
    return library.to_bytes()


def gradients(
    recipe: Recipe, tasks: dict[str, Examples], shared: Weights, joint: Weights
) -> NDArray[np.float64]:
    """gradient_ND of public images, over the joint layer's weights in their order, each of length 1."""
    rng = numpy_generator(SEED, "library", "gradients")
    zero = {name: np.zeros_like(value) for name, value in joint.items()}
    layers, rows = [recipe.layer({**shared, **free}) for free in (zero, joint)], []
    for task, examples in tasks.items():
        recipe.say(f"gradients of {task}")
        for layer, example in itertools.product(layers, examples[:GRADIENTS]):
            drawn = draw_instances(example, recipe.backbone, SPEC, "box", rng)
            if drawn is None:
                continue
            layer.zero_grad()
            batch = decode_batch(layer, recipe.backbone, [drawn])
            batch.overlap_loss().backward()  # type: ignore[no-untyped-call]
            rows.append(
                flat([p.grad for n, p in layer.named_parameters() if p.grad is not None and n in joint])
            )
    lengths_N1 = np.linalg.norm(rows, axis=1, keepdims=True)
    gradient_ND: NDArray[np.float64] = np.stack(rows) / np.maximum(lengths_N1, 1e-12)
    return gradient_ND


def principal(gradient_ND: NDArray[np.float64], joint: Weights) -> tuple[Weights, NDArray[np.float64]]:
    """The leading principal directions, and the share of a gradient's square along each."""
    _, along_N, rows_ND = np.linalg.svd(gradient_ND, full_matrices=False)
    shares_K = along_N[:DIRECTIONS] ** 2
    ends = np.cumsum([value.size for value in joint.values()])
    parts = np.split(rows_ND[:DIRECTIONS], ends[:-1], axis=1)
    directions = {
        name: part.reshape(-1, *value.shape).astype(np.float32)
        for (name, value), part in zip(joint.items(), parts, strict=True)
    }
    return rounded(directions), np.round((1 - MISSED) * shares_K / shares_K.sum(), 6)


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
            f"privacy.method: expected public_start, or alignment.start library; found "
            f"{scenario.privacy.method!r} and {scenario.alignment.start!r}, which use no library"
        )
    data = LIBRARIES.data(digest, LIBRARIES.here)
    library = LayerLibrary.from_bytes(data)
    own = {
        "form": f"{library.about.get('form', '')} {library.about.get('rank') or ''}".strip(),
        "directions": str(len(library.shares_K)),
    }
    return facts(LIBRARIES, data, own, scenario, library.about)


def difference_to_a_new_one(scenario: Scenario) -> float:
    """How far a library made on this machine is from the scenario's: 0 for equal bits.

    It is the share of public gradients along directions that the other one has not. Where both are made with
    the same arithmetic, the distance of the joint layers counts, too, in lengths of one; with another one,
    training ends elsewhere.
    """
    backbone = load_backbone(scenario.backbone, resolve_compute(scenario.compute))
    new = LayerLibrary.from_bytes(library_for(backbone, alignment_of(scenario)))
    old = LayerLibrary.from_bytes(LIBRARIES.data(library_named(scenario), LIBRARIES.here))
    names = sorted(old.joint)
    inside_K = np.square(old.rows(names) @ new.rows(names).T).sum(0)
    outside = 1 - float(np.average(inside_K, weights=new.shares_K))
    if new.about["compute"] != old.about.get("compute"):
        return max(0.0, outside)
    apart = np.concatenate([(new.joint[name] - old.joint[name]).ravel() for name in names])
    return max(0.0, outside, float(np.linalg.norm(apart)) / old.length)
