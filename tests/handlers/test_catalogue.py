"""The catalogue's files, as one process writes and another reads them."""

from pathlib import Path

from handlers.catalogue import FAILED, Catalogue, CatalogueEntry, Contents


def test_what_is_written_is_read(tmp_path: Path) -> None:
    writer, reader = Catalogue(tmp_path / "new"), Catalogue(tmp_path / "new")
    assert not reader.is_there and reader.contents() == Contents()
    contents = Contents(8, 1, 4, (CatalogueEntry("a", "A", weight_bytes=3), CatalogueEntry("b", "B", FAILED, "Why.")))
    writer.write(contents)
    assert reader.is_there and reader.contents() == contents
    assert (found := reader.find("custom-b")) and found.reason == "Why."
    assert reader.find("custom-c") is None
    writer.write(Contents())
    assert reader.contents() == Contents()


def test_a_file_that_cannot_be_read_leaves_what_was_known(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    catalogue.write(Contents(8))
    assert catalogue.contents().memory_bytes == 8
    for text in ("{", "[]", '{"models": [{"unknown": 1}]}'):
        (tmp_path / "models.json").write_text(text)
        assert catalogue.contents().memory_bytes == 8


def test_failures_are_told_and_forgotten(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "new")
    assert catalogue.failure("custom-a") == ""
    catalogue.forget_failure("custom-a")
    for archive in ("custom-a", "custom-b", "main"):
        catalogue.tell_failure(archive, f"{archive} is broken.")
    assert catalogue.failure("custom-a") == "custom-a is broken."
    catalogue.forget_failure("custom-a")
    assert [catalogue.failure(archive) for archive in ("custom-a", "custom-b")] == ["", "custom-b is broken."]
