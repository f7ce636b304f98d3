import csv
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.data.utils import check_det_dataset

from meddet_yolo import cli
from meddet_yolo.phantom import NAMES, PRESETS, generate_phantom, writer
from meddet_yolo.phantom.study import Study


def _digests(data: Path) -> dict[str, str]:
    root = data.parent
    return {
        str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in root.rglob("*") if f.is_file()
    }


def _study(**changes) -> Study:
    return Study(**{"patients": 914, "seed": 0, "imgsz": 512, "slices": 2, "difficulty": 0.5, "val_fraction": 0.125,
                    "test_fraction": 0.2, "fov": PRESETS["paper"].fov, **changes})  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return generate_phantom(tmp_path_factory.mktemp("phantom") / "d", patients=4, seed=5, imgsz=96)


# The same files, whatever the way ------------------------------------------------------------------------------------


def test_processes_do_not_change_a_byte(small, tmp_path, capsys):
    again = generate_phantom(tmp_path / "d", patients=4, seed=5, imgsz=96, workers=2)
    assert "worker processes" not in capsys.readouterr().err  # which would say that they were not used
    assert _digests(again) == _digests(small)


def test_an_older_processor_does_not_change_a_byte(tmp_path):
    """Without the newer vector instructions NumPy and OpenCV round differently in the last place; images must not."""
    core = np._core if hasattr(np, "_core") else np.core  # until NumPy 1.26
    dispatched = core._multiarray_umath.__cpu_dispatch__
    program = """if 1:
        import sys, cv2, numpy as np
        from meddet_yolo.phantom import generate_phantom
        generate_phantom(sys.argv[1], patients=2, seed=8, imgsz=512, slices=1, workers=1)
        print(np.exp(np.linspace(-3, 3, 4001)).tobytes().hex()[-4000:] + cv2.getCPUFeaturesLine())
        """
    old = {
        "NPY_DISABLE_CPU_FEATURES": " ".join(dispatched),
        "OPENCV_CPU_DISABLE": "AVX512-ICL,AVX512-CLX,AVX512-SKX,AVX2,FMA3,FP16,AVX,SSE4.2",
        "OPENCV_IPP": "disabled",
    }
    processors = []
    for name, surroundings in (("new", {}), ("old", old)):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name)],
            env={**os.environ, **surroundings},
            capture_output=True,
            text=True,
            check=True,
        )
        processors.append(done.stdout)
    if processors[0] == processors[1]:
        pytest.skip("this machine has no vector instructions that can be switched off")
    assert _digests(tmp_path / "new" / "data.yaml") == _digests(tmp_path / "old" / "data.yaml")


def test_seed_size_and_difficulty_change_the_images(small, tmp_path):
    image = {p.name: p.read_bytes() for p in small.parent.rglob("p0000_0.png")}
    for number, change in enumerate(({"seed": 6}, {"imgsz": 64}, {"difficulty": 0.9})):
        other = generate_phantom(tmp_path / str(number), **{"patients": 2, "seed": 5, "imgsz": 96, **change})
        assert {p.name: p.read_bytes() for p in other.parent.rglob("p0000_0.png")} != image


def test_a_patient_looks_the_same_in_another_study(small, tmp_path):
    few = generate_phantom(tmp_path / "few", patients=2, seed=5, imgsz=96, slices=1)
    by_stem = [{f.stem: f.read_bytes() for f in d.parent.rglob("*.png")} for d in (few, small)]
    assert by_stem[0].keys() == {"p0000_0", "p0001_0"}
    assert by_stem[0].items() <= by_stem[1].items()


# Splits and counts ---------------------------------------------------------------------------------------------------


def test_the_default_has_the_papers_counts():
    preset = PRESETS["paper"]
    assert preset.imgsz == 512
    plan = _study(patients=preset.patients).plan()
    splits = Counter(p.split for p in plan)
    assert len(plan) == 914
    assert sum(p.slices for p in plan) == 1848
    assert Counter(p.slices for p in plan) == {2: 894, 3: 20}
    assert splits["test"] == 183
    assert splits["train"] + splits["val"] == 731
    assert splits["val"] > 50
    assert len({p.name for p in plan}) == 914


