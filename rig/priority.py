"""Ask the operating system for real-time priority, and say in words what was granted.

Called by every process that may have it: the rig's before the window opens, so that the threads of the graphics driver
inherit it; preflight asks what would be granted. The words go into the log: a run without real-time priority must be
known as one. psutil is loaded only where it is used: a line's watchdogs must stay small.
"""

import os
import sys
from pathlib import Path

FIFO_PRIORITY = 10  # of the rig; above every ordinary process, below the kernel's own threads
NICE = -10
BACK = 10  # nice value of what may wait
AUTOGROUP = Path("/proc/self/autogroup")
CURE = "allow it with a line 'USER - rtprio 20' in /etc/security/limits.conf and log in again"
SWITCHED_OFF = "normal (processes.realtime is false)"


def ask(wanted: bool) -> str:
    """Ask for real-time priority for this process; return what it runs at now and, if refused, the cure."""
    if not wanted:
        return SWITCHED_OFF
    if sys.platform == "win32":
        return _windows()
    refused = _set(FIFO_PRIORITY)
    if not refused:
        return f"SCHED_FIFO {FIFO_PRIORITY}"
    import psutil

    try:
        psutil.Process().nice(NICE)
    except (psutil.AccessDenied, OSError):
        return f"normal ({refused})"
    return f"nice {NICE} ({refused})"


def fifo(priority: int, wanted: bool = True) -> str:
    """Ask for SCHED_FIFO `priority` for this thread and those it starts; return in words what came of it."""
    if not wanted:
        return SWITCHED_OFF
    refused = _set(priority)
    return f"normal ({refused})" if refused else f"SCHED_FIFO {priority}"


def step_back() -> str:
    """Let the screen and the devices go before this process; return in words what came of it.

    Linux desktops share the processor between process sessions first (autogroup), and each of our children is one: the
    nice value of a process alone counts for nothing beside the others there, that of its group does. One that was
    started from a terminal shares its group with whatever else runs there, and leaves it alone.
    """
    import psutil

    try:
        psutil.Process().nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", BACK))
    except (psutil.AccessDenied, OSError) as error:
        return f"normal ({error})"
    if os.name != "nt" and os.getsid(0) != os.getpid():
        return "below normal"
    try:
        AUTOGROUP.write_text(str(BACK), encoding="ascii")
    except FileNotFoundError:  # another system, or the kernel does not group
        return "below normal"
    except OSError as error:
        return f"below normal, but not its autogroup ({error.strerror})"
    return "below normal, its autogroup too"


def permitted() -> tuple[bool, str]:
    """Return whether real-time priority would be granted, and words; the process runs on as before."""
    if not hasattr(os, "sched_setscheduler"):
        return False, "this system has no SCHED_FIFO; a raised ordinary priority is used"
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    refused = _set(FIFO_PRIORITY)
    if refused:
        return False, refused
    os.sched_setscheduler(0, policy, parameter)
    return True, f"SCHED_FIFO {FIFO_PRIORITY} is granted"


def _set(priority: int) -> str:
    """Set SCHED_FIFO for this thread and those it starts; return "" or why it was refused."""
    if not hasattr(os, "sched_setscheduler"):
        return "the system has no SCHED_FIFO"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        return f"SCHED_FIFO refused: {error.strerror}; {CURE}"
    return ""


def _windows() -> str:
    import psutil

    # HIGH and not REALTIME: the latter can starve the driver that is to show the frames. Untested on Windows.
    try:
        psutil.Process().nice(getattr(psutil, "HIGH_PRIORITY_CLASS", 128))
    except (psutil.AccessDenied, OSError) as error:
        return f"normal (HIGH_PRIORITY_CLASS refused: {error})"
    return "HIGH_PRIORITY_CLASS"
