"""The folder that all servers serve, and the programs built for it."""

import json
import os
import pathlib
import shutil
import subprocess
import time

BENCHES = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = BENCHES.parent

LISTING_ENTRIES = 1000
# Servers look at a file's time; some treat one that has just changed as one that still changes.
FILE_AGE_SECONDS = 3600


class BuildError(Exception):
    pass


class Site:
    """What is served, below `folder`, and what else had to be built."""

    def __init__(self, place):
        self.folder = place.folder / "site"
        self.floor = place.folder / "floor"
        # Where the slow application listens.
        self.upstream = place.folder / "upstream.sock"
        self.write_files()
        self.write_scripts()
        self.build_rust()

    def write_files(self):
        self.folder.mkdir()
        for name, size in [("small.bin", 1 << 10), ("medium.bin", 100 << 10), ("large.bin", 100 << 20)]:
            block = bytes(range(251)) * 400
            with open(self.folder / name, "wb") as file:
                for start in range(0, size, len(block)):
                    file.write(block[: size - start])
        listing = self.folder / "list"
        listing.mkdir()
        for number in range(LISTING_ENTRIES):
            (listing / entry_name(number)).write_bytes(b"x" * number)
        shutil.copy(BENCHES / "hello.php", self.folder)
        before = time.time() - FILE_AGE_SECONDS
        for path in [*self.folder.rglob("*"), self.folder]:
            os.utime(path, (before, before))

    def write_scripts(self):
        folder = self.folder / "cgi-bin"
        folder.mkdir()
        run(["cc", "-O2", "-Wall", "-static", "-o", folder / "c.cgi", BENCHES / "cgi.c"])
        for script in (BENCHES / "scripts").iterdir():
            shutil.copy(script, folder)
        for script in folder.iterdir():
            script.chmod(0o755)
        run(["cc", "-O2", "-Wall", "-pthread", "-o", self.floor, BENCHES / "floor.c"])

    def script(self, work):
        return self.folder / work.path.partition("?")[0].lstrip("/")

    def build_rust(self):
        """In two commands: the tests' dependencies, which a bench brings along, must not change the program."""
        self.serve_here = cargo("--bin", "serve-here")
        self.plain_tiny_http = cargo("--bench", "plain_tiny_http")


def entry_name(number):
    return f"entry-{number:04}.txt"


def cargo(kind, name):
    """Builds a target of this repository and returns the path of its executable."""
    command = ["cargo", "build", "--release", "--locked", "--message-format=json-render-diagnostics", kind, name]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise BuildError(f"cannot build {name} (cargo ended with {done.returncode})")
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == name:
            return pathlib.Path(message["executable"])
    raise BuildError(f"cargo does not say where {name} is")


def run(command):
    try:
        subprocess.run([str(word) for word in command], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{error} (benches/install-needs installs the compiler)") from error
