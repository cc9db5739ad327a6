"""What the worker reads: SCGI (C175), and the body (C184)."""

import os
import socket
import unittest

from .support import Case, VARIABLES, head, netstring


def fields(*words):
    return netstring("".join(word + "\0" for word in words).encode("latin-1"))


REST = [word for pair in VARIABLES.items() for word in pair]


class Head(Case):
    @classmethod
    def setUpClass(cls):
        from .support import Server

        cls.server = Server("kinds:hello").ready()
        cls.addClassCleanup(cls.server.stop)

    def test_what_is_not_scgi_gets_no_answer_and_one_line_c175(self):
        good = head()
        rows = [
            (b"GET / HTTP/1.1\r\n\r\n", "length"),
            (b"x", "ends within"),
            (b"12", "ends within"),
            (b":,", "length"),
            (b"-1:,", "length"),
            (b"007:abcdefg,", "length"),
            (b"99999999999:", "length"),
            (b"9999999:", "a head of"),
            (b"0:,", "NUL"),
            (good[:-1] + b";", "comma"),
            (good[:40], "ends within"),
            (good[:-1], "ends within"),
            (netstring(b"CONTENT_LENGTH\0000\0SCGI\0001"), "NUL"),
            (fields("CONTENT_LENGTH", "0", "SCGI"), "pair"),
            (fields("SCGI", "1", "CONTENT_LENGTH", "0", *REST), "CONTENT_LENGTH"),
            (fields("SCGI", "1", *REST), "CONTENT_LENGTH"),
            (fields("CONTENT_LENGTH", "", "SCGI", "1", *REST), "CONTENT_LENGTH"),
            (fields("CONTENT_LENGTH", "+1", "SCGI", "1", *REST), "CONTENT_LENGTH"),
            (fields("CONTENT_LENGTH", "²", "SCGI", "1", *REST), "CONTENT_LENGTH"),
            (fields("CONTENT_LENGTH", "9" * 5000, "SCGI", "1", *REST), "CONTENT_LENGTH"),
            (fields("CONTENT_LENGTH", "0", *REST), "SCGI=1"),
            (fields("CONTENT_LENGTH", "0", "SCGI", "2", *REST), "SCGI=1"),
            (fields("CONTENT_LENGTH", "0", "SCGI", "1", "SCGI", "1", *REST), "twice"),
            (fields("CONTENT_LENGTH", "0", "SCGI", "1", "", "empty", *REST), "empty name"),
            (fields("CONTENT_LENGTH", "0", "SCGI", "1"), "REQUEST_METHOD"),
            (head(SERVER_NAME=""), "SERVER_NAME"),
            (head(SERVER_PORT=None), "SERVER_PORT"),
            (head(SERVE_HERE_ID="x"), "SERVE_HERE_ID"),
            (head(SERVE_HERE_ID="²"), "SERVE_HERE_ID"),
            (head(SERVE_HERE_ID=str(1 << 64)), "SERVE_HERE_ID"),
            (head(SERVE_HERE_ID="9" * 5000), "SERVE_HERE_ID"),
            (head() + b"more", "more bytes"),
            (head(3) + b"abcd", "more bytes"),
        ]
        for number, (data, reason) in enumerate(rows, 1):
            with self.subTest(data=data[:60]):
                conversation = self.server.connect().send(data)
                conversation.socket.shutdown(socket.SHUT_WR)
                self.assertEqual(conversation.read().data, b"")
                lines = [line for line in self.server.output().splitlines() if "not SCGI" in line]
                self.assertEqual(len(lines), number)
                self.assertIn(reason, lines[-1])
        self.assertEqual(self.server.ask().body, b"Hello, World!\n")

    def test_a_connection_that_says_nothing_is_no_fault(self):
        before = self.server.output()
        self.server.connect().close()
        self.assertEqual(self.server.ask().status, "200 OK")
        self.assertEqual(self.server.output(), before)

    def test_a_head_may_come_byte_by_byte(self):
        conversation = self.server.connect()
        for byte in head():
            conversation.send(bytes([byte]))
        self.assertEqual(conversation.read().body, b"Hello, World!\n")

    def test_a_head_may_be_long(self):
        self.assertEqual(self.server.ask(HTTP_COOKIE="x" * 500_000).status, "200 OK")


class Body(Case):
    def test_a_body_is_read_in_every_way_whether_it_comes_at_once_or_not_c184(self):
        server = self.serve("works:lines")
        body = b"first\nsecond\nthird\nfourth\nfifth\nsixth"
        want = repr([b"first\n", b"se", [b"cond\n"], b"third\n", b"f", b"ourth\nfifth\nsixth", b"", b"", []])
        self.assertEqual(server.ask(body=body, method="POST").body.decode(), want)
        conversation = server.connect().send(head(len(body), REQUEST_METHOD="POST"))
        for byte in body:
            conversation.send(bytes([byte]))
        self.assertEqual(conversation.read().body.decode(), want)

    def test_a_large_body_streams_through_little_memory(self):
        server = self.serve("works:upload")
        block = os.urandom(1_000_000)
        conversation = server.connect().send(head(200 * len(block), REQUEST_METHOD="PUT"))
        for _ in range(200):
            conversation.send(block)
        size = int(conversation.read().body.split()[0])
        self.assertEqual(size, 200 * len(block))
        with open("/proc/%d/status" % server.process.pid) as file:
            peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
        self.assertLess(peak, 60_000)

    def test_a_body_read_at_once_is_whole(self):
        server = self.serve("kinds:echo")
        body = os.urandom(3_000_000)
        self.assertEqual(server.ask(body=body, method="POST").body, body)

    def test_a_body_that_ends_early_raises_and_makes_no_noise(self):
        server = self.serve("fails:reads")
        for begun in (b"", b"some"):
            conversation = server.connect().send(head(10, REQUEST_METHOD="POST"), begun)
            conversation.socket.shutdown(socket.SHUT_WR)
            self.assertEqual(conversation.read().data, b"")
        self.assertEqual(server.output(), "the body raised ClientGone\n" * 2)

    def test_a_body_that_nobody_reads_spoils_nothing(self):
        server = self.serve("kinds:hello")
        answer = server.ask(body=b"x" * 100_000, method="POST")
        self.assertTrue(answer.whole)
        self.assertEqual(answer.body, b"Hello, World!\n")


if __name__ == "__main__":
    unittest.main()
