"""From descriptions to pixels."""

import numpy as np
import pytest

from stimuli.bank import natural_bank
from stimuli.geometry import F64, image_rect, pixel_angles
from stimuli.limits import check_frame
from stimuli.render import gamma_table, render
from stimuli.spec import BankImage, Blank, Grating, LatentImage

SIZE, WIDTH_CM, DISTANCE_CM = (800, 600), 40.0, 30.0


def angles_at(center: tuple[float, float] = (0.0, 0.0)) -> tuple[F64, F64]:
    rect = image_rect(SIZE, WIDTH_CM, DISTANCE_CM, 10.0, center)
    return pixel_angles(rect, SIZE, WIDTH_CM, DISTANCE_CM)


ANGLES = angles_at()


def luminance(grating: Grating, angles: tuple[F64, F64] = ANGLES) -> F64:
    frame = render(grating, angles, 128, {})
    assert np.ptp(frame, axis=2).max() == 0  # grey
    return frame[:, :, 0].astype(np.float64) - 128


def test_a_blank_is_the_background() -> None:
    frame = render(Blank(), ANGLES, 77, {})
    assert frame.shape == (104, 104, 3)
    assert np.unique(frame).tolist() == [77]


def test_orientation_is_that_of_the_bars_counter_clockwise_from_horizontal() -> None:
    horizontal = luminance(Grating(orientation_deg=0, cycles_per_deg=0.4))
    vertical = luminance(Grating(orientation_deg=90, cycles_per_deg=0.4))
    middle = slice(45, 59)
    assert horizontal[:, middle].std(axis=0).mean() > 20 * horizontal[52, middle].std()
    assert np.abs(horizontal - vertical.T).max() <= 1
    rising = luminance(Grating(orientation_deg=45, cycles_per_deg=0.4))
    # Bars that rise to the right: going right and up (row falls) changes little, going right and down a lot.
    along = np.std([rising[52 - k, 52 + k] for k in range(-12, 13)])
    across = np.std([rising[52 + k, 52 + k] for k in range(-12, 13)])
    assert across > 10 * along


def test_frequency_is_per_degree_of_the_eye() -> None:
    wave = luminance(Grating(orientation_deg=90, cycles_per_deg=1.0))[52]
    azimuth = ANGLES[0][52]
    peaks = [k for k in range(1, 103) if wave[k] > 60 and wave[k - 1] < wave[k] >= wave[k + 1]]
    assert np.allclose(azimuth[peaks], np.rint(azimuth[peaks]), atol=0.06)  # cosine phase: a bar on each whole degree
    assert len(peaks) >= 7


def test_phase_is_at_the_image_centre_wherever_the_image_is() -> None:
    angles = angles_at((7.0, -4.0))
    bright = luminance(Grating(orientation_deg=30, cycles_per_deg=0.3, phase_deg=0), angles)
    dark = luminance(Grating(orientation_deg=30, cycles_per_deg=0.3, phase_deg=180), angles)
    row, column = (n // 2 for n in bright.shape)
    assert bright[row, column] >= 120  # the middle pixel is up to a pixel from the middle angle
    assert np.abs(bright + dark).max() <= 1


def test_contrast_is_michelsons_and_the_edge_is_soft() -> None:
    half = luminance(Grating(orientation_deg=90, cycles_per_deg=0.6, contrast=0.5))
    assert half.max() == pytest.approx(64, abs=1)
    assert half.min() == pytest.approx(-64, abs=1)
    assert np.abs(half[[0, 0, -1, -1], [0, -1, 0, -1]]).max() == 0  # corners are background
    assert np.abs(half[52, :2]).max() <= 2
    check_frame(render(Grating(orientation_deg=0, cycles_per_deg=0.5), ANGLES, 128, {}), (20.0, 235.0), 0.75)


def test_what_the_screen_cannot_show_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use at most 5\.2"):
        render(Grating(orientation_deg=0, cycles_per_deg=6.0), ANGLES, 128, {})
    with pytest.raises(ValueError, match=r"lower its contrast or display\.background"):
        render(Grating(orientation_deg=0, cycles_per_deg=0.5), ANGLES, 200, {})
    with pytest.raises(ValueError, match="no image bank 'faces'"):
        render(BankImage(bank="faces", name="a"), ANGLES, 128, {})
    with pytest.raises(TypeError, match="Proposal"):
        render(LatentImage(generator="g", row=0), ANGLES, 128, {})


def test_bank_images_have_the_size_of_the_image_square() -> None:
    angles = angles_at((9.0, 0.0))  # not square
    frame = render(BankImage(bank="natural", name="chelsea-eye"), angles, 128, {"natural": natural_bank()})
    assert frame.shape == (*angles[0].shape, 3)
    assert frame.shape[0] != frame.shape[1]


def test_gamma_table_undoes_the_display() -> None:
    assert gamma_table(1.0).tolist() == list(range(256))
    table = gamma_table(2.2)
    assert table.dtype == np.uint8
    assert (table[0], table[255]) == (0, 255)
    assert np.all(np.diff(table.astype(int)) >= 0)
    emitted = 255 * (table / 255) ** 2.2
    assert np.abs(emitted - np.arange(256)).max() < 1.2  # half an output level, at the steep end
    with pytest.raises(ValueError, match="gamma"):
        gamma_table(0.0)
