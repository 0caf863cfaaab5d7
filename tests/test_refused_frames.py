"""What becomes of a presentation whose frame was refused: its response says that, and not that it was cut short."""

from rig.messages import Document, Presented
from tests.test_windows import Device, device

WHY = "mean level 10 is outside limits.mean_level 20 to 235"


class Refusing(Device):
    """A device beside a rig that refuses every frame."""

    def take(self, document: Document) -> None:
        """Take a document, a Presented as one whose frame was refused."""
        if isinstance(document, Presented):
            document = document.model_copy(update={"complete": False, "refused": WHY})
        super().take(document)


def test_the_response_says_that_the_frame_was_refused() -> None:
    d = Refusing(device().fold)
    d.show(0, 90_000)
    d.advance(120_000)
    (response,) = d.responses
    assert not response.usable
    assert response.reason == f"its frame was refused: {WHY}"
