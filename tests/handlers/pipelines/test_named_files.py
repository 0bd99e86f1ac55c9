"""Folders of files that prompts use by name."""

from pathlib import Path

import pytest

from handlers.pipelines.named_files import NO_FILES, NamedFiles, named, nearest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.safetensors", "A.SafeTensors", "x/c v1.5.safetensors", "y/c v1.5.safetensors", "d.pt", "notes.txt"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(name.encode())
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.safetensors").mkdir()
    return tmp_path


def test_files_are_known_by_their_stems(folder: Path) -> None:
    files = NamedFiles(folder, (".safetensors",)).all()
    assert [*files] == ["A", "b", "c v1.5"]
    assert files["c v1.5"].path == folder / "x" / "c v1.5.safetensors" and files["b"].bytes == len("b.safetensors")
    assert [*NamedFiles(folder, (".safetensors", ".pt")).all()] == ["A", "b", "c v1.5", "d"]
    assert NamedFiles(folder / "nowhere", (".pt",)).all() == {} == NO_FILES.all()


def test_a_changed_file_is_another(folder: Path) -> None:
    files = NamedFiles(folder, (".pt",))
    before = files.all()["d"]
    assert files.all()["d"] == before
    before.path.write_bytes(b"more than before")
    assert files.all()["d"] != before


def test_names_in_any_case_and_near_ones(folder: Path) -> None:
    files = NamedFiles(folder, (".safetensors",)).all()
    assert named(files, "C V1.5") is files["c v1.5"] and named(files, "c") is None
    assert nearest(files, "C v1.4") == "the nearest name is c v1.5"
    assert nearest(files, "unlike") == "there are A, b, c v1.5"
    assert nearest({}, "x") == "none is installed"
