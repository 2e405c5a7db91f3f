"""Works that are carried out by workers: as here, and whatever becomes of a worker."""

import signal
import threading
import time
from collections import Counter
from functools import partial

import numpy as np
import pytest
from PIL import Image

from fewstep.engine import wire
from fewstep.engine.errands import Errand, RemotePainter, Workshop, picture_errand
from fewstep.engine.fleet import AT_ONCE, Fleet, LostError
from fewstep.engine.live import Failed, Frame, LiveSession, Output
from fewstep.engine.live_request import LiveRequest
from fewstep.engine.painter import LivePainter
from fewstep.engine.process import Process, hire_process
from fewstep.engine.wire import Letter
from fewstep.engine.work import BusyError, CancelledError, Work
from fewstep.pipeline import Pipeline
from fewstep.request import Request
from tests.tiny import tiny_model

HOW = {"path": "tiny"}


@pytest.fixture(scope="module")
def pipe():
    return Pipeline(tiny_model("sd15"))


class Near:
    """A worker in this process, whose letters go through bytes all the same."""

    def __init__(self, pipe, heard, lost):
        self.lost, self.gone, self.taken = lost, False, []
        self.workshop = Workshop(lambda letter: None if self.gone else heard(wire.unpacked(letter.packed())))
        self.workshop._pipe = lambda how: pipe

    def send(self, letter):
        self.taken.append(letter)
        if not self.gone:
            self.workshop.take(wire.unpacked(letter.packed()))

    def close(self):
        self.gone = True
        self.workshop.close()

    def kill(self):
        self.gone = True
        self.lost()


class Deaf(Near):
    """It never answers."""

    def send(self, letter):
        self.taken.append(letter)


@pytest.fixture
def fleet_of(pipe):
    made = []

    def make(kind=Near, least=1, most=None, **how):
        workers = []

        def hire(index, heard, lost):
            workers.append(kind(pipe, heard, lost))
            return workers[-1]

        made.append(Fleet(hire, least, most, **how))
        return made[-1], workers

    yield make
    for fleet in made:
        fleet.close()


class Wait:
    """What a work ended with."""

    def __init__(self):
        self.done, self.result, self.error = threading.Event(), None, None

    def __call__(self, result, error):
        self.result, self.error = result, error
        self.done.set()

    def get(self, seconds=20):
        assert self.done.wait(seconds)
        if self.error is not None:
            raise self.error
        return self.result


def ordered(fleet, pipe, request, index=0, owner="me", deadline_s=1e9, **how):
    wait = Wait()
    work = Work(partial(picture_errand, HOW, pipe.plan(request), index, **how), owner, deadline_s, wait)
    fleet.submit(work)
    return work, wait


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_worker_paints_what_the_pipeline_paints_with_its_settings(fleet_of, pipe, steps):
    fleet, _ = fleet_of()
    heard = []
    how = {"image": Image.new("RGB", (64, 64), "red"), "strength": 0.8, "steps": steps, "seed": 3, "count": 2}
    request = Request("a cat", **how)
    _, wait = ordered(fleet, pipe, request, 1, heard=lambda step, preview: heard.append((step, preview)))
    wanted = pipe(request)[1]
    found = wait.get()
    assert np.array_equal(np.asarray(found), np.asarray(wanted))
    assert found.info["parameters"] == wanted.info["parameters"]
    assert heard == [(step, None) for step in range(1, steps + 1)]
    assert fleet.stats.asks == steps and fleet.stats.ended == 1


def test_previews_come_where_they_are_wanted(fleet_of, pipe):
    fleet, _ = fleet_of()
    seen = {}
    how = {"heard": seen.__setitem__, "wanted": lambda step: step == 1}
    ordered(fleet, pipe, Request("a cat", steps=3, seed=1), **how)[1].get()
    assert seen[1].size == (64, 64) and set(seen) == {1, 2, 3} and seen[3] is None


def test_errors_come_back_as_sentences_and_the_worker_lives(fleet_of, pipe):
    fleet, workers = fleet_of()
    workers[0].workshop._pipe = lambda how: pipe if how == HOW else 1 / 0
    wait = Wait()
    fleet.submit(Work(partial(picture_errand, {"path": "no"}, pipe.plan(Request("a", seed=1)), 0), "me", 1.0, wait))
    with pytest.raises(Exception, match="ZeroDivisionError") as caught:
        wait.get()
    assert caught.value.http_status == 500
    assert ordered(fleet, pipe, Request("a", steps=1, seed=1))[1].get().size == (64, 64)


