"""Frames of flat areas are small in the log, come back bit for bit, and wild ones are refused."""

import hashlib
import json
import zlib

import numpy as np
import pytest

from models.agents.sparse_noise import Raster, one_pass
from rig.encoding import BadDocument, decode, encode
from rig.messages import StimulusPrepared
from stimuli.bank import natural_bank
from stimuli.geometry import image_rect, pixel_angles
from stimuli.render import render
from stimuli.spec import Place

MONITOR = (1920, 1080), 60.0, 57.0  # size_px, width_cm, distance_cm
MAPPED = Place(center_deg=(0.0, 0.0), size_deg=16.0)


def prepared(frame: np.ndarray) -> StimulusPrepared:
    digest = hashlib.sha256(frame.tobytes()).hexdigest()
    return StimulusPrepared(stimulus_id="s", proposal=0, frame_sha256=digest, frame=frame)


def noise(pattern: str) -> np.ndarray:
    size, width, distance = MONITOR
    rect = image_rect(size, width, distance, MAPPED.size_deg, MAPPED.center_deg)
    raster, rng = Raster(MAPPED.center_deg, MAPPED.size_deg, 10), np.random.default_rng(0)
    frames = one_pass(raster, False, 10, pattern, MAPPED, (1, 255), rng)  # type: ignore[arg-type]
    return render(frames[0], pixel_angles(rect, size, width, distance), 128, {})


@pytest.mark.parametrize("pattern", ["squares", "gratings"])
def test_a_map_s_frames_hardly_fill_the_log_and_come_back_as_they_were(pattern: str) -> None:
    document = prepared(noise(pattern))
    assert document.frame is not None
    header, raw = encode(document)
    assert document.frame.nbytes > 700_000
    assert len(header) + len(raw) < 20_000  # 1,500 of them: 30 MB and not a gigabyte
    again = decode([header, raw])
    assert isinstance(again, StimulusPrepared)
    assert np.array_equal(again.frame, document.frame)
    assert encode(again) == [header, raw]


def test_photographs_are_stored_as_they_are() -> None:
    bank = natural_bank()
    frame = bank.image(bank.names[0], 100, 100)
    header, raw = encode(prepared(frame))
    assert raw == frame.tobytes()
    assert b"deflated" not in header


def test_a_deflated_frame_that_lies_is_refused() -> None:
    document = prepared(np.full((40, 40, 3), 128, np.uint8))
    header, raw = encode(document)
    assert b'"deflated": true' in header
    bomb = zlib.compress(bytes(50_000_000), 9)
    for wrong in (b"", raw[:-1], raw + b"x", raw[:-5] + b"\0\0\0\0\0", bomb, bytes(4800)):
        with pytest.raises(BadDocument):
            decode([header, wrong])
    claims = json.loads(header)
    claims["arrays"][0]["shape"] = [1 << 20, 1 << 20, 3]
    with pytest.raises(BadDocument):
        decode([json.dumps(claims).encode(), raw])
    claims["arrays"][0] |= {"shape": [40, 40, 3], "deflated": False}
    with pytest.raises(BadDocument, match="claims 4800 bytes"):
        decode([json.dumps(claims).encode(), raw])
