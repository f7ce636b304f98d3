import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import meddet_yolo.model
from meddet_yolo import arguments, cli
from meddet_yolo.arguments import parse
from meddet_yolo.distill.config import DistillConfig


@pytest.fixture
def failing(capsys):
    """Run a command that must fail; return its exit code and its one line on the error stream."""

    def run(*args: str) -> tuple[int, str]:
        code = cli.main(args)
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("meddet: error: ")
        assert "Traceback" not in captured.out
        return code, lines[0].removeprefix("meddet: error: ")

    return run


@pytest.fixture
def model(monkeypatch):
    """Stand in for `MedDet`: remembers what was called."""

    class Fake:
        calls: ClassVar[list[tuple[str, dict]]] = []
        ckpt: ClassVar[dict] = {}
        trainer = None

        def __init__(self, name, task=None):
            self.calls.append(("init", {"name": name}))

        def __getattr__(self, mode):
            def call(*args, **kwargs):
                self.calls.append((mode, {**kwargs, **({"source": args[0]} if args else {})}))
                return []

            return call

    monkeypatch.setattr(meddet_yolo.model, "MedDet", Fake)
    return Fake


# What is understood


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["teachers=[a.pt,b.pt]"], ["a.pt", "b.pt"]),
        (["teachers=[a.pt,", "b.pt]"], ["a.pt", "b.pt"]),
        (["teachers=a.pt,b.pt"], ["a.pt", "b.pt"]),
        (["teachers=a.pt"], ["a.pt"]),
        (["teachers=['a.pt','b.pt']"], ["a.pt", "b.pt"]),
        (["teachers", "=", "x/y z.pt,", "b.pt"], ["x/y z.pt"]),  # as in `yolo`, a trailing comma is dropped
        (["teachers=[]"], []),
    ],
)
def test_teachers_are_a_list(given, expected):
    assert parse(given)[1]["teachers"] == expected


@given(st.lists(st.from_regex(r"[A-Za-z0-9_./-]{1,12}\.pt", fullmatch=True), min_size=1, max_size=4))
def test_any_list_of_paths_is_read_back(paths):
    assert parse([f"teachers=[{','.join(paths)}]"])[1] == {"teachers": paths}
    assert parse([f"teachers={','.join(paths)}"])[1] == {"teachers": paths}


def test_values_are_converted_as_yolo_does():
    words, options = parse(["detect", "train", "epochs=3", "--lr0=1e-3", "trust", "name=007", "imgsz=[64,", "32]"])
    assert words == ["detect", "train"]
    assert options == {"epochs": 3, "lr0": 1e-3, "trust": True, "name": "007", "imgsz": [64, 32]}


def test_val_is_a_command_although_it_is_a_key_too(model):
    assert cli.main(["val", "model=yolo11n.pt", "imgsz=64"]) == 0
    assert model.calls == [("init", {"name": "yolo11n.pt"}), ("val", {"imgsz": 64})]


def test_train_hands_over_both_kinds_of_keys(model):
    command = ["detect", "train", "model=meddet-n.yaml", "data=d.yaml", "teachers=[a.pt]", "epochs=2", "adv_weight=0"]
    assert cli.main(command) == 0
    assert model.calls[1] == ("train", {"data": "d.yaml", "teachers": ["a.pt"], "epochs": 2, "adv_weight": 0})


def test_predict_saves_unless_told_otherwise(model):
    assert cli.main(["predict", "model=yolo11n.pt", "source=x.png"]) == 0
    assert cli.main(["predict", "model=yolo11n.pt", "source=x.png", "save=False"]) == 0
    saves = [options["save"] for mode, options in model.calls if mode == "predict"]
    assert saves == [True, False]


