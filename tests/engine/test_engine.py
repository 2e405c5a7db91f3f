"""The engine on a network of numbers: batches, turns, deadlines, cancelling, failing; everybody gets their own."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.engine.local import LocalEngine, wait_for
from fewstep.engine.scheduler import pick
from fewstep.engine.work import Ask, BusyError, CancelledError, Rest, Work


class Squares:
    """Answers x with x * x, and writes down what shared a call."""

    def __init__(self, room=4, pause_s=0.0):
        self.calls, self.size, self.pause_s = [], room, pause_s
        self.gate = threading.Event()
        self.gate.set()

    def room(self, key):
        return self.size

    def answer(self, asks):
        self.gate.wait(10)
        self.calls.append([ask.what for ask in asks])
        assert len({ask.key for ask in asks}) == 1
        time.sleep(self.pause_s)
        if any(ask.what == "bad" for ask in asks):
            raise MemoryError("too large")
        return [ask.what * ask.what for ask in asks]


def steps(*numbers, key="k"):
    """Asks for each number's square; the result is their list."""

    def begin():
        found = []
        for number in numbers:
            found.append((yield Ask(key, number)))
        return found

    return begin


@pytest.fixture
def engine():
    made = []

    def make(**how):
        how.setdefault("network", Squares())
        waiting = how.pop("waiting", 64)
        made.append(LocalEngine(how["network"], waiting=waiting))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Ends:
    def __init__(self):
        self.found, self.event = {}, threading.Event()

    def __call__(self, name):
        def ended(result, error):
            assert name not in self.found, "told twice"
            self.found[name] = error or result
            self.event.set()

        return ended

    def wait(self, count):
        until = time.monotonic() + 20
        while len(self.found) < count and time.monotonic() < until:
            self.event.wait(0.05)
            self.event.clear()
        assert len(self.found) == count
        return self.found


def work(ends, name, *numbers, owner="", deadline=1.0, key="k"):
    return Work(steps(*numbers, key=key), owner or name, deadline, ends(name))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(-99, 99), max_size=8), st.integers(0, 2), st.floats(0, 9)), max_size=12),
    st.integers(1, 5),
)
def test_everybody_gets_their_own_answers(orders, room):
    network, ends = Squares(room), Ends()
    engine = LocalEngine(network)
    try:
        for name, (numbers, key, deadline) in enumerate(orders):
            engine.submit(work(ends, name, *numbers, deadline=deadline, key=key))
        assert ends.wait(len(orders)) == {name: [n * n for n in numbers] for name, (numbers, _, _) in enumerate(orders)}
        assert max(map(len, network.calls), default=0) <= room
        assert sum(map(len, network.calls)) == sum(len(numbers) for numbers, _, _ in orders)
    finally:
        engine.close()


def resting(gate, made):
    """One ask, and a rest that waits for `gate` and gives what `made` gives."""

    def begin():
        yield Ask("k", 1)

        def make():
            gate.wait(10)
            return made()

        return Rest(make)

    return begin


def test_a_rest_is_made_while_the_network_goes_on(engine):
    ours, ends, gate, rested = engine(), Ends(), threading.Event(), []
    first = Work(resting(gate, threading.get_ident), "a", 0.0, ends("rest"), lambda: rested.append(dict(ends.found)))
    ours.submit(first)
    ours.submit(work(ends, "other", 2, 3, 4))
    assert ends.wait(1) == {"other": [4, 9, 16]} and rested == [{}]
    gate.set()
    assert ends.wait(2)["rest"] not in (threading.get_ident(), ours._thread.ident)
    assert ours.stats.ended == 2


