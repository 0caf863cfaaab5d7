"""The second process of `verify`: folds the response windows of a journal again and prints what it found, as JSON.

`python -m rig.replay JOURNAL`, started by `rig.replay.session`. It needs no model: the first process folds that.
"""

import gc
import json
import sys
from pathlib import Path

from rig.replay.records import Log, ReplayError, session_start
from rig.replay.verdict import Verdict
from rig.replay.verify import Beside, Windows, run_parts

COLLECT_AFTER = 100_000


def main(arguments: list[str]) -> int:
    """Process entry; the exit code is 0 whatever was found, 2 where nothing could be folded."""
    path = Path(arguments[0])
    gc.set_threshold(COLLECT_AFTER)  # documents hold no cycles: looking for some takes a tenth of the time
    verdict, log = Verdict(), Log(path)
    try:
        run_parts(log, [Beside("recorder", Windows(session_start(path)), None, verdict)], log)
    except (ReplayError, OSError) as error:
        sys.stdout.write(json.dumps({"error": str(error)}))
        return 2
    sys.stdout.write(json.dumps({**verdict.plain(), "unreadable": log.unreadable}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
