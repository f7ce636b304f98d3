"""What `meddet help` shows: the commands by example, and every command's keys as code and docstrings describe them."""

from __future__ import annotations

import re
import shutil
import textwrap

from meddet_yolo.arguments import needed_keys
from meddet_yolo.commands import OWN_COMMANDS, Key, groups_of
from meddet_yolo.signatures import REQUIRED, Expression

__all__ = ["HELP", "first_sentence", "help_of"]

HELP = """\
meddet: distil several YOLO detectors into one small one, inside Ultralytics

  meddet train   model=meddet-n.yaml teachers=[a.pt,b.pt] data=d.yaml epochs=100 imgsz=512
  meddet train   cfg=recipe.yaml imgsz=640      a recipe file holds any keys; the command line wins
  meddet train   model=runs/detect/train/weights/last.pt resume=True
  meddet train   model=... data=... check=True  what it would do, need and take: sets all up and runs three batches
  meddet val     model=best.pt data=d.yaml      model=[a.pt,b.pt] puts several side by side
  meddet val     model=[a.pt,b.pt] data=d.yaml noise=rician sigma=[0,0.05,0.1]      accuracy under MRI noise
  meddet predict model=best.pt source=images/
  meddet predict model=best.pt source=series/ slices=mid|all|5 [sr=True]      DICOM or NIfTI; sr= writes DICOM reports
  meddet export  model=best.pt format=engine [runtime=rtx] [precision=fp16|int8|fp8|fp32] [data=d.yaml]

  meddet benchmark model=[a.pt,b.engine] data=d.yaml imgsz=512 backends=[pytorch,onnxruntime,tensorrt]

  meddet compare data=d.yaml student=meddet11-n.yaml methods=[none,meddet] teachers=[a.pt] seeds=3 folds=4     intervals
  meddet reproduce paper preset=smoke|cpu|gpu [data=d.yaml] [tables=fusion]      the paper's tables, its figures beside

  meddet evaluate model=[a.pt,b.engine,c.json] data=d.yaml split=test [require=sensitivity@1fp>=0.85]

  meddet quickstart [out=DIR] [device=cpu]      the whole job on generated images, in under ten minutes
  meddet phantom out=DIR [patients=914] [seed=0] [imgsz=512] [preset=paper|small|tiny]      only make the images
  meddet convert source=PATH out=DIR [patient=...] [val=0.2]     COCO, VOC, CSV or masks to YOLO, split by patient
  meddet convert source=d.yaml check=True       look for leaks, duplicates and suspicious labels
  meddet info [model=a.yaml,b.pt] [imgsz=512] [nc=2]      parameters and multiply-adds, beside the paper's
  meddet slices source=series/ out=DIR [slices=all]     DICOM or NIfTI slices as PNG, to draw labels on
  meddet settings [key=value | reset]           Ultralytics' settings
  meddet version | checks | help [COMMAND]      help train: its keys with defaults; train --help is the same
  meddet completion bash | zsh | fish           source <(meddet completion bash): Tab completes commands, keys, files

Without teachers= it trains as `yolo` does. All arguments of `yolo` work: `meddet cfg` lists them. Distillation adds
  teachers=       checkpoints to learn from: [a.pt,b.pt], a.pt,b.pt or a.pt (quote [ ] in zsh)
  inherit=        auto: a student from a YAML starts with channels of a teacher of its family; none; or a checkpoint
  fusion=         lwff, sum or concat           guard=          reconstruction, detection or none
  dist_weight=    weight of feature distillation                adv_weight=   weight of the adversarial term
  distill_warmup= epochs until both are at full weight          disc_lr=      learning rate of the adversary
  mri_noise=      probability that an image gets MRI noise (of strength mri_noise_sigma= and others)
and more, each described in docs/distil.md and in the commented recipe `cfg=default.yaml`.
What meddet does not know (track, other tasks, ...) goes to Ultralytics, whose benchmark is `yolo benchmark`.
trust=true lets files run code that a command reads (checkpoints, model and data YAMLs): only for files that you trust.
For research only: this is no medical device."""

_COLUMN = 30  # at most, of `key=default`


def help_of(command: str, width: int | None = None) -> str:
    """Return the keys of a command, each with its default, its type and the first sentence on it.

    Args:
        command: One of ours, a mode, or `cfg` for the keys of all modes.
        width: Columns of the terminal; by default those that it has, at most 120.

    Examples:
        >>> print(help_of("val", 100).splitlines()[0])
        meddet val model=... key=value ...      * marks ours, the others are Ultralytics'
    """
    width = min(width or shutil.get_terminal_size((100, 24)).columns, 120)
    groups = groups_of(command)
    column = min(max(len(_assignment(key)) for group in groups for key in group.keys), _COLUMN)
    marks = "" if command in OWN_COMMANDS else "      * marks ours, the others are Ultralytics'"
    needed = "".join(f"{key}=... " for key in needed_keys(command))
    lines = [f"meddet {command} {needed}key=value ...{marks}" if command != "cfg" else f"Keys of all modes{marks}"]
    for group in groups:
        theirs = "" if group.keys[0].ours else "Ultralytics: "
        lines += ["", *textwrap.wrap(theirs + group.title, width)]
        for key in group.keys:
            lines += _rows(key, "" if not marks else "* " if key.ours else "  ", column, width)
    return "\n".join(lines)


def _rows(key: Key, mark: str, column: int, width: int) -> list[str]:
    """Return the lines of one key."""
    head, indent = f"{mark}{_assignment(key)}", " " * (len(mark) + column + 2)
    kind = _short_type(key.type)
    text = f"({kind}) {first_sentence(key)}" if kind else first_sentence(key)
    lines = textwrap.wrap(text, max(width - len(indent), 20), break_on_hyphens=False)
    rows = [indent + line for line in lines]
    if len(head) > len(indent) - 2:
        return [head, *rows]
    return [f"{head:{len(indent)}}{lines[0]}", *rows[1:]] if rows else [head]


def _assignment(key: Key) -> str:
    """Return `key=default`; of a default that is computed or nothing the meaning tells."""
    default = key.default
    told = re.search(r"Default: `?([^`]+?)`?\.$", key.meaning) if default is None else None
    if told and " " not in told[1]:
        default = told[1]
    if default is None or default is REQUIRED or isinstance(default, Expression):
        default = ""
    elif isinstance(default, tuple | list):
        default = f"[{','.join(map(str, default))}]"
    return f"{key.name}={default}"


def first_sentence(key: Key) -> str:
    """Return the first sentence on a key."""
    return re.split(r"(?<=\.)\s+(?=[A-Z`\"])", key.meaning)[0]


def _short_type(written: str) -> str:
    """Return an annotation as the command line takes it.

    Examples:
        >>> _short_type("str | Path | Sequence[str | Path] | None"), _short_type("Any")
        ('str | list', '')
    """
    while (shorter := re.sub(r"\[[^\[\]]*\]", "", written)) != written:  # list[dict[str, int]] becomes list
        written = shorter
    names = {"Sequence": "list", "Mapping": "dict", "Path": "str", "Any": "", "None": "", "tuple": "list"}
    parts = (names.get(part.strip(), part.strip()) for part in written.split("|"))
    return " | ".join(dict.fromkeys(filter(None, parts)))
