"""How fast are DICOM and NIfTI slices read, beside pydicom's plain `pixel_array`, and what does the slice cache save?

Writes one MR slice of noise over a smooth background in several transfer syntaxes, checks that all lossless ones give
the same picture, and reads the files in turn: pydicom alone (`dcmread(path).pixel_array`), this package from path to
8-bit upright picture (header, decoding, rescaling, window, orientation), and the cached PNG that training reads. The
same slices as a NIfTI volume are timed as a whole, per slice.

    python benchmarks/dicom_reading.py
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _machine import describe_machine  # a sibling file of the benchmarks

RESULTS = Path(__file__).parent / "results"
SYNTAXES = {
    "uncompressed": "ExplicitVRLittleEndian",
    "deflated": "DeflatedExplicitVRLittleEndian",
    "RLE": "RLELossless",
    "JPEG-LS": "JPEGLSLossless",
    "JPEG 2000": "JPEG2000Lossless",
}


def slice_values(size: int) -> Any:
    """Return 12-bit values (size, size) that compress about as MR images do: smooth, with noise."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.normal(900, 500, (12, 12)), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 25, (size, size)), 0, 4095).astype(np.uint16)


def write_dicom(path: Path, values: Any, syntax: str) -> None:
    """Write a sagittal MR slice with slope, intercept and window in a transfer syntax."""
    import pydicom

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.MRImageStorage, pydicom.uid.generate_uid()
    data.Modality, data.PatientName, data.PatientID = "MR", "", ""
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.ImageOrientationPatient, data.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [0, -100, 100]
    data.PixelSpacing, data.RescaleSlope, data.RescaleIntercept = [0.5, 0.5], "1.5", "-10"
    data.WindowCenter, data.WindowWidth = "1300", "2600"
    data.PixelData = values.tobytes()
    uid = getattr(pydicom.uid, syntax)
    if uid.is_compressed and uid.is_encapsulated:
        data.compress(uid)
    else:
        data.file_meta.TransferSyntaxUID = uid
    data.save_as(path, enforce_file_format=True)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a busy machine")
    args = parser.parse_args()
    import cv2
    import nibabel
    import numpy as np
    import pydicom

    from meddet_yolo.imaging.volumes import open_volume

    now = time.process_time if args.clock == "cpu" else time.perf_counter
    cv2.setNumThreads(1)
    values = slice_values(args.size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs: dict[tuple[str, str], Callable[[], Any]] = {}
        pictures = []
        for label, syntax in SYNTAXES.items():
            path = folder / f"{syntax}.dcm"
            write_dicom(path, values, syntax)
            jobs[label, "pydicom pixel_array"] = lambda p=path: pydicom.dcmread(p).pixel_array
            jobs[label, "meddet, to picture"] = lambda p=path: next(iter(open_volume(p).read())).image
            pictures.append(jobs[label, "meddet, to picture"]())
        assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
        cv2.imwrite(str(folder / "a.png"), pictures[0], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        jobs["cached PNG", "training reads"] = lambda: cv2.imread(str(folder / "a.png"), cv2.IMREAD_COLOR)
        volume = np.stack([np.roll(values, i, axis=0) for i in range(15)]).astype(np.int16)
        affine = np.array([[4.0, 0, 0, 0], [0, -0.5, 0, 0], [0, 0, -0.5, 0], [0, 0, 0, 1]])
        for suffix in ("nii", "nii.gz"):
            path = folder / f"v.{suffix}"
            nibabel.Nifti1Image(volume, affine).to_filename(path)
            jobs[suffix, "nibabel get_fdata"] = lambda p=path: nibabel.load(p).get_fdata(dtype=np.float32)
            jobs[suffix, "meddet, to picture"] = lambda p=path: [s.image for s in open_volume(p).read()]
        times: dict[tuple[str, str], list[float]] = {key: [] for key in jobs}
        for i in range(args.rounds + 2):
            for key, job in jobs.items():
                start = now()
                job()
                took = now() - start
                if i >= 2:
                    times[key].append(1e3 * took / (len(volume) if key[0].startswith("nii") else 1))
        sizes = {label: (folder / f"{syntax}.dcm").stat().st_size for label, syntax in SYNTAXES.items()}

    rows = []
    for (kind, how), measured in times.items():
        low, median, high = np.percentile(measured, [25, 50, 75])
        rows.append({"kind": kind, "how": how, "ms": median, "quartiles": [low, high], "per_s": 1e3 / median})
    ratios = {
        label: statistics.median(
            a / b for a, b in zip(times[label, "meddet, to picture"], times[label, "pydicom pixel_array"], strict=True)
        )
        for label in SYNTAXES
    }
    command = "python benchmarks/dicom_reading.py " + shlex.join(sys.argv[1:])
    packages = ("pydicom", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "python-gdcm", "nibabel", "opencv-python")
    machine = describe_machine(packages)
    result = {"command": command.strip(), "machine": machine, "args": vars(args), "rows": rows, "ratios": ratios}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "dicom_reading.json").write_text(json.dumps({**result, "bytes": sizes}, indent=2) + "\n")
    lines = [
        f"# Reading {args.size} x {args.size} 12-bit slices, one thread\n",
        f"`{command.strip()}`, {args.clock} time\n\n{machine}\n",
        "| file | what | ms a slice (quartiles) | slices a second | times pydicom |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f"{row['ms']:.2f} ({row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f})"
        ratio = f"{ratios[row['kind']]:.2f}" if row["how"].startswith("meddet") and row["kind"] in ratios else ""
        lines.append(f"| {row['kind']} | {row['how']} | {spread} | {row['per_s']:.0f} | {ratio} |")
    text = "\n".join(lines) + "\n"
    (RESULTS / "dicom_reading.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
