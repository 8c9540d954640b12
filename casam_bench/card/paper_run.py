"""The scenario paper-nine at a twentieth of its size on a card, and what that says about the whole.

Images are synthetic (paper_data.py) and the backbone's weights random: this measures speed. Everything else
is the scenario's: its institutions, layers, objective, router, 24 epochs, evaluation after every stage.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from casam_bench.bench import Figures
from casam_bench.card.card import Card, power_of
from casam_bench.card.paper_data import SIZES, write_all, write_checkpoint
from casam_core.config.library import scenario_path
from casam_core.config.scenario import Scenario
from casam_core.config.toml import apply_override, parse_scenario, read_table
from casam_core.errors import ScenarioError
from casam_core.files import sha256_of_file

FASTEST = ("compute.precision=auto", "compute.encoder=fast")
"""The arithmetic of the measurement; the scenario's own is float32 throughout."""

SHARE, SIDE, ORDERS = 20, 512, 3
SMALL_SHARE, SMALL_SIDE = 10_000, 64


def paper(card: Card, known: Figures) -> Figures:
    """paper_seconds of one order at 1/20 of the images; of it paper_PART_seconds by the parts of a stage
    that the summary names, and paper_other_seconds: before the first stage, where the test images are
    encoded. paper_nine_minutes: of the whole, three orders; the last two find all embeddings in the store.
    paper_watts and paper_wh: mean power and watt-hours of the run, if the driver tells."""
    share, side = (SMALL_SHARE, SMALL_SIDE) if card.small else (SHARE, SIDE)
    with tempfile.TemporaryDirectory(prefix="casam-paper-") as place:
        folder = Path(place)
        write_all(folder, share, side)
        scenario = paper_scenario(card, folder)
        with power_of(card) as power:
            taken = card.once(lambda: card.around.engines.inprocess(scenario, folder / "run"))
        stages = json.loads((folder / "run" / "summary.json").read_text())["timing"]["stages"]
    parts: dict[str, float] = {}
    for stage in stages:
        for part, seconds in stage.items():
            if part != "task":
                parts[part] = parts.get(part, 0.0) + seconds
    figures = {"paper_seconds": taken} | {f"paper_{part}_seconds": s for part, s in parts.items()}
    figures["paper_other_seconds"] = taken - sum(parts.values())
    all_orders = share * ORDERS * taken
    if (rate := known.get("stored_images_per_second")) is not None:
        all_orders -= (ORDERS - 1) * sum(train + test for train, test in SIZES.values()) / rate
    figures["paper_nine_minutes"] = all_orders / 60
    if power.mean is not None:
        figures |= {"paper_watts": power.mean, "paper_wh": power.mean * taken / 3600}
    return figures


def paper_scenario(card: Card, folder: Path) -> Scenario:
    """paper-nine on this device and on the images in `folder`, with random weights."""
    if card.small:
        backbone = ["backbone.name=tiny", "backbone.checkpoint=", "training.epochs=1", "router.epochs=1"]
    else:
        checkpoint = folder / "sam_vit_b_01ec64.pth"
        write_checkpoint(checkpoint, "vit_b")
        backbone = [f"backbone.checkpoint={checkpoint}", f"backbone.sha256={sha256_of_file(checkpoint)}"]
    table = read_table(scenario_path("paper-nine"), "scenario", ScenarioError)
    for override in (*backbone, f"compute.device={card.device}", *FASTEST):
        apply_override(table, override)
    for institution in table["institutions"]:
        for data in institution["data"].values():
            data["path"] = str(folder / data["path"])
    if card.small:
        del table["backbone"]["checkpoint"]
    return parse_scenario(table, "paper-nine")
