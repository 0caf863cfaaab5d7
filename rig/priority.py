"""Ask the operating system for real-time priority, and say in words what was granted.

Called once by `rig.display.session` before the window opens, so that the threads of the graphics driver inherit it;
preflight asks what would be granted. The words go into the log: a run without real-time priority must be known as one.
"""

import os
import sys

import psutil

FIFO_PRIORITY = 10  # above every ordinary process, below the kernel's own threads
NICE = -10
CURE = "allow it with a line 'USER - rtprio 20' in /etc/security/limits.conf and log in again"


def ask(wanted: bool) -> str:
    """Ask for real-time priority for this process; return what it runs at now and, if refused, the cure."""
    if not wanted:
        return "normal (processes.realtime is false)"
    if sys.platform == "win32":
        return _windows()
    refused = _fifo()
    if not refused:
        return f"SCHED_FIFO {FIFO_PRIORITY}"
    try:
        psutil.Process().nice(NICE)
    except (psutil.AccessDenied, OSError):
        return f"normal ({refused})"
    return f"nice {NICE} ({refused})"


def permitted() -> tuple[bool, str]:
    """Return whether real-time priority would be granted, and words; the process runs on as before."""
    if not hasattr(os, "sched_setscheduler"):
        return False, "this system has no SCHED_FIFO; a raised ordinary priority is used"
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    refused = _fifo()
    if refused:
        return False, refused
    os.sched_setscheduler(0, policy, parameter)
    return True, f"SCHED_FIFO {FIFO_PRIORITY} is granted"


def _fifo() -> str:
    """Set SCHED_FIFO for this thread and those it starts; return "" or why it was refused."""
    if not hasattr(os, "sched_setscheduler"):
        return "the system has no SCHED_FIFO"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
    except OSError as error:
        return f"SCHED_FIFO refused: {error.strerror}; {CURE}"
    return ""


def _windows() -> str:
    # HIGH and not REALTIME: the latter can starve the driver that is to show the frames. Untested on Windows.
    try:
        psutil.Process().nice(getattr(psutil, "HIGH_PRIORITY_CLASS", 128))
    except (psutil.AccessDenied, OSError) as error:
        return f"normal (HIGH_PRIORITY_CLASS refused: {error})"
    return "HIGH_PRIORITY_CLASS"
