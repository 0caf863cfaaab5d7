"""All that a display program needs of stimloop; copy this class into yours. Needs pyzmq and numpy."""

import hashlib
import json
import time
import uuid

import numpy as np
import zmq


class Stimloop:
    def __init__(self, address="tcp://127.0.0.1:5590", program="my display", refresh_hz=60.0, places=False):
        self.socket = zmq.Context.instance().socket(zmq.REQ)
        self.socket.connect(address)
        self.guest, self.pair = uuid.uuid4().hex, {}
        # places=True: this program draws each image at the rectangle that comes with it, not always at the same place
        self.about, _ = self.ask(say="hello", protocol=1, program=program, refresh_hz=refresh_hz, places=places)

    def ask(self, **request):
        sent_ns = time.perf_counter_ns()  # the clock in which flips are stamped
        self.socket.send_json({"guest": self.guest, **self.pair, **request})
        header, *frames = self.socket.recv_multipart()
        answer = json.loads(header)
        self.pair = {"sent_ns": sent_ns, "host_ns": answer["host_ns"], "got_ns": time.perf_counter_ns()}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer, frames

    def trials(self):  # yields (trial, [(presentation, image (y, x, rgb) uint8, rect_px), ...]) until the session ends
        while "stop" not in (answer := (got := self.ask(say="next"))[0]):
            if "trial" in answer:
                images = [np.frombuffer(f, np.uint8).reshape(i["shape"]) for i, f in zip(answer["images"], got[1])]
                rows = zip(answer["images"], images)
                yield answer["trial"], [(i["presentation"], image, i["rect_px"]) for i, image in rows]
            time.sleep(answer.get("wait_s", 0))

    def shown(self, presentation, drawn, onset_ns, offset_ns, **more):  # times after the flips, time.perf_counter_ns()
        digest = hashlib.sha256(drawn.tobytes()).hexdigest()
        self.ask(say="shown", presentation=presentation, sha256=digest, onset_ns=onset_ns, offset_ns=offset_ns, **more)

    def over(self, trial, reason=""):  # cut short: what was not shown comes again
        self.ask(say="over", trial=trial, reason=reason)
