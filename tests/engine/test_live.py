"""A live session on a network of numbers: the newest frame wins, the last one is resolved, parameters take effect."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from fewstep.engine.changes import Changes
from fewstep.engine.live import Failed, Frame, LiveSession, Output
from fewstep.engine.local import LocalEngine
from fewstep.engine.work import Ask, Rest


class Echo:
    """Answers with what was asked; counts calls; can be held."""

    def __init__(self, pause_s=0.0, room=4):
        self.pause_s, self.gate, self.asks, self.size = pause_s, threading.Event(), 0, room
        self.gate.set()

    def room(self, key):
        return self.size

    def answer(self, asks):
        self.gate.wait(10)
        time.sleep(self.pause_s)
        self.asks += len(asks)
        return [ask.what for ask in asks]


def painter(order):
    """As many evaluations as fields say; the result is what the network said of this session's frame."""
    said = []
    for step in range(order.fields["steps"]):
        said.append((yield Ask("k", (order.fields.get("colour"), order.frame.seq, step))))
    if order.fields.get("fails"):
        raise ValueError("odd")
    return said


class Watch:
    def __init__(self, network=None, paint=painter, **how):
        self.network = network or Echo()
        self.engine = LocalEngine(self.network)
        self.told = []
        self.session = LiveSession(self.engine, paint, self.told.append, {"steps": 4}, owner="a", **how)

    def settle(self):
        until = time.monotonic() + 10
        while not self.session.idle and time.monotonic() < until:
            time.sleep(0.005)
        assert self.session.idle
        return self.told


@pytest.fixture
def watch():
    made = []

    def make(*args, **how):
        made.append(Watch(*args, **how))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()


@pytest.mark.parametrize("steps", range(1, 9))
def test_the_last_frame_is_resolved_within_its_steps(watch, steps):
    one = watch()
    one.session.fields = {"steps": steps}
    one.network.gate.clear()
    for seq in range(50):
        one.session.offer(Frame(seq))
    one.network.gate.set()
    told = one.settle()
    assert [output.order.frame.seq for output in told] == [0, 49]
    assert [output.final for output in told] == [False, True]
    assert one.network.asks == 2 * steps and one.session.counts.dropped == 48


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_last_stroke_waits_for_no_other_frames_than_those_that_had_begun(watch, depth):
    """Of a session `depth` deep that is held: what has begun is finished, and the last stroke takes its own steps."""
    one = watch(depth=depth)
    one.network.gate.clear()
    for seq in range(50):
        one.session.offer(Frame(seq))
    one.network.gate.set()
    seqs = [output.order.frame.seq for output in one.settle()]
    assert seqs == [*range(depth), 49]
    assert 2 * 4 <= one.engine.stats.ticks <= 2 * 4 + 1  # the first frame may have had a call to itself


class Aside:
    """A painter whose frames are finished aside, while `gate` is open; `begun` are those that it began."""

    def __init__(self):
        self.begun, self.gate = [], threading.Event()

    def __call__(self, order):
        self.begun.append(order.frame.seq)
        said = yield from painter(order)

        def make():
            self.gate.wait(10)
            return said

        return Rest(make)


@pytest.mark.parametrize("depth", [1, 2])
def test_one_more_frame_is_begun_while_others_are_finished(watch, depth):
    paint = Aside()
    one = watch(paint=paint, depth=depth)
    for seq in range(12):
        one.session.offer(Frame(seq))
        time.sleep(0.02)
    assert len(paint.begun) == 2 and not one.told  # two wait to be finished: no third piles up behind them
    paint.gate.set()
    seqs = [output.order.frame.seq for output in one.settle()]
    assert seqs == [0, 1, 11] and [output.final for output in one.told] == [False, False, True]


