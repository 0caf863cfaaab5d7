"""What a guest rig is answered: trials to show, and the documents that its own words become.

Owned by `rig.display.guest`. The guest asks for trials and says what it showed (`rig.display.guest_wire`); its clock is
mapped onto the host's from the round trips of its requests, so that what it says becomes the same documents as those of
our own display. It owns no socket; the clock is an argument.
"""

from typing import Any, Protocol

import numpy as np

from rig.clock import Clock
from rig.clocks.clockmap import ClockMap
from rig.config.session import Config
from rig.display import programme
from rig.display.frames import FrameMaker, Made
from rig.display.guest_wire import PROTOCOL, BadRequest, Bye, Hello, Next, Over, Request, Shown, parse, reply
from rig.display.places import Places
from rig.display.programme import Programme
from rig.display.trial import Showing, TrialPlan
from rig.display.trial_outputs import TrialOutputs
from rig.messages import ClockSample, Entry, Fault, Presented, StopRequested, TrialIntent
from rig.supervision.run_number import run_number
from stimuli.geometry import Rect
from stimuli.limits import FlashLimit, Light

AGAIN_S = 0.05  # a guest that has nothing to show asks again after this long
CLOCK_SOURCE = "guest"
LONGEST_ROUND_TRIP_NS = 60_000_000_000
SAID_EACH = 10  # requests of a guest that are refused and said one by one; of later ones every hundredth
SAID_BYE = "the guest ended"  # begins the reason of a session that the guest ended
FUTURE_NS = 50_000_000  # a flip cannot lie later than this after it was reported, whatever the clocks' error


class Ending(Protocol):
    """What it needs of `rig.supervision.child.Stop`."""

    go: bool


