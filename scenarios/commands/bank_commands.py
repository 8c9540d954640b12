"""`casam bank`, `casam predict`, `casam predict-volume`: list, check, combine and use banks.

Only `admit` changes a bank in place. Every other command writes a complete new folder, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

import typer

from casam_core.errors import BankError, PromptError, RunInputError
from casam_use.run_bank import bank_of_run
from scenarios.commands.terminal import Json, needs_folder, print_json
from scenarios.printing import console, plain_columns

bank_app = typer.Typer(no_args_is_help=True, help="List, check, combine, import and export banks.")


def of_a_run(folder: Path) -> Path:
    """The bank of a run, if `folder` is a run folder; else `folder`."""
    inside = bank_of_run(folder)
    return (
        inside if not (folder / "manifest.json").exists() and (inside / "manifest.json").exists() else folder
    )


BankFolder = Annotated[
    Path, typer.Argument(metavar="BANK", callback=of_a_run, help="The bank's folder, or a run's folder.")
]
NewFolder = Annotated[Path, typer.Option("--out", help="New folder; it must not exist yet.")]
OfBackbone = Annotated[
    str,
    typer.Option(
        "--backbone",
        metavar="NAME",
        help="Backbone of the files: a model or a SHA-256. The files themselves do not name it.",
    ),
]


@bank_app.command()
def show(bank: BankFolder, json_: Json = False) -> None:
    """List the entries of a bank in the order they were learned.

    For example: casam bank show RUN/bank
    """
    from casam_core.bank.bank import Bank
    from scenarios.report.words import ENTRY_HEADS, entry_row

    opened = Bank.open(bank)
    if json_:
        print_json(
            {
                "digest": opened.digest,
                "entries": [
                    {
                        "task": entry.task,
                        "threshold": entry.threshold,
                        "bytes": len(opened.bytes_of(entry.task)),
                        "digest": opened.digest_of(entry.task),
                        **asdict(entry.provenance),
                    }
                    for entry in opened
                ],
            }
        )
        return
    for line in plain_columns([ENTRY_HEADS, *(entry_row(opened, entry) for entry in opened)]):
        typer.echo(line)
    typer.echo("")
    for backbone in dict.fromkeys(entry.provenance.backbone for entry in opened):
        typer.echo(f"backbone  {backbone}")
    typer.echo(f"bank      {opened.digest}")


@bank_app.command()
def verify(bank: BankFolder, json_: Json = False) -> None:
    """Check the hash of every file and the content of every entry. Exits with 1 if anything is damaged.

    For example: casam bank verify RUN/bank
    """
    if not (bank / "manifest.json").exists():
        raise BankError(f"no bank at {bank}: expected a file manifest.json; check the path")
    from scenarios.inspection.verify import verify as faults_by_task

    try:
        found = faults_by_task(bank)
    except BankError as error:
        found = {"bank": [str(error)]}
    if json_:
        print_json(found)
    else:
        for name, faults in found.items():
            for fault in faults:
                typer.echo(f"FAIL  {name:<20} {fault}")
            if not faults and name != "bank":
                typer.echo(f"ok    {name}")
    if any(found.values()):
        raise typer.Exit(1)


@bank_app.command()
def admit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    task: Annotated[
        str | None,
        typer.Argument(help="The task whose entry is admitted. Without it: list the entries in quarantine."),
    ] = None,
    json_: Json = False,
) -> None:
    """Admit an entry from quarantine into the run's bank, and record it in events.jsonl.

    For example: casam bank admit RUN polyp
    """
    if not (run / "scenario.json").is_file():
        raise RunInputError(
            f"{run}: expected the folder of a run (scenario.json), found none; check the path"
        )
    from server.defence.quarantine import Quarantine, admit_by_hand

    if task is not None:
        admitted = admit_by_hand(run, task)
        if json_:
            print_json(asdict(admitted))
            return
        typer.echo(f"admitted {task} ({admitted.entry[:12]}); held back for: {'; '.join(admitted.reasons)}")
        return
    items = Quarantine(run).held_back()
    if json_:
        print_json([asdict(item) for item in items])
        return
    rows = [("task", "stage", "digest", "admitted", "reasons")]
    for item in items:
        admitted_yet = "yes" if item.admitted else "no"
        rows.append((item.task, str(item.stage), item.entry[:12], admitted_yet, "; ".join(item.reasons)))
    for line in plain_columns(rows) if items else ["nothing was held back"]:
        typer.echo(line)


@bank_app.command()
def remove(
    bank: BankFolder,
    task: Annotated[str, typer.Argument(help="The task whose entry is removed.")],
    out: NewFolder,
) -> None:
    """Write a new bank without one task's entry. The bytes of all other entries stay the same.

    For example: casam bank remove RUN/bank histology --out smaller
    """
    from casam_core.bank.bank import Bank
    from casam_use.edit import without

    _say_written(out, without(Bank.open(bank), task, out).tasks)


@bank_app.command()
def merge(
    banks: Annotated[
        list[Path], typer.Argument(metavar="BANK BANK...", help="Banks; the first one's tasks come first.")
    ],
    out: NewFolder,
) -> None:
    """Write a new bank with the entries of several banks. Banks that contradict each other are refused.

    For example: casam bank merge heart/bank lung/bank --out both
    """
    from casam_core.bank.bank import Bank
    from casam_use.edit import merged

    _say_written(out, merged({str(folder): Bank.open(of_a_run(folder)) for folder in banks}, out).tasks)


@bank_app.command()
def import_official(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with adapters_ckpt/ and vaes_ckpt/.")],
    out: NewFolder,
    order: Annotated[
        str | None, typer.Option(help="Tasks in the order they were learned: A,B,C. Default: sorted.")
    ] = None,
    backbone: OfBackbone = "vit_b",
    sampled: Annotated[
        bool, typer.Option("--sampled", help="Sample the router's latent, as the authors' code does.")
    ] = False,
) -> None:
    """Write a bank from the checkpoint files of the CA-SAM authors' code.

    For example: casam bank import-official official --out bank --order kvasir,covid
    """
    if not folder.is_dir():
        raise BankError(f"{folder}: expected a folder with adapters_ckpt/ and vaes_ckpt/, found no folder")
    from casam_use.edit import write_bank
    from scenarios.export.official import read_official

    entries = read_official(
        folder,
        backbone=backbone_digest(backbone),
        order=[name.strip() for name in order.split(",")] if order is not None else None,
        sampled=sampled,
    )
    tasks = write_bank(out, (entry.to_bytes() for entry in entries)).tasks
    if order is None and len(tasks) > 1:
        typer.echo(f"the files have no order, so tasks are sorted; to change it: --order {','.join(tasks)}")
    _say_written(out, tasks)


@bank_app.command()
def export_official(bank: BankFolder, out: NewFolder, backbone: OfBackbone = "vit_b") -> None:
    """Write checkpoint files for the CA-SAM authors' code (form casam, router vae, attention features).

    For example: casam bank export-official RUN/bank --out official
    """
    from casam_core.bank.bank import Bank

    opened = Bank.open(bank)
    from scenarios.export.official import write_official

    write_official(opened, out, backbone=backbone_digest(backbone))
    typer.echo(f"the files have no order and no backbone; to import: --order {','.join(opened.tasks)}")
    _say_written(out, opened.tasks)


@bank_app.command()
def export_onnx(bank: BankFolder, out: NewFolder) -> None:
    r"""Write TASK.onnx for every entry: layer and router for other programs, without the backbone.

    For example: casam bank export-onnx RUN --out onnx

    Needs an extra: pip install 'casam\[onnx]'. docs/using-a-bank.md says how to use the files.
    """
    from casam_use.loaded_bank import load_bank
    from scenarios.export.onnx_files import write_onnx

    _say_written(out, tuple(write_onnx(load_bank(bank), out)))


def backbone_digest(name: str) -> str:
    """SHA-256 of a backbone, given as a name or as the SHA-256 itself. Raises BankError."""
    from casam_core.model.backbones import released_digests

    known = released_digests()
    if name not in known and not re.fullmatch(r"[0-9a-f]{64}", name):
        raise BankError(f"--backbone: expected one of {', '.join(known)} or a SHA-256, found {name!r}")
    return known.get(name, name)


def _say_written(out: Path, tasks: tuple[str, ...]) -> None:
    typer.echo(f"{out}: {', '.join(tasks) or 'no tasks'}")


MOST_LABELS = 2**16 - 1

UsedBank = Annotated[Path, typer.Option(callback=of_a_run, help="The bank's folder, or a run's folder.")]
OfTask = Annotated[
    str | None, typer.Option(help="Use this task's entry, or identity (frozen SAM), without routing.")
]
Model = Annotated[
    str | None, typer.Option(help="Model of the backbone, if its weights are not released ones.")
]
Checkpoint = Annotated[str | None, typer.Option(help="Checkpoint file, for the official SAMs.")]
Device = Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option(help="1: the same bits as in a run. More: faster.")]


def predict(
    image: Annotated[Path, typer.Argument(help="PNG, JPEG or TIFF.")],
    bank: UsedBank,
    out: Annotated[Path, typer.Option(help="New .png for the mask: 0 background, 1..n the prompts.")],
    overlay: Annotated[
        Path | None,
        typer.Option(
            help="Also write a new .png of the image with every mask's outline; it is patient data."
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="A box by its first and last pixel; repeatable."),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y", help="A pixel of the object; X,Y:0 means --negative X,Y. Repeatable."),
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y", help="A pixel outside the object; all prompts are then of one object. Repeatable."
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="An earlier mask of the object, which box and points correct; all are then of one object."
        ),
    ] = None,
    one: Annotated[bool, typer.Option("--one", help="All boxes and points are of one object.")] = False,
    task: OfTask = None,
    backbone: Model = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Segment an image: write the mask of every prompt, and print the chosen entry and its score.

    For example: casam predict slice.png --bank bank --box 8,8,40,40 --out mask.png --overlay seen.png

    Masks are numbered in the order of the boxes, then of the points. Where masks overlap, the later wins.
    With --one, --negative or --mask there is one mask: of the object that all prompts describe.
    Without a box or point, the entry's finder looks for all instances, if it has one; the surest is number 1.
    """
    boxes = [coordinates("--box", text, 4) for text in box or []]
    points, labels = clicks_of(point or [], negative or [])
    check_out("--out", out, len(boxes) + len(points))
    if overlay is not None:
        check_out("--overlay", overlay, 0)
        if overlay.resolve() == out.resolve():
            raise PromptError(f"--overlay: expected another file than --out, found {overlay}; name a new one")

    from casam_core.bank.bank import Bank
    from casam_core.files import write_atomic
    from client.data.pixels import read_image, read_mask

    image_HW3, earlier_HW = read_image(image), None if mask is None else read_mask(mask)
    Bank.open(bank)
    # A slip in a file should not cost the seconds of the libraries, one in a prompt not those of the model.
    with console(stderr=True).status("loading the model"):
        from casam_use import telling
        from casam_use.loaded_bank import load_bank
        from casam_use.segmenter import Segmenter, backbone_for, has_finders
        from casam_use.user_prompts import UserPrompts

        asked = UserPrompts(boxes, points, labels, earlier_HW, one)
        asked.checked(*image_HW3.shape[:2], needed=False)
        loaded = load_bank(bank)
        asked.checked(*image_HW3.shape[:2], needed=not has_finders(loaded))
        model = backbone_for(loaded, backbone, checkpoint=checkpoint, device=device, threads=threads)
        prediction = Segmenter(model, loaded).predict(
            image_HW3, boxes, points=points, labels=labels, mask=asked.mask, one_object=one, task=task
        )
    write_atomic(out, telling.png_of(prediction.labels))
    if overlay is not None:
        from client.data.dataset import LoadedSample
        from scenarios.inspection.survey import overlay_of

        write_atomic(overlay, telling.as_png(overlay_of(LoadedSample(image_HW3, prediction.labels))))
    files = {"mask": str(out)} | ({"overlay": str(overlay)} if overlay is not None else {})
    if json_:
        print_json(telling.facts_of(prediction) | files)
    else:
        for line in telling.lines_of(prediction, forced=task is not None):
            typer.echo(line)
        for kind, file in files.items():
            typer.echo(f"{kind:<10} {file}")
    for line in telling.empty_warnings(prediction, tuple(loaded), forced=task is not None):
        typer.echo(line, err=True)


