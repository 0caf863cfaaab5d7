"""Image banks."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stimuli.bank import NATURAL, folder_bank, match_levels, natural_bank
from stimuli.limits import check_frame, frame_levels

ROOT = Path(__file__).parent.parent


def test_natural_pictures_are_many_distinct_matched_and_within_limits() -> None:
    bank = natural_bank()
    assert len(bank.names) >= 24
    small = []
    for name in bank.names:
        frame = bank.image(name, 104, 104)
        assert frame.shape == (104, 104, 3)
        assert frame.dtype == np.uint8
        mean, contrast = frame_levels(frame)
        assert mean == pytest.approx(128, abs=0.5), name
        assert contrast == pytest.approx(0.25, abs=0.005), name
        check_frame(frame, (20.0, 235.0), 0.5)
        small.append(frame.astype(np.float64).ravel() - frame.mean())
    correlation = np.corrcoef(small) - np.eye(len(small))
    assert correlation.max() < 0.9  # no picture twice


def test_other_levels_can_be_asked_for() -> None:
    mean, contrast = frame_levels(natural_bank(100.0, 0.35).image("coffee-cup", 60, 80))
    assert mean == pytest.approx(100, abs=0.5)
    assert contrast == pytest.approx(0.35, abs=0.005)


def test_crops_lie_inside_their_photographs() -> None:
    bank = natural_bank()
    for name, crop in NATURAL.items():
        frame = bank.image(name, crop.size // 4, crop.size // 4)
        for edge in (frame[0], frame[-1], frame[:, 0], frame[:, -1]):  # a crop beyond the border is padded with black
            assert edge.max() > 0, name


def test_pictures_are_the_same_every_time_and_cannot_be_written_to() -> None:
    first, second = natural_bank(), natural_bank()
    names = [*first.names, *first.names[:3]]
    for name in names:
        assert np.array_equal(first.image(name, 32, 40), second.image(name, 32, 40))
    for size in range(10, 90):  # more than are kept
        first.image("grass-blades", size, size)
    frame = first.image("grass-blades", 32, 40)
    assert np.array_equal(frame, second.image("grass-blades", 32, 40))
    with pytest.raises(ValueError, match="read-only"):
        frame[0] = 0


def test_the_natural_bank_imports_no_big_package() -> None:
    code = (
        "from stimuli.bank import natural_bank; b = natural_bank(); b.image('china-roof', 9, 9); "
        "b.image('coffee-cup', 9, 9); import sys; print(*{'skimage', 'sklearn', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_an_unknown_picture_is_named() -> None:
    with pytest.raises(ValueError, match="has no picture 'dog'"):
        natural_bank().image("dog", 10, 10)


def test_matching_survives_cutting_off() -> None:
    frame = np.zeros((40, 40, 3), np.uint8)
    frame[:4, :4] = 255  # 1 % white on black: mean and contrast cannot hold without the search
    frame[10:20] = 30
    mean, contrast = frame_levels(match_levels(frame, 128.0, 0.25))
    assert mean == pytest.approx(128, abs=1)
    assert contrast == pytest.approx(0.25, abs=0.01)
    with pytest.raises(ValueError, match="without contrast"):
        match_levels(np.full((4, 4, 3), 9, np.uint8), 128.0, 0.25)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_cropped_to_the_centre_and_shown_as_it_is(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = (250, 20, 90)
    Image.fromarray(wide).save(tmp_path / "b.png")
    Image.fromarray(np.full((8, 8), 60, np.uint8)).save(tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._b.png").write_bytes(b"left by a file server")
    bank = folder_bank(tmp_path)
    assert bank.name == tmp_path.name
    assert bank.names == ("a.PNG", "b.png")
    assert np.unique(bank.image("b.png", 12, 12).reshape(-1, 3), axis=0).tolist() == [[250, 20, 90]]
    assert np.unique(bank.image("a.PNG", 5, 7)).tolist() == [60]


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures in it"):
        folder_bank(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        folder_bank(tmp_path / "absent")


def test_what_would_be_changed_silently_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    clear = np.full((8, 8, 4), 255, np.uint8)
    Image.fromarray(clear).save(tmp_path / "opaque.png")
    clear[0, 0, 3] = 10
    Image.fromarray(clear).save(tmp_path / "clear.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not really")
    bank = folder_bank(tmp_path, "mine")
    assert bank.image("opaque.png", 8, 8).min() == 255
    for name, reason in (("deep.png", "8-bit"), ("clear.png", "transparent"), ("broken.jpg", "not a readable picture")):
        with pytest.raises(ValueError, match=reason):
            bank.image(name, 8, 8)


def test_a_picture_too_large_to_be_one_is_refused_like_any_other(tmp_path: Path) -> None:
    """A header may claim any size; what reads pictures then raises an error of its own kind."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    whole = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0" * 100)) + chunk(b"IEND", b"")
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + whole)
    with pytest.raises(ValueError, match=r"huge.png: not a readable picture .*900000000 pixels"):
        folder_bank(tmp_path).image("huge.png", 8, 8)
