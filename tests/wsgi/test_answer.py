"""What the worker makes of an application: PEP 3333 (C182 to C191)."""

import os
import tempfile
import unittest
from urllib.parse import unquote

from .support import Case, Server, head

DATA = bytes(range(256)) * 300


class Environ(Case):
    def lines(self, server, *arguments, **changes):
        answer = server.ask(*arguments, **changes)
        return dict(line.split("=", 1) for line in answer.body.decode().splitlines())

    def test_environ_holds_what_was_sent_and_the_keys_of_wsgi_c182(self):
        server = self.serve("kinds:environ", "--multiprocess")
        seen = self.lines(server, "/a b", QUERY_STRING="x=1&y", HTTP_X_FIELD="", HTTPS="on", SERVE_HERE_ID="7")
        want = {
            "REQUEST_METHOD": "'GET'", "SCRIPT_NAME": "''", "PATH_INFO": "'/a b'", "HTTP_X_FIELD": "''",
            "QUERY_STRING": "'x=1&y'", "CONTENT_LENGTH": "'0'", "wsgi.version": "(1, 0)",
            "wsgi.url_scheme": "'https'", "wsgi.multithread": "False", "wsgi.multiprocess": "True",
            "wsgi.run_once": "False", "wsgi.input_terminated": "True",
        }
        self.assertEqual({name: seen.get(name) for name in want}, want)
        for name in ("SCGI", "SERVE_HERE_ID", "PATH"):
            self.assertNotIn(name, seen)

    def test_one_process_with_threads_says_so(self):
        server = self.serve("kinds:environ", threads=3)
        seen = self.lines(server)
        self.assertEqual((seen["wsgi.multithread"], seen["wsgi.multiprocess"]), ("True", "False"))
        self.assertEqual(seen["wsgi.url_scheme"], "'http'")

    def test_what_may_be_left_out_has_a_value(self):
        server = self.serve("kinds:environ")
        seen = self.lines(server, PATH_INFO=None, QUERY_STRING=None, SCRIPT_NAME=None)
        self.assertEqual([seen[name] for name in ("SCRIPT_NAME", "PATH_INFO", "QUERY_STRING")],
                         ["''", "'/'", "''"])
        seen = self.lines(server, PATH_INFO=None, SCRIPT_NAME="/app")
        self.assertEqual([seen["SCRIPT_NAME"], seen["PATH_INFO"]], ["'/app'", "''"])

    def test_bytes_are_latin_1_c183(self):
        server = self.serve("kinds:environ")
        seen = self.lines(server, "/é".encode().decode("latin-1"))
        self.assertEqual(seen["PATH_INFO"], repr("/\xc3\xa9").encode("unicode-escape").decode())

    def test_each_request_has_a_plain_dict_of_its_own_c182(self):
        server = self.serve("kinds:is_dict")
        for _ in range(2):
            self.assertEqual(server.ask().body, b"dict False str")

    def test_all_that_is_said_comes_out_at_once_c184(self):
        server = self.serve("kinds:speaks", environment={"LC_ALL": "C"})
        self.assertEqual(server.ask().body, b"said")
        self.assertEqual(server.output(), "printed é \\udce9\nan error: ☃ \\udc80\nseveral words\n")


