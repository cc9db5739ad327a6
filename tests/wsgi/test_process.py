"""How a worker begins, what it tells, and how it leaves (C193 to C198)."""

import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from .support import IDLE, PYTHON, RUNNING, WAITING, WORKER, Case, eventually, head


class Gates:
    """Files that let waiting applications go on."""

    def __init__(self, case):
        folder = tempfile.TemporaryDirectory()
        case.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "gate")

    def open(self, end=""):
        pathlib.Path(self.path + end).touch()


class Waiting(Case):
    def begin(self, server, gates, count=1, **changes):
        """Requests that wait at the gate."""
        conversations = []
        for _ in range(count):
            changes.setdefault("QUERY_STRING", gates.path)
            conversations.append(server.connect().send(head(**changes)))
        eventually(lambda: server.output().count("waits\n") >= count, "%d requests run" % count)
        return conversations


class Requests(Waiting):
    def test_a_stream_is_flushed_block_by_block_c188(self):
        server, gates = self.serve("works:stream"), Gates(self)
        conversation = server.connect().send(head(QUERY_STRING=gates.path))
        for number in range(3):
            gates.open(".%d" % number)
            conversation.until(b"data: %d\n\n" % number)
        self.assertTrue(conversation.read().whole)

    def test_threads_answer_at_the_same_time(self):
        server, gates = self.serve("works:waits", threads=3), Gates(self)
        begun = self.begin(server, gates, 3)
        gates.open()
        self.assertEqual(len({conversation.read().body for conversation in begun}), 3)

    def test_processes_share_what_comes(self):
        server, gates = self.serve("works:waits"), Gates(self)
        server.spawn()
        server.ready(2)
        begun = self.begin(server, gates, 2)
        gates.open()
        pids = {int(conversation.read().body.split()[0]) for conversation in begun}
        self.assertEqual(pids, {process.pid for process in server.processes})

    def test_a_busy_worker_takes_nothing(self):
        server, gates = self.serve("works:waits"), Gates(self)
        (first,) = self.begin(server, gates)
        second = server.connect().send(head())
        server.spawn()
        self.assertEqual(int(second.read().body.split()[0]), server.processes[1].pid)
        gates.open()
        self.assertEqual(int(first.read().body.split()[0]), server.process.pid)

    def test_the_board_shows_what_runs(self):
        server, gates = self.serve("works:waits", threads=2), Gates(self)
        pid = server.process.pid
        for number in range(2):
            eventually(lambda: server.record(number)[2] == pid, "record %d" % number)
            self.assertEqual(server.record(number)[3:], (IDLE, 0))
        begun = self.begin(server, gates, 2, SERVE_HERE_ID=str((1 << 64) - 1))
        for number in range(2):
            self.assertEqual(server.record(number)[0], (1 << 64) - 1)
            self.assertEqual(server.record(number)[2:], (pid, RUNNING, 1))
        since = server.record()[1]
        self.assertLess(abs(since - time.monotonic_ns()), 10 ** 11)
        gates.open()
        for conversation in begun:
            conversation.read()
        for number in range(2):
            server.await_state(IDLE, number)

    def test_the_board_shows_who_waits_for_whom(self):
        server, gates = self.serve("works:waits"), Gates(self)
        conversation = server.connect().send(head(10, QUERY_STRING=gates.path))
        since = server.await_state(WAITING)[1]
        conversation.send(b"0123456789")
        self.assertGreater(server.await_state(RUNNING)[1], since)
        gates.open()
        conversation.read()
        server.await_state(IDLE)

        server = self.serve("fails:Closing")
        conversation = server.connect().send(head(QUERY_STRING="endless"))
        conversation.until(b"more")
        # The client reads no more; soon the worker can't write.
        eventually(lambda: {server.record()[1:4] for _ in range(1000)} == {(*server.record()[1:3], WAITING)}, "waiting")
        conversation.close()

    def test_workers_have_places_of_their_own_on_the_board(self):
        server = self.serve("works:waits", "--slot", "3")
        self.assertEqual(server.record(3)[2], server.process.pid)
        self.assertEqual(server.record(0)[2], 0)
        server = self.serve("works:waits", "--slot", "4", ready=False)
        self.assertEqual(server.status(), 1)
        self.assertIn("slot 4 is not on the board", server.output())

    def test_it_works_without_anything_from_the_server(self):
        server = self.serve("kinds:hello", control=False, ready=False)
        self.assertEqual(server.ask().body, b"Hello, World!\n")

    def test_a_default_timeout_of_the_application_is_not_for_its_connections(self):
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "impatient.py").write_text(
                "import socket\nsocket.setdefaulttimeout(0.001)\n"
                "def app(environ, start_response):\n"
                "    start_response('200 OK', [])\n    return [environ['wsgi.input'].read()]\n")
            server = self.serve("impatient", folder=folder)
            conversation = server.connect().send(head(4))
            server.await_state(WAITING)
            since = server.record()
            eventually(lambda: time.monotonic_ns() - since[1] > 50_000_000, "a while")
            self.assertEqual(conversation.send(b"body").read().body, b"body")

    def test_the_application_has_no_standard_input_and_inherits_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "looks.py").write_text(
                "import os, subprocess, sys\n"
                "def app(environ, start_response):\n"
                "    start_response('200 OK', [])\n"
                "    command = ['ls', '-l', '/proc/self/fd']\n"
                "    out = subprocess.run(command, close_fds=False, stdout=subprocess.PIPE).stdout\n"
                "    return [repr((sys.argv, sys.stdin.read())).encode(), out]\n")
            server = self.serve("looks", folder=folder)
            lines = server.ask().body.decode().splitlines()
        self.assertTrue(lines[0].startswith("(['looks'], '')"), lines)
        descriptors = sorted(line.split()[-3] for line in lines if "->" in line)
        self.assertEqual(descriptors[:3], ["0", "1", "2"])
        # The fourth is that of `ls` itself.
        self.assertEqual(len(descriptors), 4, lines)