def test_errands_go_where_there_are_fewest_and_the_most_urgent_first(fleet_of, pipe):
    fleet, workers = fleet_of(Deaf, least=2)
    for number in range(12):
        ordered(fleet, pipe, Request("a", steps=1, seed=number), deadline_s=100.0 - number)
    until(lambda: sum(len(worker.taken) for worker in workers) == 2 * AT_ONCE)
    assert [len(worker.taken) for worker in workers] == [AT_ONCE, AT_ONCE]
    last, _ = ordered(fleet, pipe, Request("a", steps=1, seed=99), deadline_s=1e6)
    assert fleet.position(last) == 4


def test_too_many_are_turned_away_and_the_cancelled_leave(fleet_of, pipe):
    fleet, _ = fleet_of(Deaf, waiting=3)
    for number in range(AT_ONCE):
        ordered(fleet, pipe, Request("a", seed=number), deadline_s=0.0)
        until(lambda: not fleet._wait)
    waiting = [ordered(fleet, pipe, Request("a", seed=number)) for number in range(3)]
    with pytest.raises(BusyError):
        ordered(fleet, pipe, Request("a", seed=9))
    fleet.cancel(waiting[0][0])
    with pytest.raises(CancelledError):
        waiting[0][1].get()
    ordered(fleet, pipe, Request("a", seed=9))
    assert fleet.stats.turned_away == 1


def test_a_lost_workers_jobs_are_painted_by_another_one(fleet_of, pipe):
    fleet, workers = fleet_of(least=2)
    slow = threading.Event()
    for worker in workers:
        worker.workshop.engine.network.answer = _after(slow, worker.workshop.engine.network.answer)
    waits = [ordered(fleet, pipe, Request("a", steps=2, seed=number))[1] for number in range(4)]
    until(lambda: all(len(worker.taken) == 2 for worker in workers))
    workers[0].kill()
    until(lambda: fleet.lost)
    slow.set()
    for number, wait in enumerate(waits):
        assert np.array_equal(np.asarray(wait.get()), np.asarray(pipe("a", steps=2, seed=number)))
    assert fleet.workers == 2 and len(workers) == 3


def _after(event, answer):
    def answering(asks):
        event.wait(10)
        return answer(asks)

    return answering


def test_a_job_that_loses_two_workers_ends_with_a_sentence(fleet_of, pipe):
    fleet, workers = fleet_of(Deaf)
    _, wait = ordered(fleet, pipe, Request("a", seed=1))
    for index in range(2):
        until(lambda index=index: len(workers) > index and workers[index].taken)
        workers[index].kill()
    with pytest.raises(LostError, match="Send it again"):
        wait.get()


def test_workers_that_never_live_are_given_up(fleet_of, pipe):
    fleet, workers = fleet_of(Deaf)
    for index in range(3):
        until(lambda index=index: len(workers) > index)
        workers[index].kill()
    until(lambda: not fleet.workers)
    with pytest.raises(LostError):
        ordered(fleet, pipe, Request("a", seed=1))[1].get()


def test_more_workers_while_works_wait_and_fewer_when_idle(fleet_of, pipe):
    now = [0.0]
    fleet, workers = fleet_of(Near, most=3, clock=lambda: now[0])
    workers[0].send = workers[0].taken.append
    waits = [ordered(fleet, pipe, Request("a", steps=1, seed=number))[1] for number in range(AT_ONCE + 1)]
    until(lambda: len(workers[0].taken) == AT_ONCE)
    now[0] = 3.0
    assert waits[-1].get().size == (64, 64) and fleet.workers == 2
    now[0] = 100.0
    until(lambda: fleet.workers == 1)


def live_in(fleet, pipe, heard, owner="live 1", **fields):
    values = LiveRequest(Request("a cat", width=64, height=64, seed=4, steps=2)).patched({"refine": False, **fields})
    painter = RemotePainter(HOW, owner)
    return LiveSession(fleet, painter.paint, heard.append, values, owner=owner, moving=painter.moving)


def test_live_frames_are_those_of_a_session_here_and_stay_with_their_worker(fleet_of, pipe):
    fleet, workers = fleet_of(least=3)
    heard = []
    session = live_in(fleet, pipe, heard)
    colours = ["red", "green", "blue", "white", "black"]
    for number, colour in enumerate(colours):
        session.offer(Frame(number, Image.new("RGB", (64, 64), colour)))
        until(lambda number=number: len(heard) == number + 1)
    painter, local = LivePainter(pipe), []
    for number, output in enumerate(heard):
        assert isinstance(output, Output) and output.order.frame.seq == number
        walk = painter.paint(output.order)
        local.append(_walk(walk, workers[0].workshop.engine.network))
        assert np.array_equal(np.asarray(output.result), np.asarray(local[-1]))
    assert Counter(bool(worker.taken) for worker in workers) == {True: 1, False: 2}


def _walk(steps, network):
    ask = next(steps)
    while True:
        try:
            ask = steps.send(network.answer([ask])[0])
        except StopIteration as end:
            return end.value


