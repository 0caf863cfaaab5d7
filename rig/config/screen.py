"""The screen of a config, what is shown where on it and in which rhythm, and the limits that protect the animal."""

from typing import Literal

from pydantic import Field

from rig.config.part import Part


class Patch(Part):
    """The square in a screen corner that the photodiode looks at: white while an image is on."""

    corner: Literal["bottom_right", "bottom_left", "top_right", "top_left"] = "bottom_right"
    size_px: int = Field(default=32, ge=4, le=400, description="Side of the square, pixels.")


class FixationPoint(Part):
    """A small square that the animal looks at, on from the first flip to the last, drawn over everything else."""

    center_deg: tuple[float, float] = Field(default=(0.0, 0.0), description="Its place (right, up), degrees.")
    size_deg: float = Field(default=0.3, gt=0.02, le=5, description="Its side, degrees.")
    level: int = Field(default=255, ge=0, le=255, description="Its grey level, 0-255, after the gamma table.")


class Display(Part):
    """The stimulus screen and where the animal's eye is."""

    size_px: tuple[int, int] = Field(default=(800, 600), description="Window width and height, pixels.")
    fullscreen: bool = False
    screen: int = Field(default=0, ge=0, description="Index of the screen.")
    refresh_hz: float = Field(default=60.0, ge=20, le=500, description="Refresh rate of the screen, Hz.")
    vsync: bool = Field(default=False, description="true: flips wait for the screen; false: frames are paced by clock.")
    width_cm: float = Field(default=40.0, gt=1, description="Width of the visible window, cm.")
    distance_cm: float = Field(default=30.0, gt=1, description="Eye to the nearest point of the screen, cm.")
    background: int = Field(default=128, ge=0, le=255, description="Grey level whenever no image is shown, 0-255.")
    gamma: float = Field(default=1.0, gt=0.2, lt=5, description="Display gamma undone in software; 1 = no table.")
    scanout_s: float = Field(default=0.0, ge=0, lt=0.05, description="Time to scan out all rows, s; 0 if virtual.")
    lag_s: float = Field(
        default=0.0, ge=0, lt=0.2, description="Measured lag from flip stamp to light, s; used without photodiode."
    )
    luminance_cd_m2: tuple[float, float, float] | None = Field(
        default=None, description="Luminance as measured of level 0, the background and 255, cd/m^2."
    )
    patch: Patch | None = Field(default=Patch(), description="null where no photodiode is mounted.")
    fixation_point: FixationPoint | None = Field(
        default=None, description="null for none; where it lies over the image it hides those pixels."
    )


class StimulusPlace(Part):
    """Where and how large images are shown."""

    size_deg: float = Field(default=10.0, gt=0.1, le=120, description="Side of the image, degrees of visual angle.")
    center_deg: tuple[float, float] = Field(
        default=(0.0, 0.0), description="Image centre (right, up) from the screen centre, degrees."
    )


class Limits(Part):
    """Hard limits that every frame must pass before it may reach the screen."""

    mean_level: tuple[float, float] = Field(
        default=(20.0, 235.0), description="Lowest and highest allowed mean grey level of a frame, 0-255."
    )
    max_rms_contrast: float = Field(default=0.75, gt=0, le=2, description="Largest sd / 127.5 of a frame.")
    max_flicker_hz: float = Field(default=20.0, gt=0, le=60, description="Largest rate of image onsets, Hz.")
    max_flash_hz: float = Field(
        default=3.0, ge=0, le=60, description="Most flashes in any second (large changes of mean luminance), Hz."
    )


class Presentation(Part):
    """The rhythm of a trial."""

    on_s: float = Field(default=0.1, gt=0, le=10, description="Image on, s.")
    off_s: float = Field(default=0.1, ge=0, le=10, description="Background between images, s.")
    images_per_trial: int = Field(default=10, ge=1, le=200, description="Presentations in one trial.")
    inter_trial_s: float = Field(default=0.3, ge=0.05, le=60, description="Background between trials, s.")
    repeats_of_unusable: int = Field(
        default=2, ge=0, le=20, description="How often an image without a usable response is shown again at once."
    )
    most_fallback_s: float = Field(
        default=120, gt=0, le=86400, description="Fallback images for at most this long, then background, s."
    )