def test_recipe_is_read_and_the_command_line_wins(model, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: meddet-n.yaml\ndata: d.yaml\nteachers: [a.pt]\nepochs: 5\ndist_weight: 2\nmode: train\n")
    assert cli.main(["epochs=7", f"cfg={recipe}", "imgsz=64"]) == 0
    assert model.calls[0] == ("init", {"name": "meddet-n.yaml"})
    expected = {"data": "d.yaml", "teachers": ["a.pt"], "epochs": 7, "dist_weight": 2, "imgsz": 64}
    assert model.calls[1] == ("train", expected)


def test_shipped_recipe_is_found_by_name(model):
    assert cli.main(["train", "cfg=default.yaml", "model=meddet-n.yaml", "data=d.yaml", "teachers=a.pt"]) == 0
    given = model.calls[1][1]
    config = DistillConfig.from_dict({k: v for k, v in given.items() if k in DistillConfig.keys()})
    assert config.run.teachers == ["a.pt"]


def test_resume_takes_the_checkpoint_either_way(model, tmp_path):
    last = tmp_path / "last.pt"
    last.touch()
    model.ckpt = {"epoch": 0, "optimizer": {}}
    for command in (
        ["train", f"model={last}", "resume=True"],
        ["train", f"resume={last}"],
        ["train", f"model={last}", "resume"],
    ):
        model.calls.clear()
        assert cli.main(command) == 0
        assert model.calls == [("init", {"name": str(last)}), ("train", {"resume": True})]


def test_renamed_keys_still_work(model):
    assert cli.main(["val", "model=yolo11n.pt", "half=True"]) == 0
    assert model.calls[1][1]["quantize"] == 16


# What is passed on


@pytest.mark.parametrize(
    "command",
    [
        ["track", "model=yolo11n.pt", "source=a b.mp4"],
        ["segment", "train", "data=coco8-seg.yaml"],
        ["train", "model=rtdetr-l.yaml", "data=d.yaml"],
        ["copy-cfg"],
        ["solutions", "count"],
    ],
)
def test_the_rest_goes_to_ultralytics(monkeypatch, command):
    seen = []
    monkeypatch.setattr("ultralytics.cfg.entrypoint", lambda: seen.append(sys.argv[1:]))
    before = sys.argv[:]
    assert cli.main(command) == 0
    assert seen == [command]
    assert sys.argv == before


def test_ultralytics_reads_the_arguments_passed_on(failing):
    """Their command keeps a reference to `sys.argv`, which is what is changed."""
    code, line = failing("track", "modle=yolo11n.pt")
    assert code == 1
    assert "'modle' is not a valid YOLO argument" in line
    assert "usage" not in line


# What is refused


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["trian"], 2, "did you mean 'train'?"),
        (["model=yolo11n.pt"], 2, "no command given"),
        (["segment", "tarin"], 2, "'tarin' is no command: did you mean 'train'?"),
        (["train"], 2, "model= is missing"),
        (["train", "model=meddet-n.yaml"], 2, "data= is missing"),
        (["predict", "model=yolo11n.pt"], 2, "source= is missing"),
        (["train", "model=meddet-n.yaml", "data=d.yaml", "epoch=1"], 2, "did you mean 'epochs'?"),
        (["train", "model=meddet-n.yaml", "data=d.yaml", "dist_wieght=1"], 2, "did you mean 'dist_weight'?"),
        (["train", "model=meddet-n.yaml", "data=d.yaml", "extra"], 2, "'extra'"),
        (["val", "model=yolo11n.pt", "teachers=a.pt"], 2, "`meddet train`"),
        (["train", "model="], 2, "has no value"),
        (["=3", "train"], 2, "has no key"),
        (["train", "teachers=[a.pt"], 2, "unmatched"),
        (["train", "model=m.yaml", "data=d.yaml", "teachers=a.pt", "distill_model=b.pt"], 2, "exclude each other"),
        (["train", "model=nowhere.pt", "data=d.yaml"], 1, "model=nowhere.pt: no such file"),
        (["train", "model=meddet-q.yaml", "data=d.yaml"], 1, "meddet-n.yaml"),
        (["train", "model=nowhere.yaml", "data=d.yaml"], 1, "nowhere.yaml"),
        (["train", "cfg=nowhere.yaml"], 1, "default.yaml"),
        (["completion"], 2, "bash, zsh, fish"),
        (["completion", "tcsh"], 2, "bash, zsh, fish"),
        (["settings", "snyc=True"], 2, "did you mean 'sync'?"),
        (["settings", "nonsense"], 2, "key=value"),
        (["phantom"], 2, "out= is missing"),
        (["phantom", "out=x", "patient=3"], 2, "did you mean 'patients'?"),
        (["phantom", "out", "=", "x", "patient=3"], 2, "did you mean 'patients'?"),
        (["train", "modle=a.yaml", "data=d.yaml"], 2, "did you mean 'model'?"),
        (["train", "hlep"], 2, "'hlep' is neither a command nor key=value"),
        (["train", "model=a.yaml", "data=d.yaml", "xyzzy=3"], 2, "see `meddet help train`"),
        (["train", "model", "=", "a.yaml", "data=d.yaml", "xyzzy=3"], 2, "see `meddet help train`"),
        (["quickstart", "epochs=0"], 1, "epochs=0"),
        (["quickstart", "imgsz=100"], 1, "multiple of 32"),
    ],
)
def test_wrong_use_is_one_clear_line(failing, tmp_path, monkeypatch, command, code, message):
    monkeypatch.chdir(tmp_path)
    given_code, line = failing(*command)
    assert message in line
    assert given_code == code
    assert not list(tmp_path.rglob("*.pt"))


