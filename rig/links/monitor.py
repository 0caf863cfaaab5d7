"""What a ZMQ socket's monitor says.

As `zmq.utils.monitor` does it, which imports asyncio for that: a tenth of the start of every process of a session.
"""

import struct
from collections.abc import Sequence


def event_of(message: Sequence[bytes]) -> int:
    """Return the number of the event (zmq.EVENT_...) that a message of a monitor socket tells of.

    Its first frame holds that in 16 bits and a value in 32, without padding; the second one is the endpoint
    (zmq_socket_monitor(3)).
    """
    number, _value = struct.unpack("=Hi", message[0])
    return int(number)