class Leaving(Waiting):
    def test_sigterm_and_sigint_let_requests_finish_and_take_no_more(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            for threads in (1, 2):
                with self.subTest(signal=number, threads=threads):
                    server, gates = self.serve("works:waits", threads=threads), Gates(self)
                    running = self.begin(server, gates, threads)
                    server.process.send_signal(number)
                    self.assertEqual(server.await_message("leaving")[2], "signal")
                    waiting = server.connect().send(head())
                    gates.open()
                    for conversation in running:
                        self.assertTrue(conversation.read().whole)
                    self.assertEqual(server.status(), 0)
                    # It is still in the queue, for another.
                    second = server.spawn()
                    self.assertEqual(int(waiting.read().body.split()[0]), second.pid)
                    self.assertEqual(server.output(), "waits\n" * threads)

    def test_workers_replaced_under_load_lose_no_request(self):
        server = self.serve("kinds:hello", threads=2)
        answers, done = [], threading.Event()

        def ask_on():
            while not done.is_set():
                answers.append(server.ask())

        clients = [threading.Thread(target=ask_on) for _ in range(4)]
        for client in clients:
            client.start()
        for number in range(12):
            seen = len(answers)
            server.spawn()
            server.ready(number + 2)
            server.processes[-2].terminate()
            eventually(lambda: len(answers) > seen + 20, "more answers")
        done.set()
        for client in clients:
            client.join()
        self.assertEqual({answer.body for answer in answers}, {b"Hello, World!\n"})
        self.assertEqual({server.status(process) for process in server.processes[:-1]}, {0})

    def test_an_idle_worker_leaves_at_once(self):
        for threads in (1, 3):
            server = self.serve("kinds:hello", threads=threads)
            server.process.terminate()
            self.assertEqual(server.status(), 0)
            self.assertEqual(len(server.said_words("leaving")), 1)

    def test_sighup_does_nothing(self):
        server = self.serve("kinds:hello")
        server.process.send_signal(signal.SIGHUP)
        self.assertEqual(server.ask().status, "200 OK")
        self.assertEqual(server.said_words("leaving"), [])

    def test_sigterm_during_the_import_ends_it(self):
        gates = Gates(self)
        for number in (signal.SIGTERM, signal.SIGINT):
            server = self.serve("load/slow_import.py", ready=False, environment={"GATE": gates.path})
            server.await_output("importing")
            server.process.send_signal(number)
            self.assertEqual(server.status(), -number)
            self.assertEqual(server.output(), "importing\n")

    def test_a_worker_whose_server_is_gone_finishes_and_leaves_c198(self):
        for threads in (1, 2):
            server, gates = self.serve("works:waits", threads=threads), Gates(self)
            (running,) = self.begin(server, gates)
            server.theirs.close()
            server.control.close()
            gates.open()
            self.assertTrue(running.read().whole)
            self.assertEqual(server.status(), 0)

    def test_sigabrt_tells_where_a_stuck_worker_is(self):
        server, gates = self.serve("works:waits"), Gates(self)
        (stuck,) = self.begin(server, gates)
        server.process.send_signal(signal.SIGABRT)
        self.assertEqual(stuck.read().data, b"")
        self.assertEqual(server.status(), -signal.SIGABRT)
        self.assertRegex(server.output(), r'works.py", line \d+ in wait_for')

    def test_a_crash_ends_the_connection(self):
        for path, status in (("/exit", 9), ("/segmentation-fault", -signal.SIGSEGV)):
            server = self.serve("fails:crashes")
            self.assertEqual(server.ask(path).data, b"")
            self.assertEqual(server.status(), status)
            server.spawn()
            self.assertEqual(server.ask("/fine").body, b"fine")


class Limits(Waiting):
    def test_max_requests_loses_none_c195(self):
        for threads in (1, 2):
            with self.subTest(threads=threads):
                server = self.serve("works:waits", "--max-requests", "5", threads=threads)
                answers = []

                def ask_many():
                    for _ in range(20):
                        answers.append(server.ask())

                clients = [threading.Thread(target=ask_many) for _ in range(3)]
                for client in clients:
                    client.start()
                while any(client.is_alive() for client in clients):
                    if server.processes[-1].poll() is not None:
                        server.spawn()
                    clients[0].join(0.001)
                    clients[1].join(0.001)
                    clients[2].join(0.001)
                self.assertEqual(len(answers), 60)
                self.assertTrue(all(answer.whole for answer in answers))
                # A thread may have begun another request before the limit was seen.
                self.assertGreaterEqual(len(server.processes), 60 // (5 + threads - 1))
                for process in server.processes[:-1]:
                    self.assertEqual(process.returncode, 0)
                self.assertEqual(server.messages()[1][1:], ["retire", "requests"])
                self.assertEqual(server.messages()[2][1:], ["leaving", "requests"])

    def test_a_worker_may_serve_on_until_another_is_ready(self):
        server = self.serve("kinds:hello", "--max-requests", "2", "--retire-wait", "600")
        for _ in range(5):
            self.assertEqual(server.ask().status, "200 OK")
        self.assertEqual(server.await_message("retire")[2], "requests")
        self.assertEqual(server.said_words("leaving"), [])
        server.process.terminate()
        self.assertEqual(server.status(), 0)

    def test_but_not_for_ever(self):
        server = self.serve("kinds:hello", "--max-requests", "1", "--retire-wait", "1")
        server.ask()
        self.assertEqual(server.await_message("leaving")[2], "requests")
        self.assertEqual(server.status(), 0)

    def test_max_memory_is_looked_at_after_each_request(self):
        server = self.serve("works:grows", "--max-memory", "100")
        for _ in range(3):
            server.ask()
        self.assertEqual(server.ask(QUERY_STRING="120000000").body, b"grown")
        self.assertEqual(server.await_message("leaving")[2], "memory")
        self.assertEqual(server.status(), 0)


class Pulse(Case):
    def test_a_worker_without_a_request_says_that_it_stirs(self):
        for threads in (1, 2):
            server = self.serve("kinds:hello", threads=threads)
            for count in (1, 2):
                server.tell("ping")
                server.await_message("pong", count)
            self.assertEqual(server.ask().body, b"Hello, World!\n")


class Preload(Waiting):
    def parent(self, application, *arguments, workers=2, **options):
        server = self.serve("--preload", application, *arguments, ready=False, **options)
        self.assertEqual(int(server.await_message("loaded")[0]), server.process.pid)
        for slot in range(workers):
            server.tell("fork %d" % slot)
        forked = [server.await_message("forked", number + 1) for number in range(workers)]
        server.ready(workers)
        # [parent, "forked", "slot pid"]
        return server, [int(message[2].split()[1]) for message in forked]

    def test_the_parent_imports_once_and_forks_when_told(self):
        server, workers = self.parent("load/tells_import.py")
        self.assertEqual(server.output(), "imported by %d\n" % server.process.pid)
        self.assertEqual({int(message[0]) for message in server.said_words("ready")}, set(workers))
        for slot, pid in enumerate(workers):
            self.assertEqual(server.record(slot)[2], pid)
        self.assertIn(int(server.ask().body), workers)

    def test_the_end_of_a_worker_is_told(self):
        server, workers = self.parent("fails:crashes")
        self.assertEqual(server.ask().data, b"")
        pid, how = server.await_message("exited")[2].split(" ", 1)
        self.assertEqual(how, "code 9")
        self.assertIn(int(pid), workers)
        self.assertEqual(server.ask("/segmentation-fault").data, b"")
        self.assertEqual(server.await_message("exited", 2)[2].split()[1:], ["signal", "11"])
        server.tell("fork 0")
        server.ready(3)
        self.assertEqual(server.ask("/fine").body, b"fine")

    def test_sigterm_for_the_parent_is_for_all_and_it_leaves_last(self):
        server, workers = self.parent("works:waits", threads=2)
        gates = Gates(self)
        running = self.begin(server, gates, 4)
        server.process.terminate()
        server.await_message("leaving", 2)
        self.assertIsNone(server.process.poll())
        gates.open()
        for conversation in running:
            self.assertTrue(conversation.read().whole)
        self.assertEqual(server.status(), 0)
        ends = [message[2] for message in server.said_words("exited")]
        self.assertEqual(sorted(ends), sorted("%d code 0" % pid for pid in workers))

    def test_one_worker_can_be_stopped_alone(self):
        server, workers = self.parent("works:waits")
        os.kill(workers[0], signal.SIGTERM)
        self.assertEqual(server.await_message("exited")[2], "%d code 0" % workers[0])
        for _ in range(3):
            self.assertEqual(int(server.ask().body.split()[0]), workers[1])

    def test_all_leave_when_the_server_is_gone_c198(self):
        server, workers = self.parent("kinds:hello")
        server.theirs.close()
        server.control.close()
        self.assertEqual(server.status(), 0)
        for pid in workers:
            self.assertFalse(os.path.exists("/proc/%d" % pid))

    def test_workers_leave_when_the_parent_is_gone_c198(self):
        server, workers = self.parent("kinds:hello")
        server.process.kill()
        server.process.wait()
        eventually(lambda: len(server.said_words("leaving")) == 2, "that the workers leave")
        eventually(lambda: not any(runs(pid) for pid in workers), "the end of the workers")

    def test_limits_are_those_of_each_worker(self):
        server, workers = self.parent("kinds:hello", "--max-requests", "2", workers=1)
        server.ask()
        server.ask()
        self.assertEqual(server.await_message("exited")[2], "%d code 0" % workers[0])

    def test_a_failed_import_is_told_as_without(self):
        server = self.serve("--preload", "load/raises.py", ready=False)
        self.assertEqual(server.status(), 3)
        self.assertEqual(server.await_message("failed")[2], "import ZeroDivisionError: division by zero")


def runs(pid):
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Usage(Case):
    def run_worker(self, *arguments, **options):
        return subprocess.run([PYTHON, str(WORKER), *arguments], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=20, **options)

    def test_wrong_words_are_told(self):
        for arguments, text in (
            ((), "no application"), (("--threads", "0", "a"), "at least 1"), (("--threads", "x", "a"), "a number"),
            (("--threads",), "a number"), (("--slot", "-1", "a"), "a number"), (("--what", "a"), "no option --what"),
            (("a", "b"), "one application"), (("--preload", "a"), "needs --control"),
        ):
            with self.subTest(arguments=arguments):
                result = self.run_worker(*arguments)
                self.assertEqual(result.returncode, 2)
                self.assertIn(text, result.stdout.decode())

    def test_descriptor_0_must_listen(self):
        with socket.socket(socket.AF_UNIX) as other:
            for stdin in (subprocess.DEVNULL, other):
                result = self.run_worker("kinds:hello", stdin=stdin)
                self.assertEqual(result.returncode, 1)
                self.assertIn("not a listening socket", result.stdout.decode())


if __name__ == "__main__":
    unittest.main()