def predict_volume(
    volume: Annotated[
        Path, typer.Argument(help="NIfTI (.nii, .nii.gz), or a folder with one gray DICOM series.")
    ],
    bank: UsedBank,
    out: Annotated[Path, typer.Option(help="New .nii.gz for the mask: 0 background, 1..n the objects.")],
    slice_: Annotated[
        int | None,
        typer.Option("--slice", help="Index of the slice to begin on, from 0. Default: the finder chooses."),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X0,Y0,X1,Y1", help="An object in that slice, first and last pixel; repeatable."
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="The true mask, numbered as the boxes; casam prints 3D Dice and HD95 in mm."),
    ] = None,
    slice_axis: Annotated[
        int, typer.Option(min=0, max=2, help="Axis of the stored voxels across the slices (NIfTI).")
    ] = 2,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="CENTRE,WIDTH", help="Gray range, in the scan's units. Default: as in training."
        ),
    ] = None,
    task: OfTask = None,
    backbone: Model = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Segment objects in a scan: boxes on one slice, carried to the slices above and below.

    For example: casam predict-volume ct.nii.gz --bank RUN --slice 40 --box 84,60,190,171 --out mask.nii.gz

    The slice to begin on decides once which entry is used. In each direction an object ends where its mask
    is empty, uncertain, elsewhere, or suddenly larger. The mask lies on the scan's own grid.
    Without a box, the entry's finder looks for objects on the slice, if it has one; without a slice, too, it
    looks at nine and begins where it finds most.
    """
    boxes = [coordinates("--box", text, 4) for text in box or []]
    if boxes and slice_ is None:
        raise PromptError("--box: expected --slice beside it, found none; name the slice of the boxes")
    check_out("--out", out, len(boxes), (".nii", ".nii.gz"))
    centre_width = coordinates("--window", window, 2) if window is not None else None
    from casam_use.scan import read_labels, read_scan, write_labels

    screen = console(stderr=True)
    with screen.status("reading the scan"):
        scan = read_scan(volume, slice_axis, centre_width)
        true_DHW = read_labels(truth, scan) if truth is not None else None
    slices = len(scan.slices_DHW)
    if slice_ is not None and not 0 <= slice_ < slices:
        raise PromptError(f"--slice: expected 0 to {slices - 1}, found {slice_}; correct it")
    with screen.status("loading the model") as status:
        from casam_use import telling
        from casam_use.loaded_bank import load_bank
        from casam_use.propagation import segment_volume
        from casam_use.segmenter import Segmenter, backbone_for, has_finders
        from casam_use.user_prompts import UserPrompts

        loaded = load_bank(bank)
        UserPrompts(boxes).checked(*scan.slices_DHW.shape[1:], needed=not has_finders(loaded))
        model = backbone_for(loaded, backbone, checkpoint=checkpoint, device=device, threads=threads)
        found = segment_volume(
            Segmenter(model, loaded),
            scan,
            slice_,
            [(b[0], b[1], b[2], b[3]) for b in boxes],
            task=task,
            progress=lambda index: status.update(f"slice {index} of 0 to {slices - 1}"),
        )
    write_labels(found.labels_DHW, scan, out)
    objects = telling.volume_facts(found, scan, true_DHW)
    if json_:
        print_json(
            telling.facts_of(found.first)
            | {"slice": found.start, "objects": objects, "encoded": found.encoded, "mask": str(out)}
        )
    else:
        for line in telling.lines_of(found.first, forced=task is not None):
            typer.echo(line)
        typer.echo(f"{'slice':<10} {found.start}")
        for number, facts in enumerate(objects, 1):
            typer.echo(f"object {number:<3} {', '.join(map(telling.fact_text, facts.items()))}")
        typer.echo(f"{'mask':<10} {out}")
    for line in telling.empty_warnings(found.first, tuple(loaded), forced=task is not None):
        typer.echo(line, err=True)


def coordinates(option: str, text: str, count: int) -> list[float]:
    """`8,8,40,40` as numbers. Raises PromptError."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise PromptError(f"{option}: expected {count} numbers separated by commas, found {text!r}")
    return numbers