class Answers(Case):
    def one(self, application, *arguments, **changes):
        server = self.serve(application)
        answer = server.ask(*arguments, **changes)
        return server, answer

    def assertFails(self, server, answer, text):
        self.assertEqual(answer.status, "500 Internal Server Error")
        self.assertEqual((answer.body, answer.whole), (b"", True))
        self.assertIn(text, answer.field("X-CGI-Error"))
        self.assertIn(text, server.output())

    def test_the_validator_of_the_library_is_content(self):
        server = self.serve("kinds:validated")
        body = b"one\ntwo\nthree\nfour\n"
        for conversation in (server.connect(), server.connect()):
            answer = conversation.send(head(len(body), REQUEST_METHOD="POST"), body).read()
            self.assertEqual(answer.body, b"validated " + body, server.output())
        self.assertEqual(server.ask(method="HEAD").status, "200 OK")
        self.assertEqual(server.output(), "seen\n" * 3)
        for application, body in (("validated_stream", b"onetwo"), ("validated_write", b"written twice and returned")):
            server, answer = self.one("kinds:" + application, QUERY_STRING="one+-+two")
            self.assertEqual((answer.body, answer.whole, server.output()), (body, True, ""))

    def test_a_whole_answer_gets_its_length_c190(self):
        for application, query, body in (
            ("kinds:listed", "one+two", b"onetwo"), ("kinds:listed", "-", b""), ("kinds:One", "one", b"one"),
            ("kinds:One", "", b""), ("kinds:blocks", "-+-", b""),
        ):
            with self.subTest(application=application, query=query):
                _, answer = self.one(application, QUERY_STRING=query)
                self.assertEqual(answer.field("Content-Length"), str(len(body)))
                self.assertEqual((answer.body, answer.whole), (body, True))

    def test_other_answers_are_chunked_block_by_block_c188(self):
        _, answer = self.one("kinds:blocks", QUERY_STRING="-+one+-+two")
        self.assertEqual(answer.chunks, [b"one", b"two"])
        self.assertTrue(answer.whole)
        self.assertIsNone(answer.field("Content-Length"))

    def test_a_large_block_arrives_whole(self):
        for application in ("kinds:echo", "kinds:validated"):
            with self.subTest(application=application):
                body = b"0123\n" + os.urandom(2_000_000)
                _, answer = self.one(application, body=body, method="POST")
                self.assertTrue(answer.whole)
                self.assertTrue(answer.body.endswith(body))

    def test_start_response_may_come_with_the_first_block_c187(self):
        self.assertEqual(self.one("kinds:late")[1].body, b"late")

    def test_without_start_response_the_application_failed_c187(self):
        self.assertFails(*self.one("kinds:never"), "start_response was not called")

    def test_what_is_written_comes_first_c188(self):
        _, answer = self.one("kinds:written")
        self.assertEqual(answer.body, b"written twice and returned")
        self.assertTrue(answer.whole)
        self.assertEqual(self.one("kinds:written_only")[1].body, b"written")

    def test_no_more_is_sent_than_announced_c190(self):
        server, answer = self.one("kinds:announced", "/4", QUERY_STRING="abc+def+ghi+jkl")
        self.assertEqual((answer.body, answer.whole), (b"abcd", True))
        self.assertIn("more than its Content-Length", server.output())
        # It is asked no more once it went beyond.
        self.assertNotIn("asked for ghi", server.output())

    def test_less_than_announced_shows_c190(self):
        server, answer = self.one("kinds:announced", "/9", QUERY_STRING="abc+def")
        self.assertEqual((answer.body, answer.whole), (b"abcdef", False))
        self.assertIn("3 bytes less than its Content-Length", server.output())

    def test_exactly_as_much_as_announced_is_asked_for_to_the_end(self):
        server, answer = self.one("kinds:announced", "/6", QUERY_STRING="abc+def")
        self.assertTrue(answer.whole)
        self.assertEqual(server.output(), "asked for abc\nasked for def\n")

    def test_head_204_and_304_have_no_body_c190(self):
        for application, path, method in (
            ("kinds:hello", "/", "HEAD"), ("kinds:blocks", "/", "HEAD"), ("kinds:written", "/", "HEAD"),
            ("kinds:status", "/204 No Content", "GET"), ("kinds:status", "/304 Not Modified", "GET"),
        ):
            with self.subTest(application=application, path=path):
                _, answer = self.one(application, path, method=method, QUERY_STRING="one+two")
                self.assertEqual(answer.rest, b"")
                self.assertIsNone(answer.field("Transfer-Encoding"))
                length = "14" if application == "kinds:hello" else None
                self.assertEqual(answer.field("Content-Length"), length)

    def test_a_status_is_a_number_and_a_phrase_c186(self):
        server = self.serve("kinds:status")
        self.assertEqual(server.ask("/299 Über alles").status, "299 Über alles")
        for status in ("200", "20 x", "2000 OK", "100 Continue", "199 x", "600 x", "abc x", "200 a\r\nb", "²00 OK"):
            with self.subTest(status=status):
                self.assertFails(server, server.ask("/" + status), "ValueError")

    def test_headers_are_pairs_of_str_that_an_application_may_send_c186(self):
        server = self.serve("kinds:headers")
        good = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=\xe9"), ("X-Empty", ""), ("X-Tab", "a\tb"), ("X_Y", "\xa0")]
        answer = server.ask(QUERY_STRING=repr(good))
        self.assertEqual(answer.fields[1:-1], good)
        for text, error in (
            ("()", "TypeError"), ("None", "TypeError"), ("[('A',)]", "ValueError"), ("[(b'A', 'b')]", "TypeError"),
            ("[('A', b'b')]", "TypeError"), ("[('A', 1)]", "TypeError"), ("[('A', 'b\\r\\nC: d')]", "ValueError"),
            ("[('A', 'b\\0')]", "ValueError"), ("[('A: b', 'c')]", "ValueError"), ("[('A ', 'c')]", "ValueError"),
            ("[('', 'c')]", "ValueError"), ("[('A\\n', 'c')]", "ValueError"), ("[('A', '\u0100')]", "UnicodeEncode"),
            ("[('Connection', 'close')]", "ValueError"), ("[('transfer-encoding', 'chunked')]", "ValueError"),
            ("[('Status', '200')]", "ValueError"), ("[('Content-Length', 'x')]", "ValueError"),
            ("[('Content-Length', '-1')]", "ValueError"),
            ("[('Content-Length', '2'), ('content-length', '2')]", "ValueError"),
        ):
            with self.subTest(headers=text):
                text = text.replace("\u0100", "\\u0100")
                self.assertFails(server, server.ask(QUERY_STRING=text), error)

    def test_private_fields_are_not_the_applications_to_send(self):
        server = self.serve("kinds:headers")
        answer = server.ask(QUERY_STRING="[('X-CGI-File', '0 9'), ('x-cgi-error', 'x'), ('X-Kept', '1')]")
        self.assertEqual(answer.fields[1:], [("X-Kept", "1"), ("Content-Length", "2")])

    def test_start_response_twice_is_an_error_without_exc_info_c186(self):
        self.assertFails(*self.one("kinds:twice"), "start_response is called again")

    def test_with_exc_info_the_head_is_replaced_c186(self):
        _, answer = self.one("kinds:replaced")
        self.assertEqual(answer.status, "503 Service Unavailable")
        self.assertIsNone(answer.field("X-First"))
        self.assertEqual(answer.body, b"replaced")

    def test_with_exc_info_after_the_head_it_is_raised_again_c186(self):
        server, answer = self.one("kinds:too_late")
        self.assertEqual((answer.chunks, answer.whole), ([b"begun"], False))
        self.assertIn("KeyError: 'after the head'", server.output())

    def test_blocks_must_be_bytes_c188(self):
        self.assertFails(*self.one("kinds:returns_none"), "TypeError")
        self.assertFails(*self.one("kinds:returns_text", "/list"), "a block must be bytes, not str")
        self.assertFails(*self.one("kinds:returns_text", "/iterator"), "a block must be bytes, not str")


