"""Many requests at once that wait for an application: what a server needs meanwhile."""

import json
import pathlib
import subprocess
import sys
import time

from .applications import slow_protocol
from .load import LoadError

HOLD_SECONDS = 5
# What came with the requests is done, and memory is as it stays.
SETTLE_SECONDS = 1


class SlowApplication:
    """The application and its clients, in a process of their own, which no server's figures contain."""

    def __init__(self, site, work):
        site.upstream.unlink(missing_ok=True)
        program = pathlib.Path(__file__).with_name("slow.py")
        command = [sys.executable, program, slow_protocol(work), site.upstream, work.connections]
        # It leaves when its input ends, whatever has become of this process.
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self.hear()
        except LoadError:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def tell(self, text):
        """Says it, and returns what comes back when it is done."""
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self):
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"problem": "the slow application has ended"}
        if "problem" in answer:
            raise LoadError(answer["problem"])
        return answer

    def run(self, server, port):
        """All ask, wait, and are answered. CPU time of all that and of the wait alone, and memory during the wait."""
        before = server.cpu_us()
        self.tell(f"ask {port}")
        time.sleep(SETTLE_SECONDS)
        waiting = server.cpu_us()
        time.sleep(HOLD_SECONDS - SETTLE_SECONDS)
        figures = {
            "waiting_us": (server.cpu_us() - waiting) / (HOLD_SECONDS - SETTLE_SECONDS),
            "resident": server.resident_bytes(),
            "proportional": server.proportional_bytes(),
            "anonymous": server.proportional_bytes("Pss_Anon:"),
        }
        figures["wrong"] = self.tell("answer")["wrong"]
        figures["cpu_us"] = server.cpu_us() - before
        return figures
