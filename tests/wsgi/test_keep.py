"""One connection for many requests: SERVE_HERE_KEEP and X-CGI-Keep."""

import socket
import unittest

from .support import Case, Server, head


def ask(**changes):
    return head(SERVE_HERE_KEEP="1", **changes)


class Kept(Case):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("keeps:application").ready()
        cls.addClassCleanup(cls.server.stop)

    connection = None

    def connect(self):
        self.connection = self.server.connect()
        self.addCleanup(self.connection.close)
        return self.connection

    def answer(self, end, path="/", **changes):
        """All up to `end`, which is where it has to end."""
        # Not before it is used: a worker waits for what a connection says.
        if self.connection is None:
            self.connect()
        self.connection.data = b""
        data = self.connection.send(ask(PATH_INFO=path, **changes)).until(end)
        self.assertTrue(data.endswith(end), data)
        return data

    def assert_closed(self):
        self.assertEqual(self.connection.socket.recv(10), b"")

    def test_a_list_that_is_sent_leaves_the_worker_free_at_once(self):
        for number in range(50):
            data = self.answer(b"listed\n", "/list", QUERY_STRING=str(number))
            self.assertIn(b"X-CGI-Keep: now\r\n", data)

    def test_a_result_with_close_is_followed_by_a_newline_when_it_is_closed(self):
        self.assertIn(b"X-CGI-Keep: later\r\n", self.answer(b"once\n\n", "/close"))
        # The application counts how often it was closed.
        self.assertIn(b"X-CGI-Keep: now\r\n", self.answer(b"1\n", "/closed"))

    def test_without_the_variable_nothing_is_promised(self):
        for path in "/list", "/close":
            answer = self.server.ask(path)
            self.assertIsNone(answer.field("X-CGI-Keep"))
            self.assertTrue(answer.whole)

    def test_what_has_no_known_length_ends_the_connection(self):
        self.answer(b"0\r\n\r\n", "/stream")
        self.assert_closed()

    def test_an_answer_that_is_cut_short_ends_the_connection(self):
        for path in "/short", "/fails":
            with self.subTest(path):
                self.connect()
                self.answer(b"half\n", path)
                self.assert_closed()

    def test_an_exception_ends_the_connection(self):
        self.assertNotIn(b"X-CGI-Keep", self.answer(b"\r\n\r\n", "/raises"))
        self.assert_closed()

    def test_answers_without_a_body_keep_it(self):
        for changes in {"REQUEST_METHOD": "HEAD", "path": "/list"}, {"path": "/none"}:
            self.assertIn(b"X-CGI-Keep: now\r\n", self.answer(b"\r\n\r\n", **changes))

    def test_content_that_has_not_come_with_the_head_ends_the_connection(self):
        self.assertNotIn(b"X-CGI-Keep", self.answer(b"listed\n", "/list", CONTENT_LENGTH="3"))
        self.assert_closed()

    def test_a_newline_says_that_nobody_waits(self):
        self.answer(b"listed\n", "/list")
        self.connection.send(b"\n")
        self.assert_closed()
        self.connect().send(ask(PATH_INFO="/counts") + b"\n")
        self.assert_closed()
        self.assertEqual(self.server.ask("/count").body, b"0\n")

    def test_another_connection_is_taken_beside_a_kept_one(self):
        self.answer(b"listed\n", "/list")
        self.assertEqual(self.server.ask("/list").body, b"listed\n")
        self.answer(b"listed\n", "/list")

    def test_of_two_the_later_is_kept(self):
        self.answer(b"listed\n", "/list")
        first = self.connection
        self.connect()
        self.answer(b"listed\n", "/list")
        self.assertEqual(first.socket.recv(10), b"")
        self.answer(b"listed\n", "/list")

    def test_a_worker_that_leaves_closes_it(self):
        server = self.serve("keeps:application")
        connection = server.connect()
        self.addCleanup(connection.close)
        connection.send(ask(PATH_INFO="/list")).until(b"listed\n")
        server.process.terminate()
        self.assertEqual(connection.socket.recv(10), b"")
        self.assertEqual(server.status(), 0)

    def test_the_end_of_a_kept_connection_is_noticed(self):
        self.answer(b"listed\n", "/list")
        self.connection.socket.shutdown(socket.SHUT_WR)
        self.assert_closed()
        self.assertEqual(self.server.ask("/list").body, b"listed\n")


if __name__ == "__main__":
    unittest.main()