class Failures(Case):
    def test_before_the_head_it_is_500_and_the_whole_traceback_c191(self):
        server = self.serve("fails:raises")
        answer = server.ask("/p")
        self.assertEqual(answer.status, "500 Internal Server Error")
        self.assertEqual(answer.field("X-CGI-Error"), "KeyError: 'with a\\nnew line and é \\u2603'")
        trace = unquote(answer.field("X-CGI-Trace"))
        self.assertTrue(trace.startswith("Traceback (most recent call last):\n"), trace)
        self.assertTrue(trace.endswith("KeyError: 'with a\\nnew line and \u00e9 \u2603'"), trace)
        output = server.output()
        self.assertTrue(output.startswith("GET /p: the application failed:\nTraceback"), output)
        self.assertIn('raise KeyError("with a', output)
        # The worker's own frames tell nothing.
        self.assertNotIn("wsgi.py", output)

    def test_after_the_head_the_answer_is_cut_short_c191(self):
        server = self.serve("fails:Closing")
        answer = server.ask(QUERY_STRING="raises-midway")
        self.assertEqual((answer.status, answer.chunks, answer.whole), ("200 OK", [b"one"], False))
        output = server.output()
        self.assertIn("RuntimeError: at the second block", output)
        self.assertTrue(output.endswith("\nclosed\n"))

    def test_close_is_always_called_c189(self):
        for what, status, whole in (
            ("", "200 OK", True), ("raises-first", "500 Internal Server Error", True),
            ("raises-midway", "200 OK", False), ("raises-at-close", "200 OK", True),
        ):
            with self.subTest(what=what):
                server = self.serve("fails:Closing")
                answer = server.ask(QUERY_STRING=what)
                self.assertEqual((answer.status, answer.whole), (status, whole))
                self.assertEqual(server.output().count("closed\n"), 1)

    def test_a_client_that_leaves_ends_the_answer_without_noise_c189(self):
        server = self.serve("fails:Closing")
        conversation = server.connect().send(head(QUERY_STRING="endless"))
        conversation.until(b"more")
        conversation.close()
        server.await_output("closed\n")
        self.assertEqual(server.ask().body, b"one")
        self.assertEqual(server.output(), "closed\nclosed\n")

    def test_an_exit_is_a_failure_of_the_request_alone(self):
        server = self.serve("fails:exits")
        for _ in range(2):
            self.assertEqual(server.ask().field("X-CGI-Error"), "SystemExit: enough")
        server = self.serve("fails:interrupted")
        self.assertEqual(server.ask().field("X-CGI-Error"), "KeyboardInterrupt")
        server = self.serve("fails:Closing")
        self.assertFalse(server.ask(QUERY_STRING="exits").whole)
        self.assertEqual(server.ask().body, b"one")

    def test_a_lost_connection_of_the_applications_own_is_a_failure(self):
        server = self.serve("fails:own_connection_error")
        self.assertEqual(server.ask().field("X-CGI-Error"), "ConnectionResetError: a database is gone")


