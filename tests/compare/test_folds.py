from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.compare.folds import (
    assign_folds,
    make_folds,
    own_unlabelled,
    patients_of,
    read_images,
    write_folds,
)
from meddet_yolo.data.convert.records import Item, NamedBox
from meddet_yolo.data.splits import LeakageError
from meddet_yolo.data.unlabelled import find_source, gather


@settings(max_examples=60, deadline=None)
@given(
    patients=st.lists(st.integers(0, 12), min_size=2, max_size=60),
    labels=st.lists(st.sampled_from("ab"), min_size=0, max_size=60),
    folds=st.integers(2, 6),
    seed=st.integers(0, 3),
)
def test_no_patient_is_in_two_folds_and_every_image_is_held_out_once(patients, labels, folds, seed):
    items = [
        Item(
            Path(f"/d/{i}.png"), [NamedBox(n, (0, 0, 1, 1)) for n in labels[i : i + 1]], patient=f"p{p}", split="train"
        )
        for i, p in enumerate(patients)
    ]
    if folds > len(set(patients)):
        with pytest.raises(ValueError, match="patients"):
            make_folds(items, folds, seed)
        return
    made = make_folds(items, folds, seed)
    assert len(made) == folds
    assert sorted(image for fold in made for image in fold.held_out) == sorted(str(item.path) for item in items)
    who = {str(item.path): item.patient for item in items}
    for fold in made:
        assert {who[image] for image in fold.held_out}.isdisjoint(who[image] for image in fold.train)
        assert sorted(fold.train + fold.held_out) == sorted(who)
        assert fold.held_out


def test_folds_hold_alike_of_every_class():
    items = [
        Item(Path(f"{i}.png"), [NamedBox("ab"[i % 2], (0, 0, 1, 1))], patient=f"p{i}", split="train") for i in range(40)
    ]
    fold = assign_folds(items, 4)
    assert [sum(f == k and i % 2 for i, f in enumerate(fold)) for k in range(4)] == [5, 5, 5, 5]


@pytest.mark.parametrize("how", [r"(p\d+)_", "table.csv", "who"])
def test_patients_come_from_a_pattern_or_a_table(data_set, how):
    rows = [f"images/{f.parent.name}/{f.name},{f.name[:2]}" for f in (data_set.parent / "images").glob("*/*.png")]
    if how == "table.csv":
        (data_set.parent / how).write_text("\n".join(["image,patient", *rows]))
    elif how == "who":
        (data_set.parent / "more.csv").write_text("\n".join(["image,who", *rows]))
    items = read_images(data_set, how)
    assert {item.path.name: item.patient for item in items} == {item.path.name: item.path.name[:2] for item in items}


def test_a_table_of_boxes_beside_the_yaml_names_the_patients(data_set):
    rows = [f"{f.name},{f.name[:2]},a,1,1,2,2" for f in (data_set.parent / "images").glob("*/*.png")]
    (data_set.parent / "train_boxes.csv").write_text("\n".join(["image,patient,class,x0,y0,x1,y1", *rows]))
    assert {item.patient for item in read_images(data_set)} == {f"p{i}" for i in range(6)}


def test_the_real_set_has_its_patients(spider):
    items = read_images(spider)
    assert (len(items), len({item.patient for item in items})) == (337, 88)
    held_out = [len(fold.held_out) for fold in make_folds(items, 4)]
    assert sum(held_out) == 337 and max(held_out) - min(held_out) <= 8


