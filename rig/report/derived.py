"""What captions of a session with units sorted offline must say: its images were chosen by the units seen online."""

from rig.report.data import Session


def chosen_online(session: Session, phase: int) -> str:
    """Return by whose responses the images of a phase were chosen, a sentence with a space; "" where they are drawn."""
    origin = session.origins.get("derived_from")
    if origin is None:
        return ""
    pair = str(origin["how"].get(f"phase {phase} chose its images by", ""))
    unit = pair.split(", here ")[0] or "a unit"
    return (
        f"Its images were chosen online by {unit} of session {origin['session']}; these rates are of the units sorted "
        "offline, and nothing was chosen by them. "
    )


def coverage_words(full: float, mean: float) -> str:
    """Return what coverage says, a sentence: of the device's data, not of the units."""
    return (
        f"The device's data are complete in the windows of {full:.1%} of the presentations; mean coverage {mean:.2%}. "
        "That says nothing of whether the units were there."
    )
