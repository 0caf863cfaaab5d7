"""The load part of `stimloop bench calcium`: thousands of ROIs through the real processes of a session.

A publisher process serves the traces wire in real time (simulated microscope); the session's own source, recorder,
model server and view do what they do in a session. This process stands in for the rig: it "shows" what the model
server proposes, without a screen, and reads the responses.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from rig.clock import Clock
from rig.config.reading import parse
from rig.config.session import Config
from rig.config.sources import CalciumSimulation
from rig.links.peer import Peer
from rig.links.ports import free_port
from rig.messages import (
    Continuity,
    Entry,
    Fault,
    PhaseEnded,
    Presented,
    Proposal,
    Response,
    StopRequested,
    TraceBlock,
)
from rig.provenance import process_started
from rig.recording.journal import JournalReader
from rig.supervision.processes import Child, SessionFailed, wait_ready
from rig.supervision.runs import new_folder
from rig.timing import drain_s

ON_S, EVERY_S = 0.2, 0.4
FRAME_HZ = CalciumSimulation().frame_hz
WARM_UP_S = 5.0  # CPU shares are taken after it
SAMPLE_NS = 1_000_000_000
WANTS = frozenset({"proposal", "phase_ended", "response"})


def config_text(rois: int, port: int, minutes: float) -> str:
    """Return the config of the load: one microscope, a fixed set of images until the time is over."""
    return yaml.safe_dump(
        {
            "name": f"bench-calcium-{rois}",
            "sources": [{"type": "traces_zmq", "name": "scope", "port": port, "photodiode_line": None}],
            "responses": {
                "units": [f"roi{k}" for k in range(rois)],
                "window_s": [0.05, 0.35],
                "baseline": {"kind": "block", "window_s": [-0.05, 0.05]},
            },
            "presentation": {"on_s": ON_S, "off_s": EVERY_S - ON_S},
            "phases": [
                {
                    "agent": "present",
                    "images": ["natural"],
                    "count": 20,
                    "repeats": max(1, round(minutes * 60 / EVERY_S / 20) + 2),
                }
            ],
        },
        sort_keys=False,
    )


class _Watched:
    """CPU time and memory of one child."""

    def __init__(self, name: str, child: Child) -> None:
        self.name = name
        self._process = psutil.Process(child.process.pid)
        self._cpu_s = 0.0
        self._from_ns = 0
        self.first_mb = self.peak_mb = self.last_mb = 0.0

    def begin(self, now_ns: int) -> None:
        times = self._process.cpu_times()
        self._cpu_s, self._from_ns = times.user + times.system, now_ns
        self.first_mb = self._process.memory_info().rss / 1e6

    def look(self) -> None:
        self.last_mb = self._process.memory_info().rss / 1e6
        self.peak_mb = max(self.peak_mb, self.last_mb)

    def row(self, now_ns: int) -> dict[str, Any]:
        times = self._process.cpu_times()
        share = (times.user + times.system - self._cpu_s) / ((now_ns - self._from_ns) / 1e9)
        return {
            "part": "load",
            "process": self.name,
            "cpu_share_of_a_core": round(share, 3),
            "memory_mb_begin": round(self.first_mb),
            "memory_mb_end": round(self.last_mb),
            "memory_mb_peak": round(self.peak_mb),
        }


class _Show:
    """The rig's part without a screen: every planned image is "shown" at its time."""

    def __init__(self, peer: Peer, clock: Clock) -> None:
        self._peer, self._clock = peer, clock
        self._waiting: list[tuple[Proposal, int]] = []
        self._open: Presented | None = None
        self._due_ns = clock.now_ns()
        self.shown = 0  # begun
        self.sent = 0  # ended, and said so
        self.reading_ns: list[int] = []  # receipt by the recorder to here
        self.over = False

    def step(self) -> None:
        """Take what came; end an image that is due to end, begin one that is due."""
        for entry in self._peer.poll(0.01):
            document = entry.document
            if isinstance(document, Proposal):
                self._waiting += [(document, slot) for slot in range(len(document.plan))]
            elif isinstance(document, Response):
                self.reading_ns.append(self._clock.now_ns() - entry.envelope.receipt_host_ns)
            elif isinstance(document, PhaseEnded):
                self.over = document.last
        now = self._clock.now_ns()
        if self._open is not None and now >= self._open.offset_flip_host_ns:
            self._peer.send(self._open)
            self._open = None
            self.sent += 1
        if self._waiting and self._open is None and now >= self._due_ns:
            self._begin(now)
            # After a stall the rhythm starts anew: no image is rushed, none replaces another.
            self._due_ns = max(self._due_ns, now - int(EVERY_S * 1e9)) + int(EVERY_S * 1e9)

    def _begin(self, now: int) -> None:
        proposal, slot = self._waiting.pop(0)
        planned = proposal.plan[slot]
        offset = now + int(ON_S * 1e9)
        self._open = Presented(
            presentation=self.shown,
            trial=0,
            position_in_trial=self.shown,
            proposal=proposal.proposal,
            slot=slot,
            role=planned.role,
            stimulus_id=proposal.stimuli[planned.stimulus].id,
            previous_stimulus_id=None,
            frame_sha256="0" * 64,  # nothing is drawn
            due_host_ns=now,
            onset_flip_host_ns=now,
            offset_flip_host_ns=offset,
            flips_host_ns=np.array([now, offset], np.int64),
            late_flips=0,
            dropped_frames=0,
            image_row_px=0.0,
            patch_row_px=0.0,
            complete=True,
        )
        self.shown += 1


