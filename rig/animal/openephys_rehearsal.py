"""The Open Ephys wire of the simulated animal, as a config wants it: faults, quirks, channels with spikes in noise."""

import numpy as np

from rig.animal.openephys_faults import UnknownSwitch
from rig.animal.openephys_server import Faults, OpenEphysServer, Quirks
from rig.animal.openephys_voltage import Voltage
from rig.animal.wire import WireError
from rig.clock import Clock
from rig.config.sources import OpenEphysSource, WireFaults


def open_openephys(
    source: OpenEphysSource,
    units: tuple[str, ...],
    clock: Clock,
    rate_hz: float,
    wire_faults: WireFaults,
    rng: np.random.Generator,
    faults: Faults | None = None,
) -> OpenEphysServer:
    """Serve `source`; raises WireError for a taken port and for a name that is no fault switch.

    Where the source detects multi-unit activity, channel c carries the spikes of unit c modulo the number of units.
    """
    multiunit = source.multiunit
    channels = 1 if multiunit is None else max(multiunit.channels) + 1
    try:
        return OpenEphysServer(
            units,
            clock,
            source.port,
            source.stream,
            rate_hz,
            faults=faults,
            channels=channels,
            switches=wire_faults.switches,
            quirks=Quirks(rng) if wire_faults.quirks else None,
            voltage=None if multiunit is None else Voltage(channels, len(units), rng),
        )
    except UnknownSwitch as error:
        cure = "correct animal.wire_faults.switches; docs/fake_openephys.md describes the switches"
        raise WireError(str(error), cure) from error
