"""The figures of `stimloop bench loss`: is every spike of the device in the journal, or is its loss declared.

Real processes: the fake Open Ephys server (`loss_device`), the source with its receiving process, a recorder; a model
server where it is stalled. A row stops ("stalled") one of them with SIGSTOP for `stall_s`, or throws one fault switch.
The bench itself plays the rig: it sends Presented, so that responses are scored and can be compared with the truth.
"""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from rig.animal.openephys_faults import SWITCHES
from rig.bench.loss_account import Truth, account, read
from rig.bench.loss_device import QUIET, unit_names
from rig.clock import Clock
from rig.links.peer import Peer
from rig.links.ports import free_port
from rig.messages import (
    Continuity,
    Presented,
    SpikeBlock,
)
from rig.recording.journal import read_all
from rig.supervision.processes import Child, SessionFailed, wait_ready

CHANNELS, FAULT_CHANNELS = 384, 32
RATES = (2_000, 20_000)
FAULT_RATE = 2_000
STALLS_S = (0.3, 1.0, 5.0)
SETTLE_S = 1.5
FAULT_AT_S = 2.0
QUIET_S = 0.5
QUIET_NS = 1_000_000_000
FRESH_NS = 300_000_000
FRESH = 10  # documents
CATCH_UP_S = 20.0
PRESENTED_EVERY_NS = 100_000_000  # as long as the response window: nothing can be lost between them
SCORED = 8  # units
KINDS = frozenset({"spike_block", "continuity", "fault", "response"})
CONFIG = """
name: bench-loss
sources: [{{type: openephys, name: probe, port: {port}, http_port: null, photodiode_line: null}}]
responses: {{units: [{units}], window_s: [0.05, 0.15], baseline: {{kind: none}}, timeout_s: {timeout:g}}}
phases: [{{agent: present}}]
"""


@dataclass(frozen=True)
class Row:
    """One run of the bench."""

    channels: int
    spikes_per_s: int
    stall_s: float = 0.0
    stalled: str = "nobody"  # "source", "receiver", "recorder and model"
    fault: str = "none"


def rows() -> list[Row]:
    """Return all runs: rates and stalls, then the receiving process itself stopped, then each fault switch."""
    out = []
    for rate in RATES:
        out.append(Row(CHANNELS, rate))
        for stalled in ("source", "recorder and model"):
            out += [Row(CHANNELS, rate, stall_s, stalled) for stall_s in STALLS_S]
        out.append(Row(CHANNELS, rate, 1.0, "receiver"))
    return out + [Row(FAULT_CHANNELS, FAULT_RATE, fault=name) for name in SWITCHES]