@given(
    patients=st.integers(2, 400),
    seed=st.integers(0, 2**32),
    val_fraction=st.floats(0.01, 0.9),
    test_fraction=st.floats(0.0, 0.9),
)
def test_every_plan_can_be_trained_and_validated_on(patients, seed, val_fraction, test_fraction):
    study = _study(patients=patients, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
    plan = study.plan()
    splits = Counter(p.split for p in plan)
    assert [p.number for p in plan] == list(range(patients))
    assert splits["train"] >= 1
    assert splits["val"] >= 1
    assert abs(splits["test"] - test_fraction * patients) <= 2
    assert plan == study.plan()


def test_no_patient_is_in_two_splits(tmp_path):
    data = generate_phantom(tmp_path / "d", patients=7, imgsz=48, slices=1, test_fraction=0.3)
    splits = ("train", "val", "test")
    patients = {s: {f.stem.split("_")[0] for f in (data.parent / "images" / s).iterdir()} for s in splits}
    assert sum(len(names) for names in patients.values()) == 7 == len(set().union(*patients.values()))
    assert len(patients["test"]) == 2


def test_ultralytics_accepts_the_data_set(small):
    checked = check_det_dataset(small, autodownload=False)
    assert checked["names"] == NAMES == {0: "herniation", 1: "normal"}
    assert Path(checked["train"]) == small.parent / "images" / "train"
    for image in small.parent.rglob("*.png"):
        labels = np.loadtxt(small.parent / "labels" / image.parent.name / f"{image.stem}.txt", ndmin=2)
        assert labels.shape == (6, 5)
        assert cv2.imread(str(image), cv2.IMREAD_UNCHANGED).shape == (96, 96)


def test_table_and_labels_tell_the_same(small):
    rows = list(csv.DictReader((small.parent / "discs.csv").open()))
    assert len(rows) == 6 * len(list(small.parent.rglob("*.png")))
    assert [r["level"] for r in rows[:6]] == ["C2/3", "C3/4", "C4/5", "C5/6", "C6/7", "C7/T1"]
    for number, row in enumerate(rows):
        image = Path(row["image"])
        labels = np.loadtxt(small.parent / "labels" / image.parent.name / f"{image.stem}.txt")
        cls, x, y, w, h = labels[number % 6]
        assert NAMES[int(cls)] == row["class"]
        assert (row["grade"] == "normal") == (row["class"] == "normal") == (row["type"] == "none")
        expected = 96 * np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        np.testing.assert_allclose([float(row[k]) for k in ("x1", "y1", "x2", "y2")], expected, atol=0.02)
        assert 1.7 < float(row["pixel_spacing_mm"]) < 2.8  # 96 pixels over 185 to 250 mm


# Boxes and images ----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), difficulty=st.floats(0.0, 1.0), number=st.integers(0, 4))
def test_boxes_are_those_of_the_drawn_discs(seed, difficulty, number):
    patient = _study(seed=seed, difficulty=difficulty).patient(3)
    scanned = patient.image(number, 64)
    maps, _, kinds = patient.tissue_maps(scanned.offset, np.random.default_rng([*patient.seed, number]))
    side = maps[0].shape[0]
    for disc in range(6):
        seen = np.isin(maps[0], kinds.disc(disc)) | np.isin(maps[1], kinds.disc(disc))
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        drawn = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / side
        np.testing.assert_allclose(scanned.boxes[disc], drawn, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    difficulty=st.floats(0.0, 1.0),
    imgsz=st.integers(32, 700),
    preset=st.sampled_from(sorted(PRESETS)),
)
def test_six_discs_lie_in_the_image_one_below_the_other(seed, difficulty, imgsz, preset):
    patient = _study(seed=seed, difficulty=difficulty, fov=PRESETS[preset].fov).patient(0)
    scanned = patient.image(1, imgsz)
    assert scanned.image.shape == (imgsz, imgsz)
    assert scanned.image.dtype == np.uint8
    assert scanned.image.std() > 10
    size = (scanned.boxes[:, 2:] - scanned.boxes[:, :2]) * patient.protocol.fov
    assert (scanned.boxes > 0).all()
    assert (scanned.boxes < 1).all()
    assert ((size[:, 0] > 10) & (size[:, 0] < 30)).all()  # millimetres, front to back
    assert ((size[:, 1] > 2) & (size[:, 1] < 20)).all()
    below = np.diff(scanned.boxes[:, [1, 3]].mean(1)) * patient.protocol.fov
    assert ((below > 10) & (below < 26)).all()
    assert set(patient.classes()) == {0, 1}


def test_a_herniation_is_dark_where_fluid_would_be():
    """Behind a normal disc lies bright fluid; in the rear part of a herniation's box lies dark disc."""
    hernia, fluid = [], []
    for number in range(30):
        patient = _study().patient(number)
        scanned = patient.image(0, 512)
        pixels = 512 / patient.protocol.fov  # a millimetre
        for disc, (_, y1, x2, y2) in zip(patient.anatomy.discs, 512 * scanned.boxes, strict=False):
            y = int((y1 + y2) / 2)
            row = scanned.image[y - 1 : y + 2]
            if disc.herniated and not disc.extrusion:
                deep = disc.bulge * pixels
                hernia.append(row[:, round(x2 - 0.8 * deep) : round(x2 - 0.2 * deep)].mean())
            elif disc.bulge < 0.4:
                fluid.append(row[:, int(x2 + 1.0 * pixels) : int(x2 + 2.6 * pixels)].mean())
    assert len(hernia) > 20  # of all grades
    assert len(fluid) > 30
    assert np.mean(hernia) < 0.5 * np.mean(fluid)
    # Any one herniation, subtle ones included, can be told from nearly all fluid: the class is in the image.
    assert np.mean(np.array(hernia)[:, None] < np.array(fluid)) > 0.99


def test_difficulty_makes_findings_smaller_and_images_noisier():
    def mean(difficulty, what):
        patients = [_study(difficulty=difficulty).patient(n) for n in range(60)]
        return np.mean([v for p in patients for v in what(p)])

    def hernia(patient):
        return [d.bulge for d in patient.anatomy.discs if d.herniated]

    def normal(patient):
        return [d.bulge for d in patient.anatomy.discs[:6] if not d.herniated]

    def noise(patient):
        return [patient.protocol.noise]

    for what, harder in ((hernia, -1), (normal, 1), (noise, 1)):
        values = [mean(d, what) for d in (0.0, 0.5, 1.0)]
        assert (np.diff(values) * harder > 0).all()


# Resuming and refusing -----------------------------------------------------------------------------------------------


def test_only_what_is_missing_or_damaged_is_made_again(tmp_path):
    data = generate_phantom(tmp_path / "d", patients=4, imgsz=64)
    before = _digests(data)
    stamps = {f: f.stat().st_mtime_ns for f in data.parent.rglob("*.png")}
    lost, damaged, *kept = sorted({f.stem.split("_")[0] for f in stamps})
    next(data.parent.rglob(f"{lost}_0.txt")).unlink()
    image = next(data.parent.rglob(f"{damaged}_1.png"))
    image.write_bytes(image.read_bytes()[:-7])
    data.unlink()

    generate_phantom(tmp_path / "d", patients=4, imgsz=64)
    assert _digests(data) == before
    made_again = {f.stem.split("_")[0] for f, stamp in stamps.items() if f.stat().st_mtime_ns != stamp}
    assert made_again == {lost, damaged}
    assert len(kept) == 2


def test_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    real, calls = writer.make_patient, []

    def tired(root, study, place):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(place)
        return real(root, study, place)

    command = ["phantom", f"out={tmp_path / 'd'}", "patients=4", "imgsz=48", "slices=1"]
    with monkeypatch.context() as patch:
        patch.setattr(writer, "make_patient", tired)
        assert cli.main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "d" / "data.yaml").exists()
    first = {f: f.stat().st_mtime_ns for f in (tmp_path / "d").rglob("*.png")}
    assert len(first) == 2
    assert cli.main(command) == 0
    assert len(list((tmp_path / "d").rglob("*.png"))) == 4
    assert all(f.stat().st_mtime_ns == stamp for f, stamp in first.items())