class GuestRig:
    """Answers one guest; a state machine that owns no socket.

    Parameters
    ----------
    config, where, frames
        As for our own rig.
    line
        The bus; ProcessStarted of this start was sent on it already.
    clock, stop
        Time, and whether every process of the session is ready.
    """

    def __init__(
        self, config: Config, where: Places, frames: FrameMaker, line: programme.Line, clock: Clock, stop: Ending
    ) -> None:
        if config.guest is None:
            raise ValueError("the config has no part `guest`")
        self._config, self._where, self._frames, self._line = config, where, frames, line
        self._clock, self._stop = clock, stop
        self._silent_after_ns = int(config.guest.timeout_s * 1e9)
        rhythm = config.presentation
        self._programme = Programme(rhythm, where, frames, line, clock)
        self._outputs = TrialOutputs(config, line, clock)
        self._flashes = FlashLimit(frames.grey.luminance, config.limits.max_flash_hz)
        self._guest: Hello | None = None
        self._map = ClockMap(nominal_hz=1e9)
        self._run = 0
        self._heard_ns = clock.now_ns()
        self._silence_said = False
        self._refused = 0
        self._free_from_ns = 0  # the screen is free for an image from here on: start of the trial, or the last offset
        self._plan: TrialPlan | None = None
        self._trial = -1  # the last one that was given
        self._open: dict[int, tuple[Showing, Made]] = {}  # presentations of the trial that are not reported yet
        self._previous: str | None = None  # image before the next one in the same trial
        self._last_onset_ns: int | None = None
        self._shown_of_trial: list[Presented] = []
        self.ended: str | None = None  # why nothing more is shown
        self.told_end = False  # whether the guest knows

    # --- from the log

    def take(self, entry: Entry) -> None:
        """Take an entry of the session's log."""
        self._programme.take(entry)
        self.ended = self.ended or self._programme.ended

    def watch(self) -> None:
        """Notice a guest that has gone silent."""
        silent_ns = self._clock.now_ns() - self._heard_ns
        if silent_ns > self._silent_after_ns and not self._silence_said:
            self._silence_said = True
            who = "no guest has come" if self._guest is None else f"{self._guest.program} has said nothing"
            detail = f"{who} for {silent_ns * 1e-9:.0f} s; see that it runs and asks on the port of the config"
            done = "nothing is shown; waiting"
            self._line.send(Fault(what="guest silent", detail=detail, done=done, since_host_ns=self._heard_ns))

    # --- from the guest

    def answer(self, frames: list[bytes], received_host_ns: int) -> list[bytes]:
        """Return the reply to one request; a wrong one is answered with what is wrong and changes nothing."""
        try:
            request = parse(frames)
            self._check_guest(request)
            header, images = self._answered(request)
        except ValueError as error:  # BadRequest, or a value that no document takes: the guest's in either case
            self._refused += 1
            if self._refused <= SAID_EACH or self._refused % 100 == 0:
                detail = f"request of the guest refused ({self._refused} so far): {error}"
                self._line.send(Fault(what="guest request refused", detail=detail, done="nothing of it is used"))
            header, images = {"error": str(error)}, ()
        self._heard_ns = received_host_ns
        self._silence_said = False
        # Any moment between receipt and reply lies within the round trip that the guest measures.
        return reply({**header, "host_ns": (received_host_ns + self._clock.now_ns()) // 2}, images)

    def _check_guest(self, request: Request) -> None:
        if isinstance(request, Hello):
            self._welcome(request)
        elif self._guest is None or request.guest != self._guest.guest:
            raise BadRequest("say hello first: this start of the guest is not known here (or another took its place)")
        self._clock_pair(request)

    def _welcome(self, hello: Hello) -> None:
        if self._guest is not None and self._guest.guest != hello.guest:
            self._leave("the guest was started again")
        if self._guest is None or self._guest.guest != hello.guest:
            self._run = run_number(self._clock, self._run)
            self._map = ClockMap(nominal_hz=1e9)
        self._guest = hello

    def _clock_pair(self, request: Request) -> None:
        sent, host, got = request.sent_ns, request.host_ns, request.got_ns
        if sent is None or host is None or got is None:
            return
        if not 0 <= got - sent <= LONGEST_ROUND_TRIP_NS:
            raise BadRequest("sent_ns, got_ns: not in order, or a minute apart; stamp with one monotonic clock, in ns")
        if not 0 <= host <= self._clock.now_ns():
            raise BadRequest("host_ns is none of the times that were given in a reply; return it unchanged, as int64")
        pair = ClockSample(
            source=CLOCK_SOURCE,
            run=self._run,
            device_sample=(sent + got) / 2,
            pair_host_ns=host,
            method="round_trip",
            round_trip_ns=got - sent,
        )
        self._map.take(pair)
        self._line.send(pair)

    def _answered(self, request: Request) -> tuple[dict[str, Any], tuple[bytes, ...]]:
        if isinstance(request, Hello):
            return self._about(), ()
        if isinstance(request, Next):
            return self._next()
        if isinstance(request, Shown):
            self._shown(request)
        elif isinstance(request, Over):
            if request.trial != self._trial:
                raise BadRequest(f"trial: {request.trial} is not the last one you were given, {self._trial}")
            self._leave(request.reason or "the guest ended the trial early")
        elif isinstance(request, Bye):
            self._leave("the guest said bye")
            self.ended = self.ended or f"{SAID_BYE}: {request.reason or 'no reason given'}"
            self.told_end = True
        return {"ok": True}, ()

    def _about(self) -> dict[str, Any]:
        rhythm, rect, patch = self._config.presentation, self._where.rect, self._where.patch
        point = self._where.fixation
        return {
            "ok": True,
            "protocol": PROTOCOL,
            "image_rect_px": _corners(rect),
            "patch_rect_px": None if patch is None else _corners(patch),
            "fixation_rect_px": None if point is None else _corners(point),
            "screen_px": list(self._config.display.size_px),
            "background": self._frames.background_level,
            "on_s": rhythm.on_s,
            "off_s": rhythm.off_s,
            "inter_trial_s": rhythm.inter_trial_s,
        }

    # --- trials

    def _next(self) -> tuple[dict[str, Any], tuple[bytes, ...]]:
        if self._plan is not None:
            self._leave("the guest asked for the next trial")
        if self.ended is not None:
            self.told_end = True
            return {"stop": self.ended}, ()
        if held := self._programme.held:
            return {"wait_s": AGAIN_S, "paused": held}, ()
        ready = self._programme.caught_up and self._stop.go and self._map.ns_per_sample() is not None
        plan = (self._programme.planner.next_trial() or self._programme.fall_back()) if ready else None
        if plan is None:
            return {"wait_s": AGAIN_S}, ()
        now = self._clock.now_ns()
        images = self._prepared_images(plan, now)
        if refusal := self._places_refused(images):
            self.ended = self.ended or refusal
            self.told_end = True
            return {"stop": self.ended}, ()
        self._line.send(
            TrialIntent(
                trial=plan.trial,
                presentations=plan.presentations,
                proposals=tuple(s.proposal.proposal for s in plan.images),
                slots=tuple(s.slot for s in plan.images),
                start_host_ns=now,
            )
        )
        self._outputs.trial_begins(plan, now)
        self._plan, self._trial, self._previous = plan, plan.trial, None
        self._shown_of_trial = []
        self._free_from_ns = now
        self._open = {s.presentation: (s, made) for s, made in images}
        rows = [
            {
                "presentation": s.presentation,
                "sha256": made.sha256,
                "shape": list(made.frame.shape),
                "rect_px": _corners(made.square.rect),
            }
            for s, made in images
        ]
        return {"trial": plan.trial, "images": rows}, tuple(made.frame.tobytes() for _, made in images)

    def _prepared_images(self, plan: TrialPlan, start_ns: int) -> list[tuple[Showing, Made]]:
        rhythm = self._config.presentation
        images: list[tuple[Showing, Made]] = []
        planned: list[Light] = []
        for k, showing in enumerate(plan.images):
            made = self._programme.make(showing)
            on_ns = start_ns + int(k * (rhythm.on_s + rhythm.off_s) * 1e9)
            off_ns = on_ns + int(rhythm.on_s * 1e9)
            # The guest shows it when it likes: the check is for the rhythm that it was asked to keep.
            after = [self._flashes.cleared(off_ns)] if rhythm.off_s or k == len(plan.images) - 1 else []
            on = Light(on_ns, made.luminance, made.square.spot)
            refusal = self._flashes.refusal([*planned, on, *after], made.luminance)
            made = self._frames.refuse(refusal, showing.proposal.place) if refusal else made
            planned += [on._replace(luminance=made.luminance), *after]
            images.append((showing, made))
            self._programme.say_prepared(showing, made)
        return images

    def _places_refused(self, images: list[tuple[Showing, Made]]) -> str:
        """Return why a guest must not be given images, "" if it may: one that draws all of them at one place."""
        elsewhere = tuple(s.presentation for s, made in images if made.square is not self._where.usual)
        if not elsewhere or (self._guest is not None and self._guest.places):
            return ""
        detail = "images of this trial lie elsewhere than image_rect_px, and the guest did not say that it draws there"
        done = 'the session is ended; have it draw each image at its rect_px, and say "places": true in hello'
        self._line.send(Fault(what="guest places", detail=detail, done=done, presentations=elsewhere))
        return "the guest does not draw images at other places"

    def _shown(self, shown: Shown) -> None:
        if shown.presentation not in self._open:
            raise BadRequest(f"presentation: {shown.presentation} is none of the open trial's, or was reported before")
        showing, made = self._open[shown.presentation]
        onset, offset = self._on_host(shown.onset_ns), self._on_host(shown.offset_ns)
        now = self._clock.now_ns()
        if not onset[0] < offset[0] <= now + FUTURE_NS:
            raise BadRequest("onset_ns, offset_ns: not in order, or later than now; give the clock that sent_ns has")
        if onset[0] < self._free_from_ns - onset[1]:
            raise BadRequest(
                "onset_ns: before the trial was given, or before the image before it ended; "
                "report each image in the order it was shown, with the clock that sent_ns has"
            )
        if shown.sha256 != made.sha256:
            detail = f"presentation {shown.presentation}: the guest drew other bytes than it was sent"
            done = "marked incomplete and not scored; draw the frame 1:1, without gamma or resizing"
            self._line.send(Fault(what="frame differs", detail=detail, done=done, presentations=(shown.presentation,)))
        self._check_flicker(shown.presentation, onset[0])
        del self._open[shown.presentation]
        patch = self._where.patch
        row = made.square.rect.center_row
        presented = Presented(
            presentation=shown.presentation,
            trial=self._trial,
            position_in_trial=showing.position,
            proposal=showing.proposal.proposal,
            slot=showing.slot,
            role=showing.role,
            stimulus_id=showing.stimulus.id,
            previous_stimulus_id=self._previous,
            frame_sha256=made.sha256,
            due_host_ns=onset[0],
            onset_flip_host_ns=onset[0],
            offset_flip_host_ns=offset[0],
            flip_uncertainty_ns=onset[1],
            flips_host_ns=np.array([onset[0], offset[0]], np.int64),
            late_flips=shown.late_flips,
            dropped_frames=shown.dropped_frames,
            image_row_px=row,
            patch_row_px=row if patch is None else patch.center_row,
            complete=shown.complete and not made.refused and shown.sha256 == made.sha256,
            refused=made.refused,
        )
        self._line.send(presented)
        self._shown_of_trial.append(presented)
        self._flashes.shown(Light(onset[0], made.luminance, made.square.spot))
        self._flashes.shown(self._flashes.cleared(offset[0]))
        self._free_from_ns = offset[0]
        self._previous = showing.stimulus.id
        if not self._open:
            self._end_trial()

    def _on_host(self, guest_ns: int) -> tuple[int, int]:
        mapped = self._map.to_host_ns(float(guest_ns))
        if mapped is None:
            raise BadRequest("the guest's clock is not known yet: send sent_ns, host_ns and got_ns with every request")
        return mapped

    def _check_flicker(self, presentation: int, onset_host_ns: int) -> None:
        """Hold a guest to the limit too: it displays, so all that can be done is to end the session."""
        before, self._last_onset_ns = self._last_onset_ns, onset_host_ns
        limit_hz = self._config.limits.max_flicker_hz
        frame_ns = 1e9 / (self._guest.refresh_hz if self._guest is not None else 60.0)
        if before is None or onset_host_ns - before >= 1e9 / limit_hz - frame_ns:
            return
        rate_hz = 1e9 / max(onset_host_ns - before, 1)
        detail = f"the guest showed images at {rate_hz:.0f} Hz, the limit is {limit_hz:g} Hz"
        done = "the session is ended; mend the guest's timing"
        self._line.send(Fault(what="flicker limit", detail=detail, done=done, presentations=(presentation,)))
        self.ended = self.ended or "the guest exceeded the flicker limit"

    def _leave(self, reason: str) -> None:
        """End the open trial: say what of it was never shown, and plan that again."""
        if self._open:
            numbers = tuple(sorted(self._open))
            done = "never shown; planned again under new numbers"
            self._line.send(Fault(what="trial cut short", detail=reason, done=done, presentations=numbers))
            self._programme.planner.put_back([showing for showing, _ in self._open.values()])
        self._open = {}
        self._end_trial()

    def _end_trial(self) -> None:
        plan, self._plan = self._plan, None
        if plan is not None:
            self._outputs.trial_over(plan, self._shown_of_trial)

    def close(self, reason: str) -> None:
        """Account for an open trial and say that nothing more is shown."""
        self._leave(reason)
        self._line.send(StopRequested(reason=reason))


def _corners(rect: Rect) -> list[int]:
    """Return left, top, right and bottom."""
    return [rect.left, rect.top, rect.right, rect.bottom]