def clicks_of(point: Sequence[str], negative: Sequence[str]) -> tuple[list[list[float]], list[int] | None]:
    """(points, their labels) of --point and --negative; None if no label was given. Raises PromptError."""
    given = [text.rpartition(":") if ":" in text else (text, "", "") for text in point]
    for text, (_, _, label) in zip(point, given, strict=True):
        if label not in ("", "0", "1") or (":" in text and not label):
            raise PromptError(f"--point: expected X,Y, X,Y:1 or X,Y:0, found {text!r}")
    points = [coordinates("--point", place, 2) for place, _, _ in given]
    points += [coordinates("--negative", text, 2) for text in negative]
    labels = [int(label or 1) for _, _, label in given] + [0] * len(negative)
    return points, labels if negative or any(label for _, _, label in given) else None


def check_out(option: str, out: Path, prompts: int, endings: tuple[str, ...] = (".png",)) -> None:
    """Refuse an output that could not be written, before any work. Raises PromptError."""
    if not out.name.lower().endswith(endings):
        raise PromptError(f"{option}: expected a name ending in {' or '.join(endings)}, found {out.name!r}")
    try:
        if out.exists():
            raise PromptError(f"{option}: {out} exists already; name a new file")
        needs_folder(option, out)
        with NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}."):
            pass
    except OSError as error:
        raise PromptError(
            f"{option}: expected a file that can be written, found {out} ({error.strerror}); choose another"
        ) from error
    if prompts > MOST_LABELS:
        raise PromptError(f"expected at most {MOST_LABELS} prompts, found {prompts}; split them")
