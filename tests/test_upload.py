"""The button that brings a file of one's own, with the values that ipywidgets 7 and 8 give it."""

import pytest

from gptcourse.corpora import text_file
from gptcourse.explorers import upload_text

TEXT = "It was a dark and stormy night.\n" * 60
VALUES = {
    "ipywidgets 8": ({"name": "my novel.txt", "type": "text/plain", "size": 1, "content": memoryview(TEXT.encode())},),
    "ipywidgets 7": {"my novel.txt": {"metadata": {"name": "my novel.txt"}, "content": TEXT.encode()}},
}


def choose(box, value):
    """Let the button have this value, whatever version of ipywidgets is here."""
    for handler in box.button._trait_notifiers["value"]["change"]:
        if getattr(handler, "__name__", "") == "keep":
            handler({"new": value})


@pytest.mark.parametrize("version", VALUES)
def test_the_file_lies_in_the_folder_and_opens_as_a_text(tmp_path, version):
    box = upload_text(tmp_path)
    assert box.path is None and "stand-in" in box.said.value
    choose(box, VALUES[version])
    assert box.path == tmp_path / "my novel.txt" and "my novel.txt, 1,920 bytes" in box.said.value
    mine = text_file(box.path)
    assert mine.train + mine.validation == TEXT


@pytest.mark.parametrize("name", ["../../evil.txt", "C:\\files\\evil.txt", "/etc/evil.txt"])
def test_no_name_leads_out_of_the_folder_and_none_is_read_as_html(tmp_path, name):
    box = upload_text(tmp_path)
    choose(box, ({"name": name, "content": b"<b>bold</b>"},))
    assert box.path == tmp_path / "evil.txt" and box.path.read_bytes() == b"<b>bold</b>"
    choose(box, ({"name": "<img src=x>.txt", "content": b"x"},))
    assert "<img" not in box.said.value


@pytest.mark.parametrize(
    "name, expected",
    [
        ("..", "upload.txt"),
        ("", "upload.txt"),
        ("../..", "upload.txt"),
        ("a" * 300 + ".txt", "a" * 180 + ".txt"),
        ("é" * 300 + ".txt", "é" * 90 + ".txt"),
        ("a." + "b" * 300, "a." + "b" * 19),
        ("a\0b\ud83d?.txt", "a_b__.txt"),
    ],
)
def test_a_name_that_no_file_can_have_becomes_one_that_it_can(tmp_path, name, expected):
    box = upload_text(tmp_path / "new folder")
    choose(box, ({"name": name, "content": b"x"},))
    assert box.path == tmp_path / "new folder" / expected and box.path.read_bytes() == b"x"
    assert expected in box.said.value


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "folder").write_text("a file", encoding="utf-8")
    box = upload_text(tmp_path / "folder")
    choose(box, ({"name": "mine.txt", "content": b"x"},))
    assert box.path is None and "mine.txt could not be written" in box.said.value


@pytest.mark.parametrize("nothing", [(), {}])
def test_taking_the_file_back_changes_nothing(tmp_path, nothing):
    box = upload_text(tmp_path)
    choose(box, VALUES["ipywidgets 8"])
    choose(box, nothing)
    assert box.path == tmp_path / "my novel.txt"


def test_a_file_that_breaks_off_leaves_the_one_that_is_there(tmp_path, monkeypatch):
    box = upload_text(tmp_path)
    choose(box, ({"name": "mine.txt", "content": b"whole"},))

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gptcourse.explorers.upload.write_file", full)
    choose(box, ({"name": "mine.txt", "content": b"larger, and cut"},))
    assert "could not be written: No space left" in box.said.value
    assert box.path.read_bytes() == b"whole"


def test_the_folder_may_lie_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    box = upload_text("~/texts")
    choose(box, ({"name": "mine.txt", "content": b"x"},))
    assert box.path == tmp_path / "texts" / "mine.txt" and box.path.exists()
