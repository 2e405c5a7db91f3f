"""A plain client of the live protocol."""

import io
import json
import time

from PIL import Image
from websockets.sync.client import connect

from fewstep.serve.frames import Codec, Kind, Message, unpacked

PROTOCOL = "fewstep.live.v1"
VALUES = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "refine": False, "seed": 5}


def colour(rgb, size=64):
    stream = io.BytesIO()
    Image.new("RGB", (size, size), rgb).save(stream, "PNG")
    return stream.getvalue()


class Client:
    def __init__(self, port, **hello):
        address = f"ws://127.0.0.1:{port}/api/v1/live"
        self.socket = connect(address, subprotocols=[PROTOCOL], open_timeout=20).__enter__()
        self.texts, self.outputs, self.seq = [], [], 0
        self.say("hello", proto=PROTOCOL, **{"codecs": ["png"], "values": VALUES, **hello})
        self.welcome = self.until("welcome")
        self.say("ack", seq=0)

    def say(self, kind, **values):
        self.socket.send(json.dumps({"type": kind, **values}))

    def frame(self, data, kind=Kind.INPUT, codec=Codec.PNG):
        self.seq += 1
        self.socket.send(Message(kind, codec, self.seq, data, sender_ms=1000 + self.seq).packed())
        return self.seq

    def receive(self, timeout=20):
        data = self.socket.recv(timeout)
        if isinstance(data, bytes):
            message = unpacked(data)
            self.outputs.append(message)
            self.say("ack", seq=message.seq)
            return message
        self.texts.append(json.loads(data))
        return self.texts[-1]

    def until(self, kind, **wanted):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            for message in self.texts:
                if message["type"] == kind and wanted.items() <= message.items():
                    self.texts.remove(message)
                    return message
            self.receive()
        raise TimeoutError(kind)

    def output(self, wanted=lambda output: True):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            message = self.receive()
            if isinstance(message, Message) and wanted(message):
                return message
        raise TimeoutError("no output")

    def close(self):
        self.say("bye")
        self.socket.close()
