"""A program beside the measured servers: an application that lets its clients wait, and the clients.

    slow.py http|fastcgi SOCKET COUNT

The application listens on the socket. It answers `/ready` at once, any other path
when it is told to. Lines on standard input, and what is printed for each:

    ask PORT    COUNT new connections send a request each to the server on that port
                {"held": COUNT} as soon as all of them wait in the application
    answer      the application answers all
                {"wrong": N}: so many clients did not get what it said

or {"problem": TEXT}. It leaves at the end of its input.
"""

import asyncio
import json
import resource
import struct
import sys

HOLD_SECONDS_MAX = 60
STEP_SECONDS = 20
# Fewer at once than any server's queue has places.
CONNECTING = 100
BACKLOG = 4096
SAYS = b"at last\n"

FASTCGI_BEGIN, FASTCGI_END, FASTCGI_PARAMS, FASTCGI_STDIN, FASTCGI_STDOUT = 1, 3, 4, 5, 6
FASTCGI_KEEP_CONNECTION = 1


class Problem(Exception):
    pass


class Application:
    def __init__(self, protocol):
        self.serve = {"http": self.serve_http, "fastcgi": self.serve_fastcgi}[protocol]
        self.begin(0)

    def begin(self, count):
        """From now on that many requests are expected."""
        self.missing = count
        self.held = asyncio.Event()
        self.released = asyncio.Event()

    async def connection(self, reader, writer):
        try:
            while await self.serve(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def serve_http(self, reader, writer):
        """One request. Whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        await self.wait(b" /ready " in head)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(SAYS) + SAYS)
        await writer.drain()
        return True

    async def serve_fastcgi(self, reader, writer):
        flags, variables = 0, b""
        while True:
            _, kind, number, length, padding, _ = struct.unpack(">BBHHBB", await reader.readexactly(8))
            content = (await reader.readexactly(length + padding))[:length]
            if kind == FASTCGI_BEGIN:
                flags = content[2]
            elif kind == FASTCGI_PARAMS:
                variables += content
            elif kind == FASTCGI_STDIN and not content:
                break
        await self.wait(b"/ready" in variables)
        answer = b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(SAYS) + SAYS
        for kind, content in [(FASTCGI_STDOUT, answer), (FASTCGI_STDOUT, b""), (FASTCGI_END, bytes(8))]:
            writer.write(struct.pack(">BBHHBB", 1, kind, number, len(content), 0, 0) + content)
        await writer.drain()
        return flags & FASTCGI_KEEP_CONNECTION

    async def wait(self, at_once):
        if at_once:
            return
        released = self.released
        self.missing -= 1
        if self.missing == 0:
            self.held.set()
        await asyncio.wait_for(released.wait(), HOLD_SECONDS_MAX)


async def ask(port, limit):
    """One request on a connection of its own. Whether the answer is the application's."""
    async with limit:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await writer.drain()
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        content = b""
        while SAYS not in content and (more := await reader.read(4096)):
            content += more
        return head.startswith(b"HTTP/1.1 200 ") and SAYS in content
    finally:
        writer.close()


async def hold(application, port, count):
    """All clients ask; done when the application has their requests. Their tasks."""
    application.begin(count)
    limit = asyncio.Semaphore(CONNECTING)
    clients = [asyncio.ensure_future(ask(port, limit)) for _ in range(count)]
    held = asyncio.ensure_future(application.held.wait())
    # A client that is done before the application has answered was turned away.
    await asyncio.wait([held, *clients], timeout=STEP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if not application.held.is_set():
        held.cancel()
        early = sum(client.done() for client in clients)
        raise Problem(f"{count - application.missing} of {count} requests came through, {early} were turned away")
    return clients


async def release(application, clients):
    application.released.set()
    answers = await asyncio.wait_for(asyncio.gather(*clients, return_exceptions=True), STEP_SECONDS)
    return sum(answer is not True for answer in answers)


async def main(protocol, socket, count):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    application = Application(protocol)
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    server = await asyncio.start_unix_server(application.connection, socket, backlog=BACKLOG)
    say({"listens": socket})
    clients = []
    while words := (await commands.readline()).decode().split():
        try:
            if words[0] == "ask":
                clients = await hold(application, int(words[1]), count)
                say({"held": count})
            else:
                say({"wrong": await release(application, clients)})
        except (Problem, OSError, asyncio.TimeoutError) as problem:
            application.released.set()
            for client in clients:
                client.cancel()
            say({"problem": str(problem) or "the answers did not come"})
    server.close()


def say(what):
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