def test_a_rest_that_fails_is_told_and_others_go_on(engine):
    ours, ends, gate = engine(), Ends(), threading.Event()
    gate.set()
    ours.submit(Work(resting(gate, lambda: 1 // 0), "a", 0.0, ends("bad")))
    ours.submit(Work(resting(gate, lambda: "good"), "a", 0.0, ends("good")))
    found = ends.wait(2)
    assert isinstance(found["bad"], ZeroDivisionError) and found["good"] == "good"


def test_closing_waits_for_a_rest(engine):
    ours, ends, gate = engine(), Ends(), threading.Event()
    began = threading.Event()
    ours.submit(Work(resting(gate, lambda: "done"), "a", 0.0, ends("rest"), began.set))
    assert began.wait(10)
    threading.Timer(0.05, gate.set).start()
    ours.close()
    assert ends.found == {"rest": "done"}


def test_works_of_one_key_share_calls_at_different_steps(engine):
    network, ends = Squares(4), Ends()
    network.gate.clear()
    ours = engine(network=network)
    ours.submit(work(ends, "long", 1, 2, 3, 4))
    time.sleep(0.05)
    ours.submit(work(ends, "short", 10, 20))
    network.gate.set()
    ends.wait(2)
    assert network.calls == [[1], [2, 10], [3, 20], [4]]


def ready(*entries):
    made = []
    for owner, deadline, key in entries:
        one = Work(steps(), owner, deadline, lambda result, error: None)
        one.ask = Ask(key, None)
        made.append(one)
    return made


def test_the_most_urgent_goes_first_with_its_kind():
    works = ready(("a", 3, "x"), ("b", 1, "y"), ("c", 2, "x"), ("d", 9, "y"))
    assert [one.owner for one in pick(works, lambda key: 8)] == ["b", "d"]
    assert pick([], lambda key: 8) == []
    assert len(pick(works, lambda key: 0)) == 1


def test_owners_take_turns():
    works = ready(*(("greedy", n / 10, "x") for n in range(20)), ("shy", 5, "x"), ("late", 7, "x"))
    assert [one.owner for one in pick(works, lambda key: 4)] == ["greedy", "shy", "late", "greedy"]


def test_an_urgent_work_does_not_wait_for_a_queue(engine):
    network, ends = Squares(1, pause_s=0.002), Ends()
    network.gate.clear()
    ours = engine(network=network)
    for name in range(20):
        ours.submit(work(ends, name, *range(4), deadline=100 + name))
    ours.submit(work(ends, "live", 7, 7, deadline=1))
    assert ours.position(work(ends, "other", deadline=1000)) > 0
    network.gate.set()
    ends.wait(21)
    flat = [what for call in network.calls for what in call]
    assert flat.index(7) <= 2 and flat[flat.index(7) + 1] == 7


def test_a_cancelled_work_ends_before_its_next_step(engine):
    network, ends = Squares(1), Ends()
    network.gate.clear()
    ours = engine(network=network)
    one, other = work(ends, "one", *range(100)), work(ends, "other", 5, deadline=2)
    ours.submit(one)
    ours.submit(other)
    time.sleep(0.05)
    ours.cancel(one)
    network.gate.set()
    found = ends.wait(2)
    assert isinstance(found["one"], CancelledError) and found["other"] == [25]
    assert len(network.calls) <= 3
    ours.cancel(one)  # again: nothing happens


def test_what_fails_fails_alone(engine):
    network, ends = Squares(1), Ends()
    ours = engine(network=network)

    def broken():
        yield Ask("k", 1)
        raise ValueError("odd")

    def never():
        raise ValueError("at once")
        yield

    for name, begin in (("broken", broken), ("never", never), ("bad", steps("bad")), ("good", steps(3))):
        ours.submit(Work(begin, name, 1.0, ends(name)))
    found = ends.wait(4)
    assert found["good"] == [9] and isinstance(found["bad"], MemoryError)
    assert str(found["broken"]) == "odd" and str(found["never"]) == "at once"
    assert wait_for(ours, steps(4)) == [16]
    with pytest.raises(MemoryError):
        wait_for(ours, steps("bad"))


def test_a_full_queue_turns_away(engine):
    network, ends = Squares(1), Ends()
    network.gate.clear()
    ours = engine(network=network, waiting=3)
    taken = 0
    with pytest.raises(BusyError, match="waiting already") as refused:
        for taken in range(100):
            ours.submit(work(ends, taken, 1, deadline=taken))
    assert 3 <= taken <= 6 and refused.value.retry_after_s >= 1 and refused.value.http_status == 429
    assert ours.stats.turned_away == 1
    network.gate.set()
    ends.wait(taken)
    assert wait_for(ours, steps(2)) == [4]  # room again


def test_closing_tells_everybody():
    network, ends = Squares(1), Ends()
    network.gate.clear()
    ours = LocalEngine(network)
    for name in range(3):
        ours.submit(work(ends, name, *range(50)))
    threading.Timer(0.05, network.gate.set).start()
    ours.close()
    assert all(isinstance(error, CancelledError) for error in ends.wait(3).values())
    with pytest.raises(RuntimeError, match="closed"):
        ours.submit(work(ends, "late", 1))


def test_a_stream_of_urgent_works_does_not_keep_an_old_one_waiting_for_ever():
    now, order, done = [0.0], [], threading.Event()

    class Clocked(Squares):
        def answer(self, asks):
            now[0] += 0.5
            return super().answer(asks)

    engine = LocalEngine(Clocked(room=1), clock=lambda: now[0])

    def frame(left):
        def ended(result, error):
            order.append("live")
            if left and not done.is_set():
                frame(left - 1)

        engine.submit(Work(steps(2, key="live"), "live", now[0], ended))

    def ended(result, error):
        order.append("job")
        done.set()

    engine.submit(Work(steps(1, 2, 3, 4), "me", 1e9, ended))
    frame(200)
    assert done.wait(10)
    engine.close()
    assert 8 <= order.index("job") <= 24