def load(minutes: float, rois: int, sessions: Path, clock: Clock) -> dict[str, Any]:
    """Run `rois` ROIs for `minutes`; return figures, with one row per process. Raises SessionFailed."""
    port = free_port(2)
    text = config_text(rois, port, minutes)
    config = parse(text)
    folder = new_folder(sessions, config.name, text, clock)
    (folder / "logs").mkdir()
    children: dict[str, Child] = {}

    def start(name: str, *arguments: str) -> Child:
        children[name] = Child(name, ["-m", *arguments], folder / "logs" / f"{name}.log")
        return children[name]

    place = ("--folder", str(folder))
    peer: Peer | None = None
    try:
        start("publisher", "rig.bench.calcium_publisher", "--port", str(port), "--rois", str(rois))
        recorder = start("recorder", "rig.recording.recorder", *place, "--simulated")
        wait_ready([*children.values()], clock)
        assert recorder.ready is not None  # noqa: S101 - just waited for
        endpoint = ("--endpoint", str(recorder.ready["endpoint"]))
        start("model", "models", *place, *endpoint)
        start("scope", "rig.sources", *place, *endpoint, "--name", "scope")
        start("view", "rig.view.h5", *place)
        wait_ready([*children.values()], clock)
        peer = Peer("rig", endpoint[1], WANTS, clock)
        peer.send(process_started("rig", clock, {"stand-in": "no screen: bench calcium"}))
        figures = _run(minutes, children, _Show(peer, clock), peer, clock)
        figures |= _end(children, recorder, peer, config, clock)
    finally:
        for child in children.values():
            if child.exit_code is None:
                child.process.kill()
                child.end(5.0)
        if peer is not None:
            peer.close()
    rows = figures.pop("rows")
    figures |= _from_journal(folder / "session.journal")
    size = os.path.getsize(folder / "session.journal")
    return {
        "rois": rois,
        "minutes": minutes,
        "session": str(folder),
        **figures,
        "journal_mb_per_s": round(size / 1e6 / (figures["frames_journalled"] / FRAME_HZ), 2),
        "view_mb": round(os.path.getsize(folder / "session.h5") / 1e6),
        "cpu_share_of_all": round(sum(r["cpu_share_of_a_core"] for r in rows), 3),
        "cores": os.cpu_count(),
        "rows": rows,
    }