def test_other_parameters_are_refused(small):
    before = _digests(small)
    with pytest.raises(ValueError, match=r"seed=5 instead of 4, imgsz=96 instead of 64"):
        generate_phantom(small.parent, patients=4, seed=4, imgsz=64)
    (manifest := small.parent / "phantom.json").write_text(manifest.read_text())
    assert _digests(small) == before


def test_damaged_or_older_manifests_are_refused(tmp_path):
    for text, message in (("{", "damaged"), (json.dumps({"patients": 4}), "generator=None instead of 1")):
        (tmp_path / "phantom.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            generate_phantom(tmp_path, patients=4)


def test_foreign_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="name a new folder"):
        generate_phantom(tmp_path, patients=2, imgsz=48)
    with pytest.raises(FileExistsError, match="is a file"):
        generate_phantom(tmp_path / "thesis.txt", patients=2, imgsz=48)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"patients": 1},
        {"patients": 2.0},
        {"seed": -1},
        {"imgsz": 16},
        {"slices": 0},
        {"slices": 6},
        {"val_fraction": 0.0},
        {"val_fraction": 1.0},
        {"test_fraction": -0.1},
        {"difficulty": 1.5},
        {"difficulty": float("nan")},
        {"difficulty": "hard"},
        {"workers": -1},
        {"preset": "huge"},
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        generate_phantom(tmp_path / "d", **arguments)
    assert not (tmp_path / "d").exists()
