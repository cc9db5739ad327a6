"""Flask and Django, as people have them.

Run with the interpreter in which they are installed: `WSGI_FRAMEWORKS`, or
tests/.venv. What is not there is skipped.
"""

import json
import os
import subprocess
import unittest

from .support import APPLICATIONS, ROOT, Case

PYTHON = os.environ.get("WSGI_FRAMEWORKS", str(ROOT / "tests/.venv/bin/python"))
FORM = (b"--b\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\n\xc3\xa9\r\n"
        b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x.bin\"\r\n\r\n"
        + b"x" * 300_000 + b"\r\n--b--\r\n")


def has(module):
    try:
        return subprocess.run([PYTHON, "-c", "import " + module], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


class Framework:
    """What both applications do."""

    def setUp(self):
        self.server = self.serve(*self.arguments, folder=APPLICATIONS / self.folder, python=PYTHON)

    def ask(self, *arguments, **changes):
        return self.server.ask(*arguments, HTTP_HOST="localhost:8080", **changes)

    def test_a_page(self):
        answer = self.ask()
        self.assertEqual((answer.status, answer.whole), ("200 OK", True))
        self.assertIn("http://localhost:8080/", answer.body.decode())
        self.assertIsNotNone(answer.field("Content-Length"))
        self.assertEqual(self.ask(method="HEAD").rest, b"")
        self.assertEqual(self.ask("/nowhere").status[:3], "404")

    def test_a_form_with_a_file(self):
        answer = self.ask("/form", FORM, "POST", CONTENT_TYPE="multipart/form-data; boundary=b")
        self.assertEqual(json.loads(answer.body), {"name": "é", "size": 300_000, "file": "x.bin"})

    def test_a_session(self):
        cookie = ""
        for number in range(1, 4):
            answer = self.ask("/visits", HTTP_COOKIE=cookie)
            self.assertEqual(answer.body, b"visit %d" % number)
            cookie = answer.field("Set-Cookie").split(";")[0]

    def test_a_stream(self):
        answer = self.ask("/stream")
        self.assertEqual(answer.chunks, [b"data: %d\n\n" % number for number in range(3)])
        self.assertTrue(answer.whole)

    def test_a_file_is_handed_over(self):
        server = self.serve("--pass-files", *self.arguments, folder=APPLICATIONS / self.folder, python=PYTHON)
        answer = server.ask("/file", HTTP_HOST="localhost")
        self.assertEqual(answer.status, "200 OK")
        path = os.readlink("/proc/self/fd/%d" % answer.files[0])
        size = os.path.getsize(path)
        self.assertTrue(path.endswith(".py"))
        self.assertEqual(answer.field("X-CGI-File"), "0 %d" % size)
        self.assertEqual(answer.field("Content-Length"), str(size))
        os.close(answer.files[0])
        self.assertEqual(len(self.ask("/file").body), size)

    def test_an_error_is_the_frameworks_page(self):
        answer = self.ask("/broken")
        self.assertEqual(answer.status[:3], "500")
        self.assertIn(b"Server Error", answer.body)
        self.assertIn("a program's own fault", self.server.output())


@unittest.skipUnless(has("flask"), "skipped: needs Flask in " + PYTHON)
class Flask(Framework, Case):
    folder = "flask_hello"
    arguments = ("app:create_app()",)

    def test_a_factory_has_its_arguments(self):
        server = self.serve("app.py:create_app(name='you')", folder=APPLICATIONS / self.folder, python=PYTHON)
        self.assertIn(b"Hello, you!", server.ask(HTTP_HOST="localhost").body)

    def test_json_and_a_buffer(self):
        body = json.dumps({"numbers": [1, 2, 3]}).encode()
        answer = self.ask("/json", body, "POST", CONTENT_TYPE="application/json")
        self.assertEqual(json.loads(answer.body), {"total": 6})
        self.assertEqual(self.ask("/memory").body, b"in memory")


@unittest.skipUnless(has("django"), "skipped: needs Django in " + PYTHON)
class Django(Framework, Case):
    folder = "django_hello"
    arguments = ("--threads", "2", "--files", "hello.wsgi")

    def test_paths_are_utf_8(self):
        path = "/to/Zoë".encode().decode("latin-1")
        self.assertTrue(self.ask(path).body.decode().startswith("Hello, Zoë!"))

    def test_below_another_path(self):
        self.assertIn(b"http://localhost:8080/%C3%A9", self.ask("/", SCRIPT_NAME="/sub").body)

    def test_files_imported_with_the_first_request_are_told(self):
        self.ask()
        told = {os.path.basename(message[2]) for message in self.server.said_words("file")}
        self.assertEqual(told, {"__init__.py", "wsgi.py", "settings.py", "urls.py"})


if __name__ == "__main__":
    unittest.main()
