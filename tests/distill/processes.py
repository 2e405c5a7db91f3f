"""Worlds of several gloo processes, forked from the test so that nothing is imported again.

answers = in_processes(2, work)      work(world) in each of two connected processes; what they answered, by rank
child = forked(work)                 work() in one process of its own
"""

import multiprocessing
import os
import socket
import traceback
from functools import partial

from fewstep.distill.world import joined

_CONTEXT = multiprocessing.get_context("fork")


def forked(work):
    """A started process that does `work` and ends."""
    process = _CONTEXT.Process(target=work, daemon=True)
    process.start()
    return process


def in_processes(size, work, timeout_s=200):
    """What `work(world)` answers in each process; one that raises answers (type's name, sentence)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(size)]
    children = [forked(partial(_one, work, rank, size, port, pipe[1])) for rank, pipe in enumerate(pipes)]
    answers = [here.recv() if here.poll(timeout_s) else ("nothing", "no answer") for here, _ in pipes]
    for child in children:
        child.join(5)
        child.kill()
    return answers


def _one(work, rank, size, port, there):
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(value) for name, value in names.items()}
    try:
        with joined(device="cpu") as world:
            answer = work(world)
        there.send(answer)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test compares it
        there.send((type(error).__name__, str(error)))
        traceback.print_exc()
