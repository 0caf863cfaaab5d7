"""TTL lines that are high while an image is on, driven by the rig, each through a pulser and a guardian of its own.

Raising and lowering are one write to a pipe each, so that the frame loop never waits; the line follows a fraction of a
millisecond later. The photodiode tells when the image came; these lines mark it for other recorders. If the rig dies,
they fall with it.
"""

from rig.clock import Clock
from rig.config.outputs import SerialOutput, onset_line
from rig.config.session import Config
from rig.display.show import Sender
from rig.messages import Fault
from rig.outputs import records as r
from rig.outputs.lines import OutputError
from rig.outputs.pair import Pair

MARGIN_NS = 100_000_000  # past the images' time on the screen the pulser lowers its line whatever the rig does


class OnsetLines:
    """All onset lines of a config. Raises OutputError where one cannot be opened."""

    def __init__(self, config: Config, sender: Sender, clock: Clock) -> None:
        self._sender = sender
        self._clock = clock
        rhythm = config.presentation
        in_a_row = 1 if rhythm.off_s else rhythm.images_per_trial  # without off_s the line stays high through a trial
        self._longest_ns = int(in_a_row * rhythm.on_s * 1e9) + MARGIN_NS
        self._number = 0
        self._pairs: dict[str, Pair] = {}
        for output in config.outputs:
            if onset_line(output):
                rts, line = (True, 0) if isinstance(output, SerialOutput) else (False, output.line)
                try:
                    self._pairs[output.name] = Pair(output.port, rts, line, clock, config.processes.realtime)
                except OutputError:
                    self.close()
                    raise

    def rise(self) -> None:
        """Raise all lines."""
        self._number += 1
        for pair in self._pairs.values():
            pair.raise_line(self._number, self._longest_ns)

    def fall(self) -> None:
        """Lower all lines."""
        for pair in self._pairs.values():
            pair.stop()

    def check(self) -> None:
        """Hear what the pulsers say, between trials; a line that failed is a fault, and is not driven any more."""
        for name in list(self._pairs):
            pair = self._pairs[name]
            missed = sum(told.kind == r.NOT_RAISED for told in pair.poll())
            if missed and pair.alive:
                self._say(name, f"{missed} onsets were not raised: the guardian did not answer in time")
            elif not pair.alive:
                del self._pairs[name]
                pair.close()
                self._say(name, "its watchdog ended; it is low and not raised again in this session")

    def _say(self, name: str, detail: str) -> None:
        self._sender.send(Fault(what="onset line", detail=f"{name}: {detail}", done="the images are shown as before"))

    def close(self) -> None:
        """End the watchdogs; the lines are low."""
        for pair in self._pairs.values():
            pair.close()
        self._pairs = {}