def _run(minutes: float, children: dict[str, Child], show: _Show, peer: Peer, clock: Clock) -> dict[str, Any]:
    watched = [_Watched(name, child) for name, child in children.items()]
    begin_ns = clock.now_ns() + int(WARM_UP_S * 1e9)
    end_ns = begin_ns + int(minutes * 60e9)
    begun, look_ns = False, begin_ns
    while (now := clock.now_ns()) < end_ns and not show.over:
        show.step()
        if not begun and now >= begin_ns:
            begun = True
            for one in watched:
                one.begin(now)
        if begun and now >= look_ns:
            look_ns += SAMPLE_NS
            for one in watched:
                one.look()
            for child in children.values():
                child.update()
                if child.exit_code is not None:
                    raise SessionFailed(child.why())
    now = clock.now_ns()
    rows = [one.row(now) for one in watched]
    seconds = (now - begin_ns) / 1e9 + WARM_UP_S
    read = np.array(show.reading_ns) / 1e6
    return {
        "rows": rows,
        "seconds": round(seconds, 1),
        "presentations_shown": show.sent,
        "response_read_ms_p50": _percentile(read, 50),
        "response_read_ms_p99": _percentile(read, 99),
    }


def _end(
    children: dict[str, Child], recorder: Child, peer: Peer, config: Config, clock: Clock
) -> dict[str, Any]:
    """End everything in the order of a session; return how long each took to catch up."""
    peer.send(StopRequested(reason="complete"))
    peer.flush(5.0)
    end_ns = clock.now_ns() + int(drain_s(config) * 1e9)
    while "drained" not in recorder.notes and clock.now_ns() < end_ns:
        recorder.update()
        peer.poll(0.02)
    # The source hands over what it still has, the recorder journals it, the view writes it: each must be quick.
    took = {}
    for name in ("model", "scope", "recorder", "view"):
        start_ns = clock.now_ns()
        orderly = children[name].end(120.0)
        took[f"{name}_end_s"] = round((clock.now_ns() - start_ns) / 1e9, 2)
        if not orderly or children[name].exit_code != 0:
            raise SessionFailed(children[name].why())
    children["publisher"].end(5.0)  # the microscope goes on when a session ends
    published = [int(n.rpartition(" ")[2]) for n in children["publisher"].notes if n.startswith("frames ")]
    return {**took, "frames_published": published[0] if published else -1}


def _percentile(values: Any, percent: float) -> float:
    return round(float(np.percentile(values, percent)), 2) if len(values) else float("nan")


def _from_journal(path: Path) -> dict[str, Any]:
    """Go through the journal once: ages, losses, faults."""
    kinds = frozenset({"trace_block", "response", "continuity", "fault"})
    reader = JournalReader(path, kinds)
    block_ms, response_ms, frames, usable, responses, lost = [], [], 0, 0, 0, 0
    newest_ns, numbers = 0, [-1, -1]  # arrival of the newest frame; first and last frame number
    faults: dict[str, int] = {}

    def take(entry: Entry) -> None:
        nonlocal frames, usable, responses, lost, newest_ns, numbers
        document, receipt = entry.document, entry.envelope.receipt_host_ns
        if isinstance(document, TraceBlock):
            frames += len(document.frame)
            numbers = [int(document.frame[0]) if numbers[0] < 0 else numbers[0], int(document.frame[-1])]
            newest_ns = int(document.arrival_host_ns[-1])
            block_ms.append((receipt - newest_ns) / 1e6)
        elif isinstance(document, Response):
            responses += 1
            usable += document.usable
            if document.usable:  # closed by the newest frames: how old were they?
                response_ms.append((receipt - newest_ns) / 1e6)
        elif isinstance(document, Continuity):
            lost = max(lost, document.lost_messages)
        elif isinstance(document, Fault):
            faults[document.what] = faults.get(document.what, 0) + 1

    try:
        while new := reader.read(final=True):
            for entry in new:
                take(entry)
    finally:
        reader.close()
    return {
        "frames_journalled": frames,
        "frames_missing": numbers[1] - numbers[0] + 1 - frames,
        "messages_lost": lost,
        "responses": responses,
        "usable": usable,
        "faults": faults,
        "arrival_to_journal_ms_p50": _percentile(block_ms, 50),
        "arrival_to_journal_ms_p99": _percentile(block_ms, 99),
        "arrival_to_journal_ms_max": _percentile(block_ms, 100),
        "arrival_to_response_ms_p50": _percentile(response_ms, 50),
        "arrival_to_response_ms_p99": _percentile(response_ms, 99),
    }
