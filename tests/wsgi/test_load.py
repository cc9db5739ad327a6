"""How an application is named and found, what is told of a failure, and of its files."""

import os
import pathlib
import sys
import tempfile

from .support import APPLICATIONS, WORKER, Case

LOAD = APPLICATIONS / "load"


class Names(Case):
    def test_an_application_is_found_by_every_kind_of_name(self):
        rows = [
            ("named:application", "named.application"),
            ("named", "named.application"),
            ("only_app", "only_app.app"),
            ("named:other", "named.other"),
            ("named:holder.inner.app", "named.inner"),
            ("named:Class", "named.Class"),
            ("named:make()", "made None {}"),
            ("named:make('a:b', key=[1, -2.5])", "made 'a:b' {'key': [1, -2.5]}"),
            ("named:holder.make({'x': (None, True)})", "made {'x': (None, True)} {}"),
            ("named: other ", "named.other"),
            ("package.inside:app", "package.inside.app with package.beside"),
            ("package.inside", "package.inside.app with package.beside"),
            ("named.py", "named.application"),
            ("./named.py:other", "named.other"),
            (str(LOAD / "named.py") + ":make('file.py')", "made 'file.py' {}"),
            ("package/inside.py:app", "package.inside.app with package.beside"),
            ("package/__init__.py:app", "package.app"),
            ("odd-name.wsgi", "odd-name.application"),
            ("site.py:app", "site_wsgi.app"),
            ("odd-module:app", "odd-module.app"),
        ]
        for name, answer in rows:
            with self.subTest(name=name):
                server = self.serve(name, folder=LOAD)
                self.assertEqual(server.ask().body.decode(), answer)

    def test_a_file_is_found_from_anywhere_and_its_folder_is_searched(self):
        server = self.serve(str(LOAD / "package/inside.py"), folder="/")
        self.assertEqual(server.ask().body, b"package.inside.app with package.beside")

    def test_the_search_begins_with_the_project_and_knows_no_private_folder(self):
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            code = "import sys\ndef app(e, s):\n    s('200 OK', [])\n    return [repr(sys.path).encode()]\n"
            for folder in (first, second):
                pathlib.Path(folder, "where.py").write_text(code)
            for arguments, begin in (
                ((), [str(LOAD)]),
                (("--path", second, "--path", "."), [second, str(LOAD)]),
            ):
                environment = {"PYTHONPATH": first}
                server = self.serve(*arguments, "where", folder=LOAD, environment=environment)
                path = eval(server.ask().body)
                self.assertEqual(path[:len(begin) + 1], begin + [first])
                self.assertNotIn(str(WORKER.parent), path)
                self.assertNotIn("", path)

    def test_the_worker_may_come_as_text(self):
        command = ("-c", WORKER.read_text())
        server = self.serve("named", folder=LOAD, command=command)
        self.assertEqual(server.ask().body, b"named.application")

    def test_files_of_the_project_do_not_stand_in_for_the_library(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("socket", "signal", "traceback", "array"):
                pathlib.Path(folder, name + ".py").write_text("raise SystemExit('not me')\n")
            for command in ((str(WORKER),), ("-c", WORKER.read_text())):
                server = self.serve(str(LOAD / "named.py"), folder=folder, command=command)
                self.assertEqual(server.ask().body, b"named.application")


class Failures(Case):
    def failure(self, name, status, **options):
        server = self.serve("--files", name, folder=LOAD, ready=False, **options)
        self.assertEqual(server.status(), status, server.output())
        words = server.await_message("failed")[2]
        self.assertEqual(server.said_words("ready"), [])
        trace = [(message + [""])[2] for message in server.said_words("trace")]
        # Whether it is news is the server's to know.
        self.assertEqual(server.output(), "")
        return words, "\n".join(trace) + "\n", server

    def test_without_a_control_socket_the_traceback_is_printed(self):
        _, told, _ = self.failure("imports_broken:app", 3)
        server = self.serve("imports_broken:app", folder=LOAD, ready=False, control=False)
        self.assertEqual(server.status(), 3)
        self.assertEqual(server.output(), told)

    def test_an_exception_of_the_import_is_told_with_its_traceback_alone(self):
        words, output, server = self.failure("imports_broken:app", 3)
        self.assertEqual(words, "import KeyError: 'missing'")
        lines = output.splitlines()
        self.assertEqual(lines[:2], ["cannot load 'imports_broken:app':", "Traceback (most recent call last):"])
        files = [line.split('"')[1] for line in lines if line.startswith("  File")]
        self.assertEqual([os.path.basename(file) for file in files], ["imports_broken.py", "broken.py"])
        # What has to change before another try is worth it.
        told = {os.path.basename(message[2]) for message in server.said_words("file")}
        self.assertEqual(told, {"imports_broken.py", "broken.py"})

    def test_a_syntax_error_shows_its_place(self):
        words, output, server = self.failure("bad_syntax.py", 3)
        self.assertTrue(words.startswith("import SyntaxError: "), words)
        self.assertIn("bad_syntax.py\", line 2", output)
        self.assertIn("def = 1", output)
        self.assertEqual([message[2] for message in server.said_words("file")], [str(LOAD / "bad_syntax.py")])

    def test_a_module_that_is_not_there_says_where_it_was_looked_for(self):
        for name in ("nothing:app", "nothing.deeper:app"):
            words, output, _ = self.failure(name, 3)
            self.assertEqual(words, "import ModuleNotFoundError: No module named 'nothing'")
            self.assertIn("hint: looked in %s first" % LOAD, output)
        # One that the application misses is another matter.
        words, output, _ = self.failure("misses:app", 3)
        self.assertIn("hint: %s has no such module; install it there" % sys.executable, output)

    def test_a_module_of_pythons_own_that_is_meant_otherwise_is_told(self):
        for name, status in (("site:app", 4), ("site.app:app", 3)):
            _, output, _ = self.failure(name, status)
            self.assertIn("hint: `site` is ", output)
            self.assertIn("give yours another name", output)
        # Named as a file, it is not mistaken; what it lacks is its own.
        _, output, _ = self.failure("site.py:absent", 4)
        self.assertNotIn("hint", output)

    def test_an_error_of_several_lines_is_told_by_its_first(self):
        words, _, _ = self.failure("explains.py", 3)
        self.assertEqual(words, "import ValueError: could not connect")

    def test_an_exit_during_the_import_is_a_failure(self):
        words, _, _ = self.failure("exits_at_import", 3)
        self.assertEqual(words, "import SystemExit: 0")

    def test_what_is_no_wsgi_application_is_told_at_once(self):
        rows = [
            ("named:absent", "has no `absent`; it has: application, says, other, make, Class, holder"),
            ("named:holder.absent", "has no `holder.absent`"),
            ("empty", "has neither `application` nor `app`"),
            ("named:number", "`number` is not callable but int"),
            ("named:make_none()", "`make_none()` is not callable but NoneType"),
            ("named:make_none", "takes 0 of the two arguments of a WSGI application; if it makes one, "
                                "write make_none()"),
            ("named:asgi", "is a coroutine, as ASGI has it"),
            ("named:asgi_object", "is a coroutine, as ASGI has it"),
            ("named:make(open('x'))", "are not literal arguments"),
            ("named:make(1", "are not literal arguments"),
            ("named:make()()", "are not literal arguments"),
            ("named:make(*[1])", "are not literal arguments"),
            ("named:make(**{'a': 1})", "are not literal arguments"),
            ("no such module", "is not the name of a module"),
            (".named", "is not the name of a module"),
            ("absent.py:app", "there is no file " + str(LOAD / "absent.py")),
        ]
        for name, text in rows:
            with self.subTest(name=name):
                words, output, _ = self.failure(name, 4)
                self.assertTrue(words.startswith("application "), words)
                self.assertIn(text, output)
                self.assertNotIn("Traceback", output)

    def test_a_factory_that_raises_shows_where(self):
        words, output, _ = self.failure("named:make_broken()", 3)
        self.assertEqual(words, "import LookupError: no configuration")
        self.assertIn("in make_broken", output)


class Files(Case):
    def names(self, server):
        return [os.path.relpath(message[2], APPLICATIONS) for message in server.said_words("file")]

    def test_the_applications_own_files_are_told_before_it_is_ready(self):
        server = self.serve("--files", "package.inside", folder=LOAD)
        self.assertEqual(set(self.names(server)),
                         {"load/package/__init__.py", "load/package/inside.py", "load/package/beside.py"})

    def test_what_is_imported_later_is_told_once(self):
        server = self.serve("--files", "works:imports")
        self.assertEqual(self.names(server), ["works.py"])
        for _ in range(3):
            server.ask()
        server.await_message("file", 2)
        self.assertEqual(self.names(server), ["works.py", "imported_late.py"])

    def test_nothing_is_told_unless_asked_for(self):
        server = self.serve("works:imports")
        server.ask()
        self.assertEqual(self.names(server), [])