def test_unknown_patients_are_refused_with_what_to_do(data_set):
    with pytest.raises(ValueError, match=r"of 12 images are of is not known, .*add patient= with a regular expression"):
        read_images(data_set)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (r"(x\d+)_", "does not match"),
        ("nowhere.csv", "no such file"),
        ("column", "no CSV file beside"),
        ("[", "no regular expression"),
    ],
)
def test_a_wrong_way_to_tell_patients_is_refused(data_set, how, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_images(data_set, how)


def test_one_fold_is_the_data_sets_own_division(data_set):
    (fold,) = make_folds(read_images(data_set, r"(p\d+)_"), 1)
    assert {Path(image).parent.name for image in fold.train} == {"train"}
    assert {Path(image).parent.name for image in fold.held_out} == {"val"}


def test_a_data_set_that_leaks_is_refused(data_set):
    with pytest.raises(LeakageError, match="several parts"):
        make_folds(read_images(data_set, r"p\d+_(\d)"), 1)


def test_written_folds_list_the_images_where_they_are(data_set, tmp_path):
    before = sorted(data_set.parent.rglob("*"))
    items = read_images(data_set, r"(p\d+)_")
    folds = make_folds(items, 3)
    paths = write_folds(tmp_path / "out" / "folds", data_set, items, folds)
    for fold in folds:
        content = yaml.safe_load(paths[fold.index].read_text())
        assert content["names"] == {0: "a", 1: "b"}
        lists = [(paths[fold.index].parent / content[part]).read_text().split() for part in ("train", "val")]
        assert [tuple(images) for images in lists] == [fold.train, fold.held_out]
    assert patients_of(tmp_path / "out" / "folds")[folds[0].held_out[0]].startswith("p")
    assert sorted(data_set.parent.rglob("*")) == before
    write_folds(tmp_path / "out" / "folds", data_set, items, folds)
    with pytest.raises(ValueError, match="other images, patients or folds"):
        write_folds(tmp_path / "out" / "folds", data_set, items, make_folds(items, 2))


@pytest.mark.parametrize("folds", [1, 2])
def test_labels_are_set_aside_by_patient_in_every_fold(data_set, tmp_path, folds):
    items = read_images(data_set, r"(p\d+)_")
    whole = make_folds(items, folds)
    made = make_folds(items, folds, labelled=0.5)
    patient = {str(item.path): item.patient for item in items}
    for before, fold in zip(whole, made, strict=True):
        assert fold.held_out == before.held_out
        assert sorted(fold.train + fold.unlabelled) == list(before.train)
        kept, aside = ({patient[image] for image in images} for images in (fold.train, fold.unlabelled))
        assert kept.isdisjoint(aside)
        assert len(kept) == round(len(kept | aside) / 2)
    paths = write_folds(tmp_path / "folds", data_set, items, made)
    for fold in made:
        (listed,) = find_source(paths[fold.index]).places
        assert tuple(Path(listed).read_text().split()) == fold.unlabelled
    with pytest.raises(ValueError, match="labelled="):
        write_folds(tmp_path / "folds", data_set, items, whole)


def test_images_without_labels_of_the_data_set_stay_but_not_those_of_patients_held_out(data_set, tmp_path):
    extra = data_set.parent / "images" / "more"
    extra.mkdir()
    pictures = {path: number for number, path in enumerate(sorted((data_set.parent / "images").glob("*/*.png")))}
    for name in ("p0_7", "p4_7", "p9_7"):
        pictures[extra / f"{name}.png"] = 100 + len(pictures)
    for path, number in pictures.items():
        cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8))
    rows = [f"images/{path.parent.name}/{path.name},{path.name[:2]}" for path in pictures]
    (data_set.parent / "patients.csv").write_text("\n".join(["image,patient", *rows]))
    data_set.write_text(data_set.read_text() + "unlabelled: images/more\n")
    assert own_unlabelled(data_set) == [str(extra.resolve())]
    items = read_images(data_set)
    (fold,) = make_folds(items, 1, labelled=0.5)
    path = write_folds(tmp_path / "folds", data_set, items, [fold])[0]
    found = gather(find_source(path), {**yaml.safe_load(path.read_text()), **_parts(path), "yaml_file": str(path)})
    assert sorted(found.images) == sorted([*fold.unlabelled, str(extra / "p0_7.png"), str(extra / "p9_7.png")])
    assert [skipped.path.name for skipped in found.skipped] == ["p4_7.png"]


def _parts(path: Path) -> dict[str, str]:
    return {part: str(path.parent / f"{part}.txt") for part in ("train", "val")}