class Bench:
    """The processes of one row."""

    def __init__(self, row: Row, folder: Path, clock: Clock) -> None:
        self.row, self.folder, self._clock = row, folder, clock
        self.children: dict[str, Child] = {}
        self.peer: Peer | None = None
        self._presented = 0
        self._presented_due_ns = 0
        (folder / "session").mkdir()

    # --- start and end ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start device, recorder and source; raises SessionFailed, as a session does that cannot start."""
        row, session, port = self.row, self.folder / "session", free_port(4)
        names = ", ".join(f'"{u}"' for u in unit_names(SCORED))
        config = CONFIG.format(port=port, units=names, timeout=row.stall_s + 3)
        (session / "config.yaml").write_text(config, encoding="utf-8")
        thrown = SWITCHES.get(row.fault)
        device = ["--channels", str(row.channels), "--spikes-per-s", str(row.spikes_per_s), "--port", str(port)]
        device += ["--truth", str(self.folder / "truth.npz")]
        if thrown is not None:
            device += ["--switches", row.fault] if thrown.seconds is None else ["--later", f"{row.fault}@{FAULT_AT_S}"]
        self._child("device", "rig.bench.loss_device", *device)
        self._child("recorder", "rig.recording.recorder", "--folder", str(session), "--simulated")
        wait_ready([*self.children.values()], self._clock)
        ready = self.children["recorder"].ready or {}
        endpoint = ("--folder", str(session), "--endpoint", str(ready["endpoint"]))
        if "model" in row.stalled:
            self._child("model", "models", *endpoint)
        self._child("probe", "rig.sources", *endpoint, "--name", "probe")
        wait_ready([*self.children.values()], self._clock)
        self.peer = Peer("rig", str(ready["endpoint"]), frozenset({"continuity", "spike_block"}), self._clock)

    def _child(self, name: str, module: str, *arguments: str) -> None:
        self.children[name] = Child(name, ["-m", module, *arguments], self.folder / f"{name}.log")

    def end(self) -> None:
        """End the source before the recorder, and the device last: nothing that was sent is cut off."""
        for name in ("probe", "model", "recorder", "device"):
            if name in self.children:
                self.children[name].end(15.0, "measured")
        if self.peer is not None:
            self.peer.close()

    # --- while it runs ------------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Let time pass, showing one image after the other."""
        assert self.peer is not None  # noqa: S101 - started
        end_ns = self._clock.now_ns() + int(seconds * 1e9)
        while (now := self._clock.now_ns()) < end_ns:
            if now >= self._presented_due_ns:
                self._presented_due_ns = now + PRESENTED_EVERY_NS
                self.peer.send(_presented(self._presented, now))
                self._presented += 1
            self.peer.poll(0.02)

    def pids(self, who: str) -> list[int]:
        """Return the processes behind a word of `Row.stalled`."""
        if who == "receiver":
            return [int(str((self.children["probe"].ready or {})["pid"]))]
        names = {"source": ["probe"], "recorder and model": ["recorder", "model"]}[who]
        return [self.children[n].process.pid for n in names]

    @contextmanager
    def stopped(self, who: str) -> Iterator[None]:
        """Stop processes for the time of the body."""
        pids = self.pids(who)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def caught_up(self) -> bool:
        """Wait until all that the device has sent is in the journal; False if that never comes.

        To be called when the device was told to make no more spikes: once it has said that it does not, no spike comes
        any more while the source's documents are those of now. Of a device that does nothing strange the source must
        also have vouched for the time until then: documents of now say nothing of a receiver that waits for its turn.
        """
        assert self.peer is not None  # noqa: S101 - started
        start_ns = last_ns = self._clock.now_ns()
        fresh = reached = 0
        while (now := self._clock.now_ns()) < start_ns + int(CATCH_UP_S * 1e9):
            for entry in self.peer.poll(0.05):
                if isinstance(entry.document, SpikeBlock):
                    last_ns, fresh = now, 0
                else:
                    fresh += entry.envelope.receipt_host_ns > now - FRESH_NS
                    if isinstance(entry.document, Continuity):
                        reached = entry.document.watermark_sample or 0
            quiet = self._quiet_from()
            if quiet is None:
                last_ns, fresh = now, 0
            elif now > last_ns + QUIET_NS and fresh > FRESH and (self.row.fault != "none" or reached >= quiet):
                return True
        return False

    def _quiet_from(self) -> int | None:
        """Return from which sample on the device makes no spikes; None as long as it has not said so."""
        device = self.children["device"]
        device.update()
        said = [note.removeprefix(QUIET) for note in device.notes if note.startswith(QUIET)]
        return int(said[0]) if said else None

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU time that each process has used, s."""
        used = {}
        pids = {name: child.process.pid for name, child in self.children.items()}
        pids["receiver"] = self.pids("receiver")[0]
        for name, pid in pids.items():
            with suppress(psutil.NoSuchProcess):
                times = psutil.Process(pid).cpu_times()
                used[name] = times.user + times.system
        return used


def _presented(number: int, now_ns: int) -> Presented:
    flips = np.array([now_ns, now_ns + 100_000_000], dtype=np.int64)
    return Presented(
        presentation=number, trial=number, position_in_trial=0, proposal=0, slot=0, role="candidate",
        stimulus_id="s", previous_stimulus_id=None, frame_sha256="0", due_host_ns=now_ns,
        onset_flip_host_ns=now_ns, offset_flip_host_ns=now_ns + 100_000_000, flips_host_ns=flips, late_flips=0,
        dropped_frames=0, image_row_px=0.0, patch_row_px=0.0, complete=True,
    )  # fmt: skip


def measure(row: Row, seconds: float, clock: Clock) -> dict[str, Any]:
    """Run one row and return its figures; `seconds` of spikes count, from when the source was ready."""
    with tempfile.TemporaryDirectory(prefix="stimloop-loss-") as name:
        bench = Bench(row, Path(name), clock)
        refused = ""
        begin_ns = clock.now_ns()
        used: dict[str, float] = {}
        try:
            bench.start()
            used, begin_ns = _run(bench, seconds, clock)
        except SessionFailed as error:
            if not row.fault.startswith("port_conflict"):
                raise
            refused = str(error).split("\n")[0]
        finally:
            bench.end()
        return _figures(row, bench.folder, begin_ns, refused, used)


def _run(bench: Bench, seconds: float, clock: Clock) -> tuple[dict[str, float], int]:
    """Let the row happen; return shares of a core and from when on spikes count."""
    row = bench.row
    bench.wait(SETTLE_S)
    begin_ns, before = clock.now_ns(), bench.cpu_s()
    bench.children["device"].say("go")
    bench.wait(min(FAULT_AT_S, seconds / 3))
    if row.stall_s:
        with bench.stopped(row.stalled):
            bench.wait(row.stall_s)
    bench.wait(max(0.0, begin_ns * 1e-9 + seconds - clock.now_ns() * 1e-9))
    after, took_s = bench.cpu_s(), (clock.now_ns() - begin_ns) * 1e-9
    bench.children["device"].say("hold")
    bench.wait(QUIET_S)
    if not bench.caught_up():
        raise SessionFailed(f"the source did not catch up within {CATCH_UP_S:.0f} s; too slow a machine for {row}")
    return {name: (after[name] - before[name]) / took_s for name in after if name in before}, begin_ns


def _figures(row: Row, folder: Path, begin_ns: int, refused: str, used: dict[str, float]) -> dict[str, Any]:
    with np.load(folder / "truth.npz") as columns:
        order = ("unit", "wire_sample", "epoch", "sent_host_ns")
        truth = Truth(*(columns[name].astype(np.int64) for name in order))
    journal = read(read_all(folder / "session" / "session.journal", KINDS), unit_names(row.channels))
    sums = account(truth, begin_ns, journal)
    if refused:  # no session without data: that is the declaration
        sums |= {"lost_declared": True, "undeclared": 0}
    age = np.array(journal.age_ms) if journal.age_ms else np.zeros(1)
    return {
        "channels": row.channels,
        "spikes_per_s": row.spikes_per_s,
        "stall_s": row.stall_s,
        "stalled": row.stalled,
        "fault": row.fault,
        **sums,
        "told": refused or ", ".join(sorted({f.what for f in journal.faults})),
        "age_ms_p50": round(float(np.percentile(age, 50)), 1),
        "age_ms_p99": round(float(np.percentile(age, 99)), 1),
        **{f"cpu_{name}": round(share, 3) for name, share in sorted(used.items())},
    }


def loss(seconds: float, only: str, clock: Clock, console: Console) -> dict[str, Any]:
    """Run all rows, or those whose fault or stalled process is called `only`; raises SessionFailed."""
    chosen = [r for r in rows() if not only or only in (r.fault, r.stalled)]
    if not chosen:
        known = ", ".join(sorted({*(r.fault for r in rows()), *(r.stalled for r in rows())}))
        raise SessionFailed(f"no row is called {only!r}; choose from {known}")
    out = []
    for row in chosen:
        out.append(measure(row, max(seconds, row.stall_s + 4), clock))
        console.print("  ".join(f"{k}={v}" for k, v in out[-1].items()), highlight=False, soft_wrap=True)
    return {"seconds": seconds, "cores": os.cpu_count(), "rows": out}