def test_a_refined_picture_that_comes_too_late_is_not_told(watch):
    paint = Aside()
    one = watch(paint=paint, refine=lambda fields: {"steps": 8})
    paint.gate.set()
    one.session.offer(Frame(1))
    until = time.monotonic() + 10
    while len(paint.begun) < 2 and time.monotonic() < until:
        paint.gate.clear()  # from now on: the refined one is held at its end
        time.sleep(0.001)
    time.sleep(0.1)
    one.session.offer(Frame(2))
    one.session.refine = None
    paint.gate.set()
    told = [(output.order.frame.seq, output.order.refined) for output in one.settle()]
    assert told == [(1, False), (2, False)]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_frames_come_out_in_order(watch, depth):
    one = watch(Echo(pause_s=0.001), depth=depth)
    for seq in range(60):
        one.session.offer(Frame(seq))
        time.sleep(0.002)
    seqs = [output.order.frame.seq for output in one.settle()]
    assert seqs == sorted(seqs) and seqs[-1] == 59
    assert all(output.result == [(None, output.order.frame.seq, step) for step in range(4)] for output in one.told)


def test_parameters_are_in_the_next_output_and_paint_the_last_frame_again(watch):
    one = watch()
    one.session.offer(Frame(1))
    one.settle()
    one.session.change(7, {"steps": 2, "colour": "red"})
    told = one.settle()
    assert [(output.order.revision, output.order.frame.seq, len(output.result)) for output in told] == [
        (0, 1, 4),
        (7, 1, 2),
    ]
    assert told[1].result[0][0] == "red"
    one.session.change(8, {"steps": 1})
    one.session.offer(Frame(2))
    assert [(output.order.revision, output.order.frame.seq) for output in one.settle()][-1] == (8, 2)


def test_parameters_before_the_first_frame(watch):
    one = watch()
    one.session.change(1, {"steps": 3})
    assert not one.told
    one.session.offer(Frame(0))
    assert len(one.settle()[0].result) == 3


def test_an_idle_session_refines_once_and_gives_way(watch):
    one = watch(refine=lambda fields: fields | {"steps": 8})
    one.session.offer(Frame(0))
    told = one.settle()
    assert [(output.order.refined, len(output.result)) for output in told] == [(False, 4), (True, 8)]
    one.network.gate.clear()
    one.session.offer(Frame(1))
    one.network.gate.set()
    while len(one.told) < 3:
        time.sleep(0.001)
    one.network.gate.clear()  # in the middle of the refinement
    one.session.offer(Frame(2))
    one.network.gate.set()
    seqs = [(output.order.frame.seq, output.order.refined) for output in one.settle()]
    assert seqs[2] == (1, False) and seqs[-2:] == [(2, False), (2, True)]
    assert not any(isinstance(output, Failed) for output in one.told)


def test_a_failure_is_told_and_the_session_goes_on(watch):
    one = watch()
    one.session.change(1, {"steps": 1, "fails": True})
    one.session.offer(Frame(0))
    one.settle()
    assert isinstance(one.told[0], Failed) and str(one.told[0].error) == "odd"
    one.session.change(2, {"steps": 1})
    assert isinstance(one.settle()[1], Output)


def test_a_closed_session_says_no_more(watch):
    one = watch(Echo(pause_s=0.01))
    one.session.offer(Frame(0))
    one.session.offer(Frame(1))
    one.session.close()
    one.settle()
    time.sleep(0.05)
    assert not one.told and not one.session.offer(Frame(2)) and one.session.idle


