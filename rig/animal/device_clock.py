"""The clock of the simulated recording device: drifts and wanders against the host, starts anywhere.

Called by the animal to stamp what happens with the device's sample counter, and by readers of the truth folder to turn
samples back into host time. A pure function and its inverse: it reads no clock.
"""

import math
from dataclasses import dataclass

WANDER_PERIOD_S = 1200.0


@dataclass(frozen=True)
class DeviceClock:
    """True relation between the host's monotonic clock and the device's sample counter.

    The device's rate is rate_hz * (1 + ppm + wander_ppm * sin(2 pi t / 1200 s + phase)), t since `start_host_ns`.
    """

    rate_hz: float
    ppm: float
    wander_ppm: float
    phase: float
    start_host_ns: int
    start_sample: int

    def true_sample(self, host_ns: float) -> float:
        """Return the sample counter (not rounded) at host time `host_ns`, ns."""
        return self.start_sample + self.rate_hz * self._device_s((host_ns - self.start_host_ns) * 1e-9)

    def host_ns(self, sample: float) -> float:
        """Return the host time, ns, at which the counter reaches `sample`; the inverse of `true_sample`."""
        device_s = (sample - self.start_sample) / self.rate_hz
        t = device_s
        # The slope differs from 1 by less than 1e-3, so each round gains three digits.
        for _ in range(6):
            t += device_s - self._device_s(t)
        return self.start_host_ns + t * 1e9

    def _device_s(self, t: float) -> float:
        """Integrate the rate: device seconds after `t` host seconds."""
        omega = 2 * math.pi / WANDER_PERIOD_S
        wander = (math.cos(self.phase) - math.cos(omega * t + self.phase)) / omega
        return t * (1 + self.ppm * 1e-6) + self.wander_ppm * 1e-6 * wander
