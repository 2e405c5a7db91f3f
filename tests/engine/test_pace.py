"""How deep a live session goes, for machines of every kind; what is measured, on a clock of ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewstep.engine.live_request import LiveRequest
from fewstep.engine.local import LocalEngine, wait_for
from fewstep.engine.pace import DEEPEST, GAIN, Pace, measured
from fewstep.engine.painter import depth_of
from fewstep.engine.pictures import Kind, PictureNetwork
from fewstep.pipeline import Pipeline
from fewstep.request import Request
from tests.cheap import CheapUnet
from tests.tiny import tiny_model

SIZES = st.fixed_dictionaries({size: st.floats(1e-4, 1) for size in (1, 2, 3, 4, 6, 8)})


def test_a_gpu_that_meets_the_camera_step_by_step_is_not_deep():
    """30 frames a second, 4 steps at 5.5 ms: 23 ms of lag, where four frames in the making had 109 ms."""
    gpu = Pace({1: 0.0055, 2: 0.006, 4: 0.008}, around_s=0.001)
    assert gpu.depth(4, 1 / 30) == 1
    assert gpu.depth(8, 1 / 30) == 2
    assert gpu.depth(8, 1 / 50) == 4 and gpu.depth(8, 1 / 500) == 4


@pytest.mark.parametrize("per_ask", [0.9, 1.0, 1.1])
@pytest.mark.parametrize("period_s", [0.01, 0.1, 10])
def test_a_cpu_is_never_deep(period_s, per_ask):
    cpu = Pace({1: 0.1, 2: 0.2 * per_ask, 4: 0.4 * per_ask})
    assert all(cpu.depth(steps, period_s) == 1 for steps in range(1, 9))
    assert cpu.at_once(period_s) == 1


@given(SIZES, st.floats(0, 0.1), st.integers(1, 8), st.floats(1e-3, 2))
def test_no_other_depth_is_better(calls_s, around_s, steps, period_s):
    pace = Pace(calls_s, around_s)
    depth = pace.depth(steps, period_s)
    worth = [d for d in calls_s if d == 1 or (d <= min(steps, DEEPEST) and calls_s[d] <= GAIN * d * calls_s[1])]
    assert depth in worth
    times = {d: steps * calls_s[d] / d + around_s for d in worth}
    if times[depth] > period_s:
        assert times[depth] == min(times.values())
    else:
        assert all(times[d] > period_s for d in worth if d < depth)


@given(SIZES, st.floats(1e-3, 2))
def test_as_many_asks_as_fit_and_are_worth_it(calls_s, budget_s):
    found = Pace(calls_s).at_once(budget_s)
    fits = [size for size, s in calls_s.items() if s <= budget_s and s <= GAIN * size * calls_s[1]]
    assert found == max([1, *fits])


class Machine:
    """A clock that goes on by what a call of a UNet takes here: `fixed_s` and `each_s` for each item."""

    def __init__(self, unet, fixed_s, each_s):
        self.now, self.rows, self.fixed_s, self.each_s = 0.0, [], fixed_s, each_s
        self.hook = unet.register_forward_hook(self.called)

    def called(self, unet, given, out):
        self.rows.append(len(given[0]))
        self.now += self.fixed_s + self.each_s * len(given[0])

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def pipe():
    model = tiny_model("sd15")
    model.unet = CheapUnet(model.unet.config)
    return Pipeline(model, batch=8)


@pytest.mark.parametrize(
    ("fixed_s", "each_s", "budget_s", "sizes"),
    [(0.01, 0.001, 1, [1, 2, 3, 4, 6, 8]), (0.01, 0.001, 0.0135, [1, 2, 3, 4]), (0.0, 0.01, 1, [1, 2])],
)
def test_what_is_measured(pipe, fixed_s, each_s, budget_s, sizes):
    engine, machine = LocalEngine(PictureNetwork()), Machine(pipe.model.unet, fixed_s, each_s)
    pace = wait_for(engine, lambda: measured(pipe, budget_s=budget_s, clock=machine))
    machine.hook.remove()
    engine.close()
    assert pace.calls_s == pytest.approx({size: fixed_s + each_s * size for size in sizes})
    assert pace.around_s == 0 and sorted(set(machine.rows)) == sizes


def test_on_a_cpu_calls_are_not_shared(pipe):
    own, engine = Pipeline(pipe.model), LocalEngine(PictureNetwork())
    pace = wait_for(engine, lambda: measured(own, budget_s=10))
    engine.close()
    assert [*pace.calls_s] == [1] and pace.calls_s[1] > 0 and pace.around_s > 0
    assert pace.depth(4, 0.001) == pace.at_once(10) == 1


def test_the_network_takes_it(pipe):
    pace, network = Pace({1: 1.0, 2: 1.1, 4: 1.2, 8: 2.0}), PictureNetwork()
    network.at_once = pace.room(1.5)
    keys = [Kind(None, (1, 4, side // 8, side // 8), ("text",)) for side in (512, 576, 1024)]
    assert [network.room(key) for key in [*keys, object()]] == [4, 2, 1, 1]
    network.at_once = 3
    assert network.room(keys[0]) == 3


def depth(pipe, picture=True, **patch):
    """Of a session at 512 pixels, with frames or with a prompt alone."""
    fields = LiveRequest(Request("a cat", steps=4, guidance=1, width=512, height=512)).patched(patch)
    asked = fields.request
    plan = pipe.plan(fields.of(Image.new("RGB", (asked.width, asked.height)) if picture else None))
    return depth_of(fields, plan, Pace({1: 1.0, 2: 1.1, 4: 1.2, 8: 2.0}), 2.3)


def test_a_session_is_as_deep_as_its_parameters_want(pipe):
    assert depth(pipe) == 2 and depth(pipe, steps=2) == 1
    assert depth(pipe, guidance=2) == 4  # two frames take 4 x 1.2 / 2 each
    assert depth(pipe, guidance=2, guidance_mode="residual") == 2
    assert depth(pipe, picture=False, guidance=2, guidance_mode="residual") == 4  # without a picture it is full
    assert depth(pipe, steps=2, width=1024, height=256) == 1
    assert depth(pipe, steps=2, width=1024, height=512) == 2


def test_a_guided_step_where_nothing_gains():
    assert Pace({1: 0.1, 2: 0.2}).frame_s(4, 1, rows=2) == pytest.approx(0.8)
    assert Pace({1: 0.1}).frame_s(4, 1, rows=2) == pytest.approx(0.8)
    assert Pace({1: 0.1, 2: 0.2}).depth(4, 0.1, rows=2) == 1