def test_eight_sessions_never_see_each_others_frames():
    engine, frames, told = LocalEngine(Echo(room=5)), 625, {}
    sessions = [
        LiveSession(
            engine,
            painter,
            told.setdefault(colour, []).append,
            {"steps": 1 + colour % 4, "colour": colour},
            owner=str(colour),
            depth=1 + colour % 3,
        )
        for colour in range(8)
    ]
    threads = [
        threading.Thread(target=lambda one=one: [one.offer(Frame(seq)) or time.sleep(0) for seq in range(frames)])
        for one in sessions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until = time.monotonic() + 20
    while not all(one.idle for one in sessions) and time.monotonic() < until:
        time.sleep(0.01)
    engine.close()
    for colour, outputs in told.items():
        assert outputs[-1].order.frame.seq == frames - 1
        for output in outputs:
            assert output.result == [(colour, output.order.frame.seq, step) for step in range(1 + colour % 4)]


# ---- what counts as a change


def noisy(base, seed, amount=3):
    random = np.random.default_rng(seed)
    return Image.fromarray((base + random.integers(-amount, amount + 1, base.shape)).clip(0, 255).astype(np.uint8))


GREY = np.full((256, 256, 3), 128)


def still(changes, frames=20, base=GREY, amount=3):
    changes.changed(noisy(base, 0, amount))
    changes.painted(noisy(base, 0, amount))
    return [changes.changed(noisy(base, seed, amount)) for seed in range(1, frames)]


@pytest.mark.parametrize("amount", [0, 1, 3, 12])
def test_a_noisy_still_scene_is_no_change(amount):
    assert not any(still(Changes(), amount=amount)[8:])


@pytest.mark.parametrize("shape", [(8, 30), (8, 300), (16, 16)])
def test_a_stroke_is_a_change(shape):
    changes = Changes()
    still(changes)
    stroke = GREY.copy()
    stroke[40 : 40 + shape[0], 100 : 100 + shape[1]] = 0
    assert changes.changed(noisy(stroke, 99))


def test_a_slow_fade_adds_up():
    changes = Changes()
    still(changes, amount=1)
    assert any(changes.changed(noisy(GREY + level, level, 1)) for level in range(1, 9))


@pytest.mark.parametrize("amount", [0, 1])
def test_a_fade_from_black_to_grey_is_never_far_behind(amount):
    """45 % grey in 460 frames, of which a cosine sees nothing (0.99999)."""
    changes, shown, furthest = Changes(), 0.0, 0.0
    for frame in range(460):
        level = frame / 4
        picture = noisy(GREY[:64, :64] - 128 + round(level), frame, amount)
        if changes.changed(picture):
            changes.painted(picture)
            shown = level
        furthest = max(furthest, level - shown)
    assert furthest <= 2


def test_one_pixel_counts_where_every_pixel_does():
    changes = Changes(exact=True)
    picture = Image.fromarray(GREY.astype(np.uint8))
    assert changes.changed(picture)
    changes.painted(picture)
    assert not changes.changed(picture.copy())
    dotted = picture.copy()
    dotted.putpixel((200, 3), (128, 128, 129))
    assert changes.changed(dotted)


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (33, 17)])
def test_any_size(size):
    changes = Changes()
    for colour in ("black", "white"):
        assert changes.changed(Image.new("RGB", size, colour))
        changes.painted(Image.new("RGB", size, colour))
        assert not changes.changed(Image.new("RGB", size, colour))


def test_the_same_frame_is_skipped_unless_parameters_changed(watch):
    one, picture = watch(), Image.fromarray(GREY.astype(np.uint8))
    assert one.session.offer(Frame(0, picture))
    one.settle()
    assert not one.session.offer(Frame(1, picture)) and one.session.counts.unchanged == 1
    one.session.change(1, {"steps": 2})
    one.settle()
    assert [output.order.revision for output in one.told] == [0, 1]


def test_refining_waits_until_nothing_came_for_a_while(watch):
    one = watch(refine=lambda fields: {"steps": 8}, refine_after_s=0.15)
    for number in range(5):
        one.session.offer(Frame(number))
        one.settle()
        assert not any(isinstance(told, Output) and told.order.refined for told in one.told)
    until = time.monotonic() + 5
    while not one.told[-1].order.refined and time.monotonic() < until:
        time.sleep(0.01)
    assert [told.order.refined for told in one.told] == [False] * 5 + [True]
    assert one.told[-1].order.frame.seq == 4
