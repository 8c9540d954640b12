"""A folder is understood from the names of its files: a corpus of layouts, each with its reading."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from client.data.file_patterns import pairs_among
from scenarios.inspection.layout import Layout, layouts
from scenarios.inspection.named_files import ENDINGS


def names(pattern: str, *, patients: int = 3, each: int = 2) -> list[str]:
    """Files of several patients: {p} is the patient's number, {i} the image's number over all."""
    numbers = [(p, p * each + i) for p in range(patients) for i in range(each)]
    return sorted({pattern.format(p=p, i=i) for p, i in numbers})


def both(*patterns: str, **sizes: int) -> list[str]:
    return [file for pattern in patterns for file in names(pattern, **sizes)]


@dataclass(frozen=True)
class Case:
    """files: in the folder. image_files, mask_files: empty for images/ and masks/. The rest: counts."""

    files: list[str]
    image_files: str = ""
    mask_files: str = ""
    reader: str = "folder"
    pairs: int = 6
    groups: int = 0
    tests: int = 0
    notes: tuple[str, ...] = ()
    keys: dict[str, str] = field(default_factory=dict)


CASES = {
    # Two folders, equal names.
    "images and masks": Case(both("images/{i}.png", "masks/{i}.png")),
    "other endings": Case(both("images/{i}.jpg", "masks/{i}.png")),
    "upper case endings": Case(both("images/{i}.JPG", "masks/{i}.PNG")),
    "a readme beside": Case([*both("images/{i}.tif", "masks/{i}.tif"), "README.txt", "notes.csv"]),
    "upper case": Case(both("Images/{i}.png", "Labels/{i}.png"), "Images/{id}.*", "Labels/{id}.*"),
    "imgs and gt": Case(both("imgs/{i}.png", "gt/{i}.png"), "imgs/{id}.*", "gt/{id}.*"),
    "image and label": Case(both("image/a{i}.png", "label/a{i}.png"), "image/{id}.*", "label/{id}.*"),
    "x and y": Case(both("x/{i}.png", "y/{i}.png"), "x/{id}.*", "y/{id}.*"),
    "JPEGImages": Case(
        both("JPEGImages/{i}.jpg", "SegmentationObject/{i}.png"),
        "JPEGImages/{id}.*",
        "SegmentationObject/{id}.*",
    ),
    "below a folder": Case(
        both("data/images/{i}.png", "data/masks/{i}.png"), "data/images/{id}.*", "data/masks/{id}.*"
    ),
    "Ground_truth": Case(
        both("Original/{i}.png", "Ground Truth_gt/{i}.png"), "Original/{id}.*", "Ground Truth_gt/{id}.*"
    ),
    # Two folders, an affix.
    "masks with a suffix": Case(
        both("images/x{i}.png", "masks/x{i}_mask.png"), "images/{id}.*", "masks/{id}_mask.*"
    ),
    "masks with a prefix": Case(
        both("images/x{i}.png", "masks/mask_x{i}.png"), "images/{id}.*", "masks/mask_{id}.*"
    ),
    "an unknown suffix": Case(
        both("images/x{i}.png", "masks/x{i}_expertA.png"), "images/{id}.*", "masks/{id}_expertA.*"
    ),
    "both have a suffix": Case(
        both("images/x{i}_image.png", "labels/x{i}_label.png"), "images/{id}_image.*", "labels/{id}_label.*"
    ),
    "both have a prefix": Case(
        both("images/img_{i}.png", "masks/mask_{i}.png"), "images/img_{id}.*", "masks/mask_{id}.*"
    ),
    "ISIC": Case(
        both("images/ISIC_{i:04}.jpg", "masks/ISIC_{i:04}_segmentation.png"),
        "images/{id}.*",
        "masks/{id}_segmentation.*",
    ),
    "Cityscapes": Case(
        both("images/a_{i:06}_leftImg8bit.png", "gt/a_{i:06}_gtFine_instanceIds.png"),
        "images/{id}_leftImg8bit.*",
        "gt/{id}_gtFine_instanceIds.*",
    ),
    "numbers in the names": Case(
        both("images/case_{p}_{i}.png", "masks/case_{p}_{i}_mask.png"), "images/{id}.*", "masks/{id}_mask.*"
    ),
    # One folder.
    "mask in the same folder": Case(both("x{i}.jpg", "x{i}_mask.png"), "{id}.*", "{id}_mask.*"),
    "seg in the same folder": Case(both("x{i}.png", "x{i}-seg.png"), "{id}.*", "{id}-seg.*"),
    "GT in the same folder": Case(both("x{i}.png", "x{i}_GT.png"), "{id}.*", "{id}_GT.*"),
    "prefix in the same folder": Case(both("x{i}.png", "mask_x{i}.png"), "{id}.*", "mask_{id}.*"),
    "image and mask in the same folder": Case(
        both("x{i}_image.png", "x{i}_mask.png"), "{id}_image.*", "{id}_mask.*"
    ),
    "JPEG and PNG": Case(both("x{i}.jpg", "x{i}.png"), "{id}.jpg", "{id}.png"),
    "in a folder called images": Case(
        both("images/x{i}.png", "images/x{i}_mask.png"), "images/{id}.*", "images/{id}_mask.*"
    ),
    "an unknown word in the same folder": Case(
        both("x{i}.tif", "x{i}_cp_masks.tif"), "{id}.*", "{id}_cp_masks.*"
    ),
    "Ground Truth": Case(
        both("PNG/Original/{i}.png", "PNG/Ground Truth/{i}.png"),
        "PNG/Original/{id}.*",
        "PNG/Ground Truth/{id}.*",
    ),
    # A folder per patient.
    "the outer of two folders is the patient": Case(
        [
            f"p{p}/visit{v}/{i}{end}.png"
            for p in (1, 2)
            for v in (1, 2)
            for i in range(2)
            for end in ("", "_mask")
        ],
        "{patient}/{folder}/{id}.*",
        "{patient}/{folder}/{id}_mask.*",
        pairs=8,
        groups=2,
    ),
    "patients in images and masks": Case(
        both("images/patient_{p:03}/slice{i}.png", "masks/patient_{p:03}/slice{i}.png"),
        "images/{patient}/{id}.*",
        "masks/{patient}/{id}.*",
        groups=3,
    ),
    "images and masks in patients": Case(
        both("p{p}/images/{i}.png", "p{p}/masks/{i}.png"),
        "{patient}/images/{id}.*",
        "{patient}/masks/{id}.*",
        groups=3,
    ),
    "masks beside images in patients": Case(
        both("case{p}/{i}.png", "case{p}/{i}_mask.png"), "{patient}/{id}.*", "{patient}/{id}_mask.*", groups=3
    ),
    "the same names in all patients": Case(
        [f"p{p}/{part}/{i}.png" for p in range(3) for part in ("img", "seg") for i in range(2)],
        "{patient}/img/{id}.*",
        "{patient}/seg/{id}.*",
        groups=3,
    ),
    "LGG": Case(
        both("TCGA_{p}_19/TCGA_{p}_19_{i}.tif", "TCGA_{p}_19/TCGA_{p}_19_{i}_mask.tif"),
        "{patient}/{id}.*",
        "{patient}/{id}_mask.*",
        groups=3,
    ),
    "classes are no patients": Case(
        [
            f"{kind}/{kind} ({i}){end}.png"
            for kind in ("benign", "malignant")
            for i in range(3)
            for end in ("", "_mask")
        ],
        "{folder}/{id}.*",
        "{folder}/{id}_mask.*",
    ),
    # Parts of a split.
    "train, val, test": Case(
        [
            f"{s}/{part}/{s}{i}.png"
            for s in ("train", "val", "test")
            for part in ("images", "masks")
            for i in range(2)
        ],
        "{split}/images/{id}.*",
        "{split}/masks/{id}.*",
        tests=2,
    ),
    "parts inside images and masks": Case(
        [
            f"{part}/{s}/{s}{i}.png"
            for s in ("Train", "Test")
            for part in ("images", "masks")
            for i in range(3)
        ],
        "images/{split}/{id}.*",
        "masks/{split}/{id}.*",
        tests=3,
    ),
    "validation is the test part where there is no other": Case(
        [
            f"{s}/{part}/{i}.png"
            for s in ("training", "validation")
            for part in ("images", "labels")
            for i in range(3)
        ],
        "{split}/images/{id}.*",
        "{split}/labels/{id}.*",
        tests=3,
    ),
    "only training": Case(
        both("train/images/{i}.png", "train/masks/{i}.png"), "{split}/images/{id}.*", "{split}/masks/{id}.*"
    ),
    "part and role in one name": Case(
        [f"{s}_{part}/{i}.png" for s in ("train", "test") for part in ("images", "masks") for i in range(3)],
        "{split}_images/{id}.*",
        "{split}_masks/{id}.*",
        tests=3,
    ),
    "parts and a suffix": Case(
        [f"{s}/{s}{i}{end}.png" for s in ("train", "test") for end in ("", "_mask") for i in range(3)],
        "{split}/{id}.*",
        "{split}/{id}_mask.*",
        tests=3,
    ),
    "parts and patients": Case(
        [
            f"{s}/{part}/{s[:2]}{p}/{i}.png"
            for s in ("train", "test")
            for part in ("images", "masks")
            for p in range(3)
            for i in range(1)
        ],
        "{split}/images/{patient}/{id}.*",
        "{split}/masks/{patient}/{id}.*",
        groups=6,
        tests=3,
    ),
    # Several masks for each image.
    "a mask for each instance": Case(
        [*names("images/x{i}.png"), *[f"masks/x{i}_mask_{n}.png" for i in range(6) for n in range(1, 4)]],
        "images/{id}.*",
        "masks/{id}_mask{n}.*",
    ),
    "numbers only": Case(
        [*names("images/x{i}.png"), *[f"masks/x{i}_{n}.png" for i in range(6) for n in range(1, 3)]],
        "images/{id}.*",
        "masks/{id}{n}.*",
    ),
    "numbers after numbers": Case(
        [*names("images/case_{i}.png"), *[f"masks/case_{i}_{n}.png" for i in range(6) for n in range(1, 3)]],
        "images/{id}.*",
        "masks/{id}{n}.*",
    ),
    "instances beside the image": Case(
        [*names("x{i}.png"), *[f"x{i}_mask_{n}.png" for i in range(6) for n in range(1, 3)]],
        "{id}.*",
        "{id}_mask{n}.*",
    ),
    "BUSI": Case(
        [
            f"{kind}/{kind} ({i}){end}.png"
            for kind in ("benign", "malignant")
            for i in range(3)
            for end in ("", "_mask", *(["_mask_1"] if i else []))
        ],
        "{folder}/{id}.*",
        "{folder}/{id}_mask{n}.*",
    ),
    "DSB 2018": Case(
        [
            file
            for i in range(6)
            for file in (
                f"a{i:063}/images/a{i:063}.png",
                *(f"a{i:063}/masks/b{i}{n:062}.png" for n in range(3)),
            )
        ],
        "{patient}/images/{id}.*",
        "{patient}/masks/*.*",
        groups=6,
    ),
    # Volumes.
    "NIfTI": Case(both("images/v{i}.nii.gz", "masks/v{i}.nii.gz"), reader="nifti"),
    "NIfTI with a suffix": Case(both("v{i}.nii", "v{i}_seg.nii"), "{id}.*", "{id}_seg.*", reader="nifti"),
    "NIfTI in patients": Case(
        names("patient{p:03}/image.nii.gz", each=1) + names("patient{p:03}/mask.nii.gz", each=1),
        "{patient}/image.nii.gz",
        "{patient}/mask.nii.gz",
        reader="nifti",
        pairs=3,
        groups=3,
    ),
    "NIfTI named by the patient": Case(
        names("P{p:03}/P{p:03}_t1.nii.gz", each=1) + names("P{p:03}/P{p:03}_seg.nii.gz", each=1),
        "{patient}/{patient}_t1.nii.gz",
        "{patient}/{patient}_seg.nii.gz",
        reader="nifti",
        pairs=3,
        groups=3,
    ),
    "nnU-Net": Case(
        ["dataset.json", *both("imagesTr/v_{i:03}_0000.nii.gz", "labelsTr/v_{i:03}.nii.gz")],
        "imagesTr/{id}_0000.*",
        "labelsTr/{id}.*",
        reader="nifti",
        notes=("of each case only the first channel (_0000) is read",),
    ),
    "nnU-Net with two channels": Case(
        [
            "dataset.json",
            *both(
                "imagesTr/v_{i:03}_0000.nii.gz", "imagesTr/v_{i:03}_0001.nii.gz", "labelsTr/v_{i:03}.nii.gz"
            ),
        ],
        "imagesTr/{id}_0000.*",
        "labelsTr/{id}.*",
        reader="nifti",
        notes=("of each case only the first channel (_0000) is read",),
    ),
    "nnU-Net with a test folder": Case(
        [
            "dataset.json",
            *both("imagesTr/v_{i:03}_0000.png", "labelsTr/v_{i:03}.png"),
            "imagesTs/v_900_0000.png",
        ],
        "imagesTr/{id}_0000.*",
        "labelsTr/{id}.*",
        notes=(
            "not read: 1 files in imagesTs/",
            "of each case only the first channel (_0000) is read",
        ),
    ),
    "Medical Segmentation Decathlon": Case(
        ["dataset.json", *both("imagesTr/la_{i:03}.nii.gz", "labelsTr/la_{i:03}.nii.gz")],
        "imagesTr/{id}.*",
        "labelsTr/{id}.*",
        reader="nifti",
    ),
}

VOC = [
    *names("VOC2012/JPEGImages/{i}.jpg", each=4),
    *both("VOC2012/SegmentationObject/{i}.png", "VOC2012/SegmentationClass/{i}.png"),
]
CASES |= {
    # A mask for each class.
    "a folder for each class": Case(
        [*names("images/{i}.png"), *names("masks/liver/{i}.png"), *names("masks/spleen/{i}.png")[:4]],
        "images/{id}.*",
        "masks/{class}/{id}.*",
    ),
    "a folder for each class, numbered": Case(
        [*names("images/{i}.png"), *names("masks/1_liver/{i}.png"), *names("masks/2_spleen/{i}.png")],
        "images/{id}.*",
        "masks/{class}/{id}.*",
    ),
    "a folder for each class, with a suffix": Case(
        [*names("img/x{i}.jpg"), *[f"gt/{c}/x{i}_mask.png" for c in ("a", "b") for i in range(6)]],
        "img/{id}.*",
        "gt/{class}/{id}_mask.*",
    ),
    "classes in parts of a split": Case(
        [
            file
            for s in ("train", "test")
            for i in range(3)
            for file in (f"{s}/images/{i}.png", *(f"{s}/masks/{c}/{i}.png" for c in ("cup", "disc")))
        ],
        "{split}/images/{id}.*",
        "{split}/masks/{class}/{id}.*",
        tests=3,
    ),
    "a folder for each image with its classes": Case(
        [*names("images/x{i}.png"), *[f"masks/x{i}/{c}.png" for c in ("cup", "disc") for i in range(6)]],
        "images/{id}.*",
        "masks/{id}/{class}.*",
    ),
    "a folder for each image with its instances": Case(
        [*names("images/x{i}.png"), *[f"masks/x{i}/{n}.png" for n in range(3) for i in range(6)]],
        "images/{id}.*",
        "masks/{id}/*.*",
    ),
    "TotalSegmentator": Case(
        [
            file
            for p in range(3)
            for file in (
                f"s{p:04}/ct.nii.gz",
                *(f"s{p:04}/segmentations/{c}.nii.gz" for c in ("liver", "spleen", "rib_left_1")),
            )
        ],
        "{patient}/{id}.*",
        "{patient}/segmentations/{class}.*",
        reader="nifti",
        pairs=3,
        groups=3,
    ),
    # More formats.
    "NRRD": Case(both("images/v{i}.nrrd", "masks/v{i}.nrrd"), reader="itk"),
    "3D Slicer": Case(both("v{i}.nrrd", "v{i}.seg.nrrd"), "{id}.*", "{id}.seg.*", reader="itk"),
    "MHD with its RAW": Case(
        both("scans/v{i}.mhd", "scans/v{i}.raw", "masks/v{i}.mhd", "masks/v{i}.raw"),
        "scans/{id}.*",
        "masks/{id}.*",
        reader="itk",
    ),
    "MHA in patients": Case(
        names("P{p:03}/ct.mha", each=1) + names("P{p:03}/seg.mha", each=1),
        "{patient}/ct.mha",
        "{patient}/seg.mha",
        reader="itk",
        pairs=3,
        groups=3,
    ),
    "nnU-Net with NRRD": Case(
        ["dataset.json", *both("imagesTr/v_{i:03}_0000.nrrd", "labelsTr/v_{i:03}.nrrd")],
        "imagesTr/{id}_0000.*",
        "labelsTr/{id}.*",
        reader="itk",
        notes=("of each case only the first channel (_0000) is read",),
    ),
    "nnU-Net below its folder": Case(
        [
            "Dataset007_Pancreas/dataset.json",
            *both(
                "Dataset007_Pancreas/imagesTr/v_{i:03}_0000.nii.gz",
                "Dataset007_Pancreas/labelsTr/v_{i:03}.nii.gz",
            ),
        ],
        "Dataset007_Pancreas/imagesTr/{id}_0000.*",
        "Dataset007_Pancreas/labelsTr/{id}.*",
        reader="nifti",
        notes=("of each case only the first channel (_0000) is read",),
    ),
    "OME-TIFF with plain masks": Case(both("images/{i}.ome.tif", "masks/{i}.tif")),
    # Published layouts.
    "Cityscapes with all its files": Case(
        [
            file
            for s in ("train", "val")
            for city in ("aachen", "ulm")
            for i in range(2)
            for file in (
                f"leftImg8bit/{s}/{city}/{city}_{s}{i:06}_000019_leftImg8bit.png",
                *(
                    f"gtFine/{s}/{city}/{city}_{s}{i:06}_000019_gtFine_{kind}"
                    for kind in ("instanceIds.png", "labelIds.png", "color.png", "polygons.json")
                ),
            )
        ],
        "leftImg8bit/{split}/{folder}/{id}_leftImg8bit.*",
        "gtFine/{split}/{folder}/{id}_gtFine_instanceIds.*",
        pairs=8,
        tests=4,
    ),
    "numbered folds are no patients": Case(
        [f"fold{p}/{part}/{p}{i}.png" for p in range(3) for part in ("images", "masks") for i in range(2)],
        "{folder}/images/{id}.*",
        "{folder}/masks/{id}.*",
    ),
    "in German": Case(
        both("Bilder/Nr. {i}.PNG", "Masken/Nr. {i} (Maske).png"), "Bilder/{id}.*", "Masken/{id} (Maske).*"
    ),
    "patients with a word of a split": Case(
        names("BraTS20_Training_{p:03}/BraTS20_Training_{p:03}_t1.nii.gz", patients=6, each=1)
        + names("BraTS20_Training_{p:03}/BraTS20_Training_{p:03}_seg.nii.gz", patients=6, each=1),
        "{patient}/{patient}_t1.nii.gz",
        "{patient}/{patient}_seg.nii.gz",
        reader="nifti",
        pairs=6,
        groups=6,
    ),
    "LiTS": Case(
        both("volume-{i}.nii", "segmentation-{i}.nii"), "volume-{id}.*", "segmentation-{id}.*", reader="nifti"
    ),
    # Names that are hard to write.
    "braces in a folder": Case(
        both(
            "{raw}/images/{{i}}.png".replace("{raw}", "{{raw}}").replace("{{i}}", "{i}"),
            "{{raw}}/masks/{i}.png",
        ),
        "{{raw}}/images/{id}.*",
        "{{raw}}/masks/{id}.*",
    ),
    "spaces and umlauts": Case(
        both("Präparate 2024/Bilder images/Fall {i}.PNG", "Präparate 2024/Masken mask/Fall {i}.PNG"),
        "Präparate 2024/Bilder images/{id}.*",
        "Präparate 2024/Masken mask/{id}.*",
    ),
}

OTHERS = {
    "COCO": Case(["annotations.json", *names("images/{i}.jpg")], reader="coco"),
    "COCO train2017": Case(
        ["annotations/instances_train2017.json", *names("train2017/{i:012}.jpg")],
        reader="coco",
        keys={"annotations": "annotations/instances_train2017.json"},
    ),
    "Roboflow COCO": Case(
        ["_annotations.coco.json", *names("{i}.jpg")],
        reader="coco",
        keys={"annotations": "_annotations.coco.json"},
    ),
    "YOLO": Case(both("images/{i}.jpg", "labels/{i}.txt"), reader="yolo"),
    "YOLO of ultralytics": Case(
        [
            "data.yaml",
            *(
                f"{side}/{part}/{i}.{end}"
                for side, end in (("images", "jpg"), ("labels", "txt"))
                for part in ("train", "val")
                for i in range(6)
            ),
        ],
        reader="yolo",
        keys={"image_files": "images/{split}/{id}.*", "mask_files": "labels/{split}/{id}.*"},
    ),
    "YOLO of Roboflow": Case(
        [
            f"{part}/{side}/{i}.{end}"
            for side, end in (("images", "jpg"), ("labels", "txt"))
            for part in ("train", "valid", "test")
            for i in range(6)
        ],
        reader="yolo",
        keys={"image_files": "{split}/images/{id}.*", "mask_files": "{split}/labels/{id}.*"},
    ),
    "the authors' layout": Case(["dataset.json", *names("image/{i}.png")], reader="med_datasets"),
    "DICOM": Case(both("images/P{p}/{i}.dcm", "masks/P{p}/{i}.png"), reader="dicom"),
    "DICOM as an archive exports it": Case(
        both("P{p}/study/100-CT/1-{i}.dcm", "P{p}/study/200-SEG/1-1.dcm"), reader="dicom"
    ),
    "DICOM with a picture beside it": Case([*both("P{p}/CT/{i}.DCM"), "thumbnail.jpg"], reader="dicom"),
    "DICOM without endings": Case(both("images/P{p}/IM{i}", "masks/P{p}/IM{i}.png"), reader="dicom"),
}

UNKNOWN = {
    "no mask": names("images/{i}.png"),
    "no image at all": ["README.md", "a/b.txt"],
    "hardly any partner": [*names("images/a{i}.png"), *names("masks/b{i}.png")],
    "formats that no reader knows": both("images/{i}.czi", "masks/{i}.czi"),
    "YOLO without images": names("labels/{i}.txt"),
    "two datasets of nnU-Net": [
        f"{folder}/{file}"
        for folder in ("Dataset001_A", "Dataset002_B")
        for file in ("dataset.json", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_pairs_are_understood(name: str) -> None:
    case = CASES[name]
    keys = {"image_files": case.image_files, "mask_files": case.mask_files} if case.image_files else {}
    assert layouts(case.files) == [Layout(case.reader, keys, case.notes)]
    found = pairs_among(
        Path("data"),
        case.files,
        case.image_files or "images/{id}.*",
        case.mask_files or "masks/{id}.*",
        ENDINGS[case.reader],
    )
    counts = len(found), len({pair.group for pair in found} - {None}), Counter(p.part for p in found)["test"]
    assert counts == (case.pairs, case.groups, case.tests)


@pytest.mark.parametrize("name", OTHERS)
def test_other_readers_are_recognised(name: str) -> None:
    assert layouts(OTHERS[name].files) == [Layout(OTHERS[name].reader, OTHERS[name].keys)]


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_understood_gets_no_reading(name: str) -> None:
    assert layouts(UNKNOWN[name]) == []


def test_a_list_goes_before_the_names_of_the_files() -> None:
    files = [*both("images/{i}.png", "masks/{i}.png"), "split.csv", "notes.csv"]
    headers = {"split.csv": ["Image", "mask", "split", "patient"], "notes.csv": ["who", "when"]}
    assert layouts(files, headers) == [Layout("folder", {"list_file": "split.csv"})]
    assert layouts(files, {"notes.csv": ["image", "remark"]}) == [Layout("folder")]


def test_two_folders_of_masks_are_two_readings() -> None:
    files = both("images/{i}.png", "masks/{i}.png", "labels/{i}.png")
    assert [dict(found.keys) for found in layouts(files)] == [
        {"image_files": "images/{id}.*", "mask_files": "labels/{id}.*"},
        {},
    ]


def test_series_of_a_patient_are_several_readings() -> None:
    files = [f"P{p}/P{p}_{series}.nii.gz" for p in range(3) for series in ("t1", "t2", "seg")]
    assert [found.keys["image_files"] for found in layouts(files)] == [
        "{patient}/{patient}_t1.nii.gz",
        "{patient}/{patient}_t2.nii.gz",
    ]


def test_two_kinds_of_masks_are_two_readings() -> None:
    files = both("images/{i}_training.tif", "1st_manual/{i}_manual1.tif", "mask/{i}_training_mask.tif")
    assert {found.keys["mask_files"] for found in layouts(files)} == {
        "1st_manual/{id}_manual1.*",
        "mask/{id}_mask.*",
    }


def test_two_lists_of_coco_are_two_readings() -> None:
    files = ["annotations/instances_train2017.json", "annotations/instances_val2017.json"]
    assert [found.keys["annotations"] for found in layouts(files)] == files


def test_masks_of_several_persons_are_several_readings() -> None:
    files = both("images/{i}.png", "masks/expert1/{i}.png", "masks/expert2/{i}.png")
    assert [found.keys["mask_files"] for found in layouts(files)] == [
        "masks/expert1/{id}.*",
        "masks/expert2/{id}.*",
    ]


def test_suffixes_of_classes_are_several_readings() -> None:
    files = both("images/{i}.png", "masks/{i}_liver.png", "masks/{i}_spleen.png")
    assert sorted(str(found.keys["mask_files"]) for found in layouts(files)) == [
        "masks/{id}_liver.*",
        "masks/{id}_spleen.*",
    ]


def test_pascal_voc_reads_the_objects_of_the_listed_images() -> None:
    lists = {
        "VOC2012/ImageSets/Main": {"1", "9"},
        "VOC2012/ImageSets/Segmentation": {str(i) for i in range(6)},
    }
    (found,) = layouts(VOC, {}, lists)
    assert found.reader == "folder"
    assert found.keys == {
        "image_files": "VOC2012/JPEGImages/{id}.*",
        "mask_files": "VOC2012/SegmentationObject/{id}.*",
        "split_lists": "VOC2012/ImageSets/Segmentation",
    }


def test_lists_of_other_names_are_not_taken() -> None:
    files = both("images/{i}.png", "masks/{i}.png")
    assert layouts(files, {}, {"logs": {"a", "b"}}) == [Layout("folder")]


def test_a_missing_mask_hides_no_layout() -> None:
    files = both("images/x{i}.png", "masks/x{i}_mask.png")[:-1]
    assert [dict(found.keys) for found in layouts(files)] == [
        {"image_files": "images/{id}.*", "mask_files": "masks/{id}_mask.*"}
    ]


def test_the_corpus_has_its_size() -> None:
    assert len(CASES) + len(OTHERS) + len(UNKNOWN) >= 92
