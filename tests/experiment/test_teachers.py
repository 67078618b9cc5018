"""Teachers of a run: where they come from, what is refused, and that students go on to the bit."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.core import CheckpointError, ConfigError
from coterie.core.files import RecordWarning
from coterie.core.record import read_metrics
from coterie.engine import CheckpointStore
from coterie.experiment import Experiment
from coterie.nets import NETS
from tiny import run_in_pieces, tiny

STUDENT = {"cohort__nets": ("cnn4_w4",)}
pytestmark = pytest.mark.filterwarnings("ignore:.*hardly better than chance")


class Evil:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    Experiment(tiny(cohort__nets=("cnn4_w16", "cnn4_w4")), folder=folder, quiet=True).train()
    return folder


def parts_of(**settings: object):  # noqa: ANN201
    return Experiment(tiny("kd", **STUDENT, **settings), folder=Path("unused"), quiet=True).build()


def test_leader_or_any_peer_of_a_run(teacher: Path) -> None:
    found = CheckpointStore(teacher / "checkpoints").load_newest(read_only=True)
    assert found is not None
    for source, section in ((teacher, "peer1"), (f"{teacher}#0", "peer0"), (f"{teacher}#1", "peer1")):
        net = parts_of(teacher__weights=(source,)).teachers.nets[0]
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, found[1].section(section)[name])


@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped.pt"])
def test_files_of_weights(tmp_path: Path, kind: str) -> None:
    net = NETS["cnn4_w16"](num_classes=4, in_channels=3, image_size=8)
    path = tmp_path / f"teacher.{kind}"
    if kind == "safetensors":
        save_file(net.state_dict(), path)
    elif kind == "pth":
        torch.save(net.state_dict(), path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": t for name, t in net.state_dict().items()}}, path)
    built = parts_of(teacher__weights=(path,), teacher__nets=("cnn4_w16",)).teachers.nets[0]
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in built.state_dict().items())


@pytest.mark.case(76)
def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "made"
    for name, save in (("a.pth", torch.save), ("b.pkl", lambda thing, path: path.write_bytes(pickle.dumps(thing)))):
        save({"weight": Evil(mark)}, tmp_path / name)
        with pytest.raises(ConfigError, match="nothing in it was run") as caught:
            parts_of(teacher__weights=(tmp_path / name,), teacher__nets=("cnn4_w4",))
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert not mark.exists()


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(ConfigError, match="is not a state dict"):
        parts_of(teacher__weights=(tmp_path / "list.pt",), teacher__nets=("cnn4_w4",))


def test_sources_that_cannot_be(tmp_path: Path, teacher: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(NETS["cnn4_w16"](num_classes=4, in_channels=3, image_size=8).state_dict(), weights)
    for settings, kind, message in (
        ({"teacher__weights": (weights,)}, ConfigError, "name its network with teacher.nets"),
        ({"teacher__nets": ("cnn4_w4",)}, ConfigError, "give the weights of each"),
        ({"teacher__weights": (tmp_path / "none.pt",), "teacher__nets": ("cnn4_w4",)}, ConfigError, "no weights at"),
        ({"teacher__weights": (f"{teacher}#5",)}, ConfigError, "no peer 5"),
        ({"teacher__weights": (weights,), "teacher__nets": ("cnn4_w4",)}, ConfigError, "name its network"),
        ({}, ConfigError, "learns from a teacher and there is none"),
    ):
        with pytest.raises(kind, match=message):
            parts_of(**settings)


def test_teacher_of_other_classes(tmp_path: Path) -> None:
    save_file(NETS["cnn4_w16"](num_classes=7, in_channels=3, image_size=8).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="the teacher knows 7 classes and the student 4"):
        parts_of(teacher__weights=(tmp_path / "w.safetensors",), teacher__nets=("cnn4_w16",))


@pytest.mark.parametrize(("method", "sees"), [("kd", "image"), ("dml+kd", "image"), ("kd", "chrominance")])
def test_resume_to_the_bit(tmp_path: Path, teacher: Path, method: str, sees: str) -> None:
    nets = ("cnn4_w4",) * (2 if "dml" in method else 1)
    recipe = tiny(method, cohort__nets=nets, teacher__weights=(teacher,), net__input=sees)
    whole = run_in_pieces(recipe, tmp_path / "whole")
    assert run_in_pieces(recipe, tmp_path / "pieces", (3, 7)) == whole
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert rows[0]["kind"] == "teacher" and 0 <= rows[0]["top1"] <= 100


def test_teachers_do_not_change(tmp_path: Path, teacher: Path) -> None:
    recipe = tiny("kd", **STUDENT, teacher__weights=(teacher,))
    run = Experiment(recipe, folder=tmp_path / "run", quiet=True)
    parts = run.build()
    before = {name: tensor.clone() for name, tensor in parts.teachers.state_dict().items()}
    run.build = lambda *_: parts
    run.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts.teachers.state_dict().items())
    assert not any(module.training for module in parts.teachers.modules())


def test_another_teacher_is_refused_on_resume(tmp_path: Path, teacher: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(teacher, copy)
    run_in_pieces(tiny("kd", **STUDENT, teacher__weights=(teacher,)), tmp_path / "run", ())
    moved = Experiment(tiny("kd", **STUDENT, teacher__weights=(copy,)), folder=tmp_path / "run", quiet=True)
    moved.train(resume=True)
    other = Experiment(tiny("kd", **STUDENT, teacher__weights=(f"{teacher}#0",)), folder=tmp_path / "run", quiet=True)
    with pytest.raises(CheckpointError, match="the teachers are others"):
        other.train(resume=True)


def test_a_teacher_that_knows_nothing_is_named(tmp_path: Path) -> None:
    net = NETS["cnn4_w4"](num_classes=4, in_channels=3, image_size=8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.head.bias.copy_(torch.tensor([-1e3, 0.0, 0.0, 0.0]))
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    recipe = tiny("kd", **STUDENT, teacher__weights=(tmp_path / "w.safetensors",), teacher__nets=("cnn4_w4",))
    with pytest.warns(RecordWarning, match="hardly better than chance"):
        Experiment(recipe, folder=tmp_path / "run", quiet=True).train()


def test_a_teacher_may_see_what_its_student_does_not(tmp_path: Path) -> None:
    whole = tiny(cohort__nets=("cnn4_w4",), net__input="luminance")
    Experiment(whole, folder=tmp_path / "teacher", quiet=True).train()
    recipe = tiny("kd", **STUDENT, net__input="chrominance", teacher__weights=(tmp_path / "teacher",))
    parts = Experiment(recipe, folder=tmp_path / "run", quiet=True).build()
    assert parts.image_shape == (2, 8, 8)
    first = load_file(next((tmp_path / "teacher" / "checkpoints").glob("step-*/peer0.safetensors")))
    assert next(tensor for name, tensor in first.items() if name.startswith("stem") and tensor.dim() == 4).shape[1] == 1


STILL = {"data__augment": "none", "data__flip": False}


def test_kept_answers_are_what_a_teacher_would_say(tmp_path: Path, teacher: Path) -> None:
    recipe = tiny("kd", **STUDENT, **STILL, teacher__weights=(teacher,))
    asked = run_in_pieces(recipe, tmp_path / "asked")
    cached = tiny("kd", **STUDENT, **STILL, teacher__weights=(teacher,), teacher__cache=tmp_path / "cache")
    kept = run_in_pieces(cached, tmp_path / "kept", (3, 7))
    first, second = (
        [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl") if row["kind"] == "train"]
        for name in ("asked", "kept")
    )
    assert first == pytest.approx(second, rel=1e-5) and asked.result["last"]["epoch"] == kept.result["last"]["epoch"]
    (path,) = (tmp_path / "cache").iterdir()
    stamp = path.stat().st_mtime_ns
    run_in_pieces(cached, tmp_path / "again")
    assert path.stat().st_mtime_ns == stamp
    path.write_bytes(path.read_bytes()[:100])
    assert run_in_pieces(cached, tmp_path / "mended") == kept


def test_kept_answers_need_images_that_stay_the_same(tmp_path: Path, teacher: Path) -> None:
    with pytest.raises(ConfigError, match=r"got data.augment='crop', data.flip=true; set data.augment=none"):
        parts_of(teacher__weights=(teacher,), teacher__cache=tmp_path / "cache")
    (tmp_path / "file").write_text("")
    recipe = tiny("kd", **STUDENT, **STILL, teacher__weights=(teacher,), teacher__cache=tmp_path / "file" / "cache")
    with pytest.raises(ConfigError, match=r"cannot write teacher\.cache"):
        Experiment(recipe, folder=tmp_path / "run", quiet=True).train()


def test_models_of_a_package_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(name: str, *, in_channels: int, image_size: int) -> torch.nn.Module:
        assert name == "timm/any"
        return NETS["cnn4_w16"](num_classes=4, in_channels=in_channels, image_size=image_size)

    monkeypatch.setattr("coterie.experiment.teachers.pretrained", fetched)
    recipe = tiny("kd", **STUDENT, teacher__weights=("timm/any",))
    Experiment(recipe, folder=tmp_path / "run", quiet=True).train()


def test_a_teacher_of_other_classes_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(NETS["cnn4_w16"](num_classes=7, in_channels=3, image_size=8).state_dict(), tmp_path / "w.safetensors")
    teacher = {"teacher__weights": (tmp_path / "w.safetensors",), "teacher__nets": ("cnn4_w16",)}
    Experiment(tiny("pkt", **STUDENT, **teacher), folder=tmp_path / "run").train()
    assert "teacher 0: of 7 other classes, so its accuracy here is not measured" in capsys.readouterr().out
    assert not any(row["kind"] == "teacher" for row in read_metrics(tmp_path / "run" / "metrics.jsonl"))


def test_a_teacher_nobody_learns_from_is_refused(teacher: Path) -> None:
    with pytest.raises(ConfigError, match=r"dml learns from no teacher; leave it out, .* method=dml\+kd"):
        Experiment(tiny("dml", teacher__weights=(teacher,)), folder=Path("unused"), quiet=True).build()