def test_broken_recipes_are_named(failing, tmp_path):
    for text, message in (("a: [1", "no valid YAML"), ("- 1", "key: value")):
        recipe = tmp_path / "r.yaml"
        recipe.write_text(text)
        assert message in failing("train", f"cfg={recipe}")[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data=nowhere.yaml"], "nowhere.yaml"),
        (["teachers=nowhere.pt"], "nowhere.pt"),
        (["teachers=broken.pt"], "broken.pt"),
        (["epochs=many"], "epochs"),
        (["guard=recon", "teachers=broken.pt"], "reconstruction"),
    ],
)
def test_what_cannot_be_trained_is_one_clear_line(failing, tiny_data, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    command = ["train", "model=meddet-n.yaml", f"data={tiny_data}", "imgsz=64", f"project={tmp_path}/runs", *options]
    code, line = failing(*command)
    assert code == 1
    assert message in line
    assert not list((tmp_path / "runs").rglob("*.pt"))


def test_broken_images_are_named_and_the_others_done(tmp_path, tiny_data, tiny_teachers, capsys):
    images = tmp_path / "images"
    images.mkdir()
    sound = next((tiny_data.parent / "images" / "val").iterdir())
    (images / sound.name).write_bytes(sound.read_bytes())
    (images / "cut.png").write_bytes(sound.read_bytes()[:40])
    (images / "junk.jpg").write_text("no image")
    options = [f"model={tiny_teachers[0]}", "imgsz=64", f"project={tmp_path}", "name=out"]
    assert cli.main(["predict", f"source={images}", *options]) == 1
    assert "cannot read" in (line := capsys.readouterr().err) and "and 1 more" in line
    assert [path.stem for path in (tmp_path / "out").iterdir()] == [sound.stem]
    assert cli.main(["predict", f"source={images / sound.name}", *options]) == 0


def test_a_finished_checkpoint_is_not_resumed(failing, tiny_teachers):
    code, line = failing("train", f"model={tiny_teachers[0]}", "resume=True")
    assert code == 1
    assert "cannot be resumed" in line


def test_traceback_is_shown_on_request(capsys, monkeypatch):
    monkeypatch.setenv("MEDDET_TRACEBACK", "1")
    assert cli.main(["trian"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_interruption_says_how_to_go_on(model, monkeypatch, tmp_path, capsys):
    last = tmp_path / "last.pt"

    def interrupted(self, **_):
        self.trainer = type("Trainer", (), {"last": last})
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "train", interrupted, raising=False)
    command = ["train", "model=meddet-n.yaml", "data=d.yaml"]
    assert cli.main(command) == 130
    assert "nothing to resume" in capsys.readouterr().err
    last.touch()
    assert cli.main(command) == 130
    assert f"meddet train model={last} resume=True" in capsys.readouterr().err


# Small commands


@pytest.mark.parametrize("args", [[], ["help"], ["-h"], ["--help"]])
def test_help_is_ours_and_fits_a_terminal(capsys, args):
    assert cli.main(args) == 0
    text = capsys.readouterr().out
    assert "teachers=[a.pt,b.pt]" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("args", "first", "key"),
    [
        (["help", "train"], "meddet train model=... data=...", "* teachers="),
        (["train", "--help"], "meddet train", "* inherit=auto"),
        (["detect", "val", "model=a.pt", "-h"], "meddet val", "* noise="),
        (["convert", "-h"], "meddet convert source=...", "source="),
        (["help", "--benchmark"], "meddet benchmark", "backends="),
        (["track", "--help"], "meddet track", "  tracker="),
        (["cfg"], "Keys of all modes", "* precision="),
        (["help", "settings"], "meddet: distil", "  meddet settings"),
        (["completion", "zsh"], "#compdef meddet", "_meddet() {"),
    ],
)
def test_help_on_a_command_shows_its_keys(capsys, args, first, key):
    assert cli.main(args) == 0
    text = capsys.readouterr().out
    assert text.startswith(first)
    assert f"\n{key}" in text


def test_version_names_what_it_stands_on(capsys):
    assert cli.main(["version"]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert printed["meddet-yolo"] == meddet_yolo.__version__
    assert {"ultralytics", "torch"} <= printed.keys()


def test_settings_are_changed_and_kept(capsys):
    from ultralytics import settings

    before = settings["runs_dir"]
    try:
        assert cli.main(["settings", "runs_dir=elsewhere"]) == 0
        assert settings["runs_dir"] == "elsewhere"
        assert "elsewhere" in capsys.readouterr().out
    finally:
        settings["runs_dir"] = before


def test_phantom_draws_a_data_set(tmp_path, capsys):
    assert cli.main(["phantom", f"out={tmp_path / 'd'}", "patients=2", "imgsz=48"]) == 0
    assert capsys.readouterr().out.strip() == f"data={tmp_path / 'd' / 'data.yaml'}"
    assert len(list((tmp_path / "d").rglob("*.png"))) == 4


# The whole way, as a user takes it


def meddet(*args: str, cwd: Path) -> subprocess.Popen:
    """Start the command; it can be interrupted even where these tests cannot, as in a shell's background."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child would inherit that it is ignored
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "meddet_yolo.cli", *args],
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.slow("trains, in processes")
def test_train_interrupt_resume_validate_predict_export(tiny_data, tiny_teachers, tmp_path):
    teachers = ",".join(map(str, tiny_teachers))
    common = [f"data={tiny_data}", "imgsz=64", "device=cpu", "workers=0", "plots=False"]
    training = ["batch=2", "epochs=300", "warmup_epochs=0", "amp=False", f"project={tmp_path}", "name=run"]
    process = meddet("train", "model=meddet11-n.yaml", f"teachers=[{teachers}]", *common, *training, cwd=tmp_path)
    last = tmp_path / "run" / "weights" / "last.pt"
    deadline = time.monotonic() + 120
    while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)  # into the next epoch
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out[-2000:] + err[-2000:]
    assert "Traceback" not in err
    command = re.search(r"to go on: meddet (train .*)", err)[1].split()

    before = last.stat().st_mtime_ns
    process = meddet(*command, cwd=tmp_path)
    while (
        last.is_file() and last.stat().st_mtime_ns == before and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out[-2000:] + err[-2000:]
    assert "Resuming training" in out
    epochs = [int(line.split(",")[0]) for line in (tmp_path / "run" / "results.csv").read_text().splitlines()[1:]]
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) >= 2

    image = next((tiny_data.parent / "images" / "val").glob("*.png"))
    for args in (
        ["val", f"model={last}", *common, f"project={tmp_path}", "name=val"],
        ["predict", f"model={last}", f"source={image}", "imgsz=64", f"project={tmp_path}", "name=predict"],
        ["export", f"model={last}", "format=torchscript", "imgsz=64"],
    ):
        process = meddet(*args, cwd=tmp_path)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-2000:]
    assert list((tmp_path / "predict").glob("*.jpg"))
    assert last.with_suffix(".torchscript").is_file()


def test_a_closed_pipe_is_no_error(tmp_path):
    command = f"{sys.executable} -m meddet_yolo.cli help | head -n 1"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("result", "printed"),
    [
        (Path("d/data.yaml"), "data=d/data.yaml\n"),
        (Path("report.md"), ""),
        ({"a": 1, "b": 2}, "a=1\nb=2\n"),
        ("x", "x\n"),
    ],
)
def test_what_a_command_returns_is_printed(monkeypatch, capsys, result, printed):
    import meddet_yolo.phantom

    monkeypatch.setattr(meddet_yolo.phantom, "generate_phantom", lambda out: result)
    assert cli.main(["phantom", "out=d"]) == 0
    assert capsys.readouterr().out == printed


def test_the_words_of_ultralytics_are_known_without_it():
    import ultralytics.cfg

    assert set(arguments.THEIR_MODES) == set(ultralytics.cfg.MODES)
    assert set(arguments.TASKS) == set(ultralytics.cfg.TASKS)


def run_all(commands: list[list[str]], cwd: Path) -> tuple[str, list[str]]:
    """Run commands in one new process; return their exit codes with what was imported, and what they complain of."""
    code = (
        "import sys; from meddet_yolo.cli import main\n"
        f"print([main(c) for c in {commands}], sorted(set(sys.modules) & {{'torch', 'ultralytics'}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=cwd)
    return done.stdout.splitlines()[-1] if done.stdout else "", done.stderr.splitlines()


def test_slips_are_told_before_torch_is_imported(tmp_path):
    commands = [
        ["trian", "model=a.pt"],
        ["val", "data=d.yaml"],
        ["val"],
        ["predict", "--source=x"],
        ["train", "model=a.yaml", "data=d.yaml", "epchs=3"],
        ["train", "model=a.yaml", "data=d.yaml", "dist_wieght=1", "resume"],
        ["train", "modle=a.yaml", "data=d.yaml"],
        ["train", "cfg=paper.yaml", "epchs=3"],
        ["predict", "model=a.pt"],
        ["export", "model=a.pt", "teachers=[b.pt,c.pt]"],
        ["info", "modle=a.yaml"],
        ["evaluate", "model=a.pt"],
        ["compare", "data=d.yaml", "epcohs=1"],
        ["slices", "source", "out=d"],
        ["help", "trian"],
    ]
    outcome, complaints = run_all(commands, tmp_path)
    assert outcome == f"{[2] * len(commands)} []", complaints
    assert [line[:15] for line in complaints] == ["meddet: error: "] * len(commands)


def test_help_imports_neither_torch_nor_ultralytics(tmp_path):
    commands = [["help"], ["help", "train"], ["cfg"], ["evaluate", "--help"], ["completion", "fish"]]
    assert run_all(commands, tmp_path) == ("[0, 0, 0, 0, 0] []", [])


@pytest.mark.slow("validates")
def test_several_models_are_validated_side_by_side(tiny_data, tiny_teachers, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [f"data={tiny_data}", "imgsz=64", "device=cpu", "plots=False", "workers=0", f"project={tmp_path}"]
    models = ",".join(map(str, tiny_teachers))
    assert cli.main(["val", f"model=[{models}]", *options]) == 0
    out = capsys.readouterr().out
    assert all(path.stem in out for path in tiny_teachers) and "mAP50-95" in out
    assert cli.main(["val", f"model=[{models}]"]) == 2
    assert "data= is missing" in capsys.readouterr().err
    assert cli.main(["val", f"model=[{tiny_teachers[0]},none.pt]", *options]) == 1
    assert "model=none.pt: no such file" in capsys.readouterr().err
