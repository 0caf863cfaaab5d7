"""Process entry of the outputs: `python -m rig.outputs --folder SESSION --endpoint tcp://...`.

Opens the devices of the config, then does what the log asks for until the supervisor says stop. A pulse that is on at
an orderly stop ends at its time; when the supervisor dies, at once.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from rig import priority
from rig.clock import HostClock
from rig.config.outputs import ParallelOutput, SerialOutput, onset_line
from rig.config.reading import ConfigError, load
from rig.config.session import Config
from rig.links.peer import Peer
from rig.outputs.company import Company
from rig.outputs.devices import Device, Marks, Valve, open_device
from rig.outputs.lines import OutputError
from rig.outputs.service import WANTS, Outputs
from rig.outputs.sync import BarcodeSender
from rig.provenance import process_started
from rig.supervision import child

NAME = "outputs"
BUSY_WAIT_S = 0.004  # between two looks while a pulse is on
IDLE_WAIT_S = 0.02
FLUSH_S = 2.0


def main() -> int:
    """Run the outputs of a session until the supervisor says stop."""
    parser = argparse.ArgumentParser(prog="rig.outputs")
    parser.add_argument("--folder", type=Path, required=True, help="the session's folder, with config.yaml")
    parser.add_argument("--endpoint", required=True, help="the recorder's address")
    options = parser.parse_args()
    stop, clock = child.Stop(), HostClock(spin_ns=0)
    try:
        config, _ = load(options.folder / "config.yaml")
    except ConfigError as error:
        return child.fail(f"{NAME}: {error}", "mend config.yaml as the message says")
    with ExitStack() as opened:
        granted = priority.ask(config.processes.realtime)  # before any thread starts: they inherit it
        devices: dict[str, Device] = {}
        sync: BarcodeSender | None = None
        try:
            for output in config.outputs:
                if config.sync is not None and output.name == config.sync.output:
                    assert isinstance(output, SerialOutput | ParallelOutput)  # noqa: S101 - the config allows no other
                    sync = BarcodeSender(config.sync, output, clock)
                    opened.callback(sync.close)
                elif not onset_line(output):
                    realtime = config.processes.realtime
                    devices[output.name] = open_device(output, options.folder.name, clock, realtime)
                    opened.callback(devices[output.name].close)
        except OutputError as error:
            return child.fail(f"{NAME}: {error}", error.cure)
        peer = Peer(NAME, options.endpoint, WANTS, clock)
        opened.callback(peer.close)
        notes = {"priority": granted, **{o.name: o.type for o in config.outputs}}
        peer.send(process_started(NAME, clock, notes))
        child.say(ready=notes)
        _serve(_outputs(config, devices, peer, clock), peer, stop, sync)
        peer.flush(0.5 if stop.orphaned else FLUSH_S)
    return 0


def _outputs(config: Config, devices: dict[str, Device], peer: Peer, clock: HostClock) -> Outputs:
    valve: Valve | None = None
    if config.reward is not None:
        chosen = devices[config.reward.output]
        assert isinstance(chosen, Valve)  # noqa: S101 - the config allows no other
        valve = chosen
    marks = tuple(d for d in devices.values() if isinstance(d, Marks))
    return Outputs(devices, valve, config.reward, marks, peer, Company(), clock)


def _serve(outputs: Outputs, peer: Peer, stop: child.Stop, sync: BarcodeSender | None) -> None:
    """Do what the log asks for until the stop; what is on then ends first."""
    while not stop or outputs.busy:
        for entry in peer.poll(BUSY_WAIT_S if outputs.busy else IDLE_WAIT_S):
            outputs.take(entry)
        outputs.step(bool(stop), stop.orphaned)
        for document in sync.documents() if sync is not None else ():
            peer.send(document)
    outputs.close()


if __name__ == "__main__":
    child.shield()
    sys.exit(main())