def test_a_session_that_moves_by_itself_goes_on_there_too(fleet_of, pipe):
    fleet, _ = fleet_of()
    heard = []
    session = live_in(fleet, pipe, heard, noise="walk", noise_speed=0.2)
    session.offer(Frame(0, Image.new("RGB", (64, 64), "red")))
    until(lambda: len(heard) >= 3)
    session.close()
    assert len({np.asarray(one.result).tobytes() for one in heard[:3]}) == 3


def test_a_lost_worker_costs_a_live_session_the_frame_in_the_making_alone(fleet_of, pipe):
    fleet, workers = fleet_of()
    heard = []
    session = live_in(fleet, pipe, heard)
    session.offer(Frame(0, Image.new("RGB", (64, 64), "red")))
    until(lambda: heard)
    workers[0].send = workers[0].taken.append
    session.offer(Frame(1, Image.new("RGB", (64, 64), "green")))
    until(lambda: len(workers[0].taken) == 2)
    workers[0].kill()
    until(lambda: len(heard) == 2)
    assert isinstance(heard[1], Failed) and isinstance(heard[1].error, LostError)
    session.offer(Frame(2, Image.new("RGB", (64, 64), "blue")))
    until(lambda: len(heard) == 3)
    assert isinstance(heard[2], Output) and len(workers) == 2


def test_closing_tells_everybody(fleet_of, pipe):
    fleet, _ = fleet_of(Deaf)
    waits = [ordered(fleet, pipe, Request("a", seed=number))[1] for number in range(AT_ONCE + 2)]
    fleet.close()
    for wait in waits:
        with pytest.raises(CancelledError):
            wait.get()


def test_letters_keep_values_pictures_and_settings():
    pictures = {"image": Image.effect_noise((7, 5), 90).convert("RGB"), "mask": Image.effect_noise((3, 9), 90)}
    letter = Letter({"kind": "x", "number": 3, "words": "é"}, pictures)
    found = wire.unpacked(letter.packed())
    assert found.values == letter.values
    assert {name: (one.mode, one.tobytes()) for name, one in found.pictures.items()} == {
        name: (one.mode, one.tobytes()) for name, one in pictures.items()
    }


@pytest.mark.embedded
def test_real_processes_paint_and_one_that_is_killed_is_replaced():
    import fewstep

    pipe, fleet = fewstep.load(), Fleet(hire_process(), 1)
    try:
        request = Request("a red apple, 3d", steps=2, seed=5)
        wait = Wait()
        fleet.submit(Work(partial(picture_errand, {}, pipe.plan(request), 0), "me", 1e9, wait))
        assert np.array_equal(np.asarray(wait.get(60)), np.asarray(pipe(request)))
        (worker,) = (place.worker for place in fleet._places.values())
        assert isinstance(worker, Process)
        worker._process.send_signal(signal.SIGKILL)
        until(lambda: fleet.lost, 20)
        again = Wait()
        fleet.submit(Work(partial(picture_errand, {}, pipe.plan(request), 0), "me", 1e9, again))
        assert np.array_equal(np.asarray(again.get(60)), np.asarray(pipe(request)))
    finally:
        fleet.close()


def test_an_errand_says_what_it_is(pipe):
    errand = picture_errand(HOW, pipe.plan(Request("a", seed=1)), 2)
    assert isinstance(errand, Errand) and errand.lasting and errand.letter.values["index"] == 2


@pytest.mark.slow
@pytest.mark.embedded
def test_ray_actors_paint_and_one_that_is_killed_is_replaced():
    pytest.importorskip("ray")
    import ray

    import fewstep
    from fewstep.engine.ray import hire_ray

    pipe, fleet = fewstep.load(), Fleet(hire_ray(), 2)
    try:
        request = Request("a red apple, 3d", steps=2, seed=5)
        waits = [ordered_with({}, fleet, pipe, request, owner=str(number)) for number in range(8)]
        for wait in waits:
            assert np.array_equal(np.asarray(wait.get(120)), np.asarray(pipe(request)))
        assert all(place.counts[0] for place in fleet._places.values())
        ray.kill(next(iter(fleet._places.values())).worker._actor)
        until(lambda: fleet.lost, 30)
        assert np.array_equal(np.asarray(ordered_with({}, fleet, pipe, request).get(120)), np.asarray(pipe(request)))
        assert fleet.workers == 2
        heard = []
        session = live_in(fleet, pipe, heard)
        session.paint.__self__.how = {}
        session.offer(Frame(0, Image.new("RGB", (64, 64), "red")))
        until(lambda: heard, 60)
        assert isinstance(heard[0], Output)
    finally:
        fleet.close()
        ray.shutdown()


def ordered_with(how, fleet, pipe, request, owner="me"):
    wait = Wait()
    fleet.submit(Work(partial(picture_errand, how, pipe.plan(request), 0), owner, 1e9, wait))
    return wait
