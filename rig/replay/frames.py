"""Frames: every frame that was shown is made once more and compared with the sha256 that was journalled.

Part of `verify --frames`. Latent images come from the Proposal, as they did live; gratings and bank pictures are
rendered again, so banks of the config must still be where they were.
"""

import hashlib
from collections import OrderedDict

from rig.config.session import Config
from rig.display.frames import FrameMaker, Made
from rig.display.places import places
from rig.messages import Presented, Proposal, SessionStart, StimulusPrepared
from rig.replay.records import Record, ReplayError, config_of
from rig.replay.verdict import Verdict
from stimuli.bank import Bank, folder_bank
from stimuli.tiles import built_in_banks

KEPT = 6  # proposals whose frames are in memory; the rig shows those of the newest two


def banks_of(config: Config) -> dict[str, Bank]:
    """Return the image banks as the rig has them; raises ReplayError where a folder is gone."""
    try:
        banks = {name: folder_bank(path) for name, path in config.banks.items()}
    except (ValueError, OSError) as error:
        raise ReplayError(f"{error}; the pictures of the session must be where they were") from error
    banks |= built_in_banks(float(config.display.background), config.natural_contrast)
    return banks


def frame_maker(config: Config) -> FrameMaker:
    """Return what makes frames as the rig of this config did; raises ReplayError."""
    display = config.display
    return FrameMaker(places(config), display.background, display.gamma, config.limits, banks_of(config))


class FramesCheck:
    """Makes every prepared frame again."""

    def __init__(self, start: SessionStart, verdict: Verdict) -> None:
        """Make frames as the config of the session says; findings go into `verdict`. Raises ReplayError."""
        self._maker = frame_maker(config_of(start))
        self._verdict = verdict
        self._proposals: OrderedDict[int, Proposal] = OrderedDict()
        self._made: OrderedDict[tuple[int, str], Made] = OrderedDict()  # that were made again

    def take(self, record: Record) -> None:
        """Take the next record."""
        if record.kind not in ("proposal", "stimulus_prepared", "presented"):
            return
        document = record.entry.document
        if isinstance(document, Proposal):
            self._proposals[document.proposal] = document
            if len(self._proposals) > KEPT:
                old, _ = self._proposals.popitem(last=False)
                for key in [key for key in self._made if key[0] <= old]:
                    del self._made[key]
        elif isinstance(document, StimulusPrepared):
            self._prepared(document)
        elif isinstance(document, Presented):
            self._presented(document)

    def _prepared(self, prepared: StimulusPrepared) -> None:
        where = f"frame of stimulus {prepared.stimulus_id} (proposal {prepared.proposal})"
        try:
            made = self._make(prepared)
        except ValueError as error:  # a place where nothing may be drawn
            self._verdict.different.append(f"{where}: {error}")
            return
        if made is None:
            self._verdict.different.append(f"{where}: its proposal is not in the journal, or too old")
            return
        self._made[prepared.proposal, prepared.stimulus_id] = made
        held = prepared.frame
        if held is not None and hashlib.sha256(held.tobytes()).hexdigest() != prepared.frame_sha256:
            self._verdict.different.append(f"{where}: the picture in the journal is not the one it names")
        elif prepared.frame_sha256 == made.sha256:
            self._verdict.identical["frame"] += 1
        elif prepared.frame_sha256 == self._grey(made):  # refused; whether it was, its Presented says
            self._verdict.identical["frame refused"] += 1
        else:
            self._verdict.different.append(f"{where} comes out otherwise{f' ({made.refused})' if made.refused else ''}")

    def _make(self, prepared: StimulusPrepared) -> Made | None:
        proposal = self._proposals.get(prepared.proposal)
        stimuli = [] if proposal is None else [s for s in proposal.stimuli if s.id == prepared.stimulus_id]
        return self._maker.make(proposal, stimuli[0]) if proposal is not None and stimuli else None

    def _grey(self, made: Made) -> str:
        """Return the sha256 of the background in a frame's place."""
        return self._maker.background_at(made.square.place).sha256

    def _presented(self, shown: Presented) -> None:
        made = self._made.get((shown.proposal, shown.stimulus_id))
        if made is None:
            return  # said already, at its preparation or by `rig.replay.screen`
        row = made.square.rect.center_row
        if shown.frame_sha256 != (self._grey(made) if shown.refused else made.sha256):
            said = f"says it was refused ({shown.refused})" if shown.refused else "does not say that it was refused"
            self._verdict.different.append(f"presentation {shown.presentation} {said}; the frame says otherwise")
        elif shown.image_row_px != row:
            said = f"presentation {shown.presentation} was centred on screen row {shown.image_row_px:g}"
            self._verdict.different.append(f"{said}; the place of its proposal lies on row {row:g}")
        else:
            self._verdict.identical["presented frame"] += 1

    def finish(self, closed: bool) -> None:
        """Nothing is owed at the end."""
