"""A line to a server with a delay each way, and an uplink of so many bits a second: a TCP proxy on loopback."""

import asyncio
import contextlib
import threading
import time


class Line:
    """Use as a context manager; `port` is where to connect. `round_trip_s` is split evenly between both ways."""

    def __init__(self, server_port, *, round_trip_s=0.0, uplink_bits_s=None):
        self.server_port, self.delay_s, self.uplink_bits_s = server_port, round_trip_s / 2, uplink_bits_s

    def __enter__(self):
        self._loop, ready = asyncio.new_event_loop(), threading.Event()

        async def start():
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**16)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        def run():
            self._loop.run_until_complete(start())
            self._loop.run_forever()

        threading.Thread(target=run, daemon=True).start()
        assert ready.wait(5)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(self._loop)])
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _serve(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.server_port, limit=2**16)
        ways = self._way(reader, far_writer, self.uplink_bits_s), self._way(far_reader, writer, None)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(*ways)

    async def _way(self, reader, writer, bits_s):
        """What comes in leaves later: after the time that its bits take on the line, and the delay."""
        queue = asyncio.Queue(64)

        async def leave():
            while (item := await queue.get()) is not None:
                due, data = item
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                writer.write(data)
                await writer.drain()
            writer.close()

        leaving, free = asyncio.ensure_future(leave()), 0.0
        while data := await reader.read(4096):
            free = max(free, time.monotonic()) + (8 * len(data) / bits_s if bits_s else 0.0)
            if bits_s:  # a real line's sender notices that it is full
                await asyncio.sleep(max(0.0, free - time.monotonic() - 0.02))
            await queue.put((free + self.delay_s, data))
        await queue.put(None)
        await leaving