class Files(Case):
    @classmethod
    def setUpClass(cls):
        file = tempfile.NamedTemporaryFile()
        file.write(DATA)
        file.flush()
        cls.addClassCleanup(file.close)
        cls.path = file.name
        cls.copying = Server("works:files").ready()
        cls.addClassCleanup(cls.copying.stop)
        cls.passing = Server("works:files", "--pass-files").ready()
        cls.addClassCleanup(cls.passing.stop)

    def test_a_plain_file_is_handed_over_from_its_position_c185(self):
        for kind in ("buffered", "unbuffered", "read"):
            with self.subTest(kind=kind):
                answer = self.passing.ask("/" + kind, QUERY_STRING=self.path)
                self.assertEqual(answer.body, b"")
                self.assertEqual(answer.field("Content-Length"), str(len(DATA) - 4))
                self.assertEqual(answer.field("X-CGI-File"), f"4 {len(DATA) - 4}")
                self.assertEqual(os.pread(answer.files[0], len(DATA), 4), DATA[4:])
                os.close(answer.files[0])

    def test_what_was_not_written_out_is_in_the_file_and_it_outlives_its_name(self):
        answer = self.passing.ask("/temporary")
        self.assertEqual(os.pread(answer.files[0], 100, 0), b"0123abc789")
        self.assertEqual(answer.field("X-CGI-File"), "4 6")
        # Here it is sent before close() writes everything out.
        self.assertEqual(self.copying.ask("/temporary").body, b"abc789")
        os.close(answer.files[0])

    def test_a_content_length_is_honoured_c185(self):
        answer = self.passing.ask("/short", QUERY_STRING=self.path)
        self.assertEqual((answer.field("X-CGI-File"), answer.field("Content-Length")), ("4 3", "3"))
        os.close(answer.files[0])
        self.assertEqual(self.copying.ask("/short", QUERY_STRING=self.path).body, DATA[4:7])
        answer = self.passing.ask("/long", QUERY_STRING=self.path)
        self.assertEqual((answer.body, answer.whole, answer.files), (DATA[4:], False, []))

    def test_without_the_switch_the_file_is_copied(self):
        for kind in ("buffered", "unbuffered", "read"):
            answer = self.copying.ask("/" + kind, QUERY_STRING=self.path)
            self.assertEqual((answer.body, answer.whole, answer.files), (DATA[4:], True, []))

    def test_what_is_only_like_a_file_is_read_c185(self):
        with tempfile.NamedTemporaryFile() as file:
            import gzip

            file.write(gzip.compress(DATA))
            file.flush()
            for server in (self.copying, self.passing):
                for kind, path, body in (
                    ("gzip", file.name, DATA[4:]), ("gzip-inside", file.name, DATA[4:]),
                    ("pipe", "", b"0123456789"), ("like", self.path, DATA[4:]),
                    ("generator", self.path, DATA[4:]), ("beyond", self.path, b""),
                    ("buffered", "/proc/self/stat", None),
                ):
                    with self.subTest(kind=kind):
                        answer = server.ask("/" + kind, QUERY_STRING=path)
                        self.assertEqual(answer.files, [])
                        self.assertTrue(answer.whole)
                        if body is None:
                            self.assertGreater(len(answer.body), 20)
                        else:
                            self.assertEqual(answer.body, body)

    def test_a_file_is_closed_c185(self):
        server = self.serve("works:files", "--pass-files")
        server.ask("/like", QUERY_STRING=self.path)
        self.assertEqual(server.output(), "closed\n")
        before = len(os.listdir("/proc/%d/fd" % server.process.pid))
        for _ in range(20):
            for file in server.ask("/buffered", QUERY_STRING=self.path).files:
                os.close(file)
        self.assertEqual(len(os.listdir("/proc/%d/fd" % server.process.pid)), before)

    def test_head_sends_no_file(self):
        answer = self.passing.ask("/buffered", method="HEAD", QUERY_STRING=self.path)
        self.assertEqual((answer.rest, answer.files), (b"", []))

    def test_a_client_that_leaves_during_a_file_is_no_fault(self):
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(50 << 20)
            conversation = self.copying.connect().send(head(PATH_INFO="/buffered", QUERY_STRING=file.name))
            conversation.until(b"\r\n\r\n")
            conversation.close()
            self.assertEqual(self.copying.ask("/pipe").body, b"0123456789")
        self.assertNotIn("Traceback", self.copying.output())


if __name__ == "__main__":
    unittest.main()
