"""Axes made of the request's fields and of words, the order of painting, and what one pipeline does for all cells."""

import itertools

import numpy as np
import pytest
from PIL import Image

from fewstep.errors import CheckpointError, RequestError
from fewstep.grid import Axis, Grid, Setting, paint
from fewstep.grid.axes import KINDS, setting_of
from fewstep.pipeline import Pipeline
from fewstep.request import SPECS, Request
from tests.tiny import tiny_model

BASE = Setting(Request("a red apple in snow", negative_prompt="snow, blur", seed=7))


def request_with(*axes, base=BASE, **values):
    """The request of the cell with these values, by axis name."""
    parsed = [Axis.parse(axis) for axis in axes]
    chosen = [values.get(axis.name.replace("-", "_"), axis.values[-1]) for axis in parsed]
    return setting_of(base, parsed, chosen).request


def test_every_field_but_count_is_an_axis():
    assert {name.replace("-", "_") for name in KINDS} >= set(SPECS) - {"count"}
    assert "count" not in KINDS
    for name, spec in SPECS.items():
        if spec.kind in ("whole", "number") and name != "count":
            low = spec.high if spec.low is None else max(spec.low, spec.multiple)
            assert Axis.parse(f"{name}={low:.10g}").values == (low,), name


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("steps=1-3", "steps", (1, 2, 3)),
        (" Steps = 4", "steps", (4,)),
        ("CFG=1,1.5", "guidance", (1.0, 1.5)),
        ("timesteps=Karras,automatic", "schedule", ("Karras", "automatic")),
        ("clip_skip=1,2", "clip-skip", (1, 2)),
        ("rng=CPU,NV", "rng", ("cpu", "nv")),
        ("sampler=LCM,Euler a,DPM++ SDE Karras", "sampler", ("LCM", "Euler a", "DPM++ SDE Karras")),
        ("size=64x128,128X64", "size", ((64, 128), (128, 64))),
        ("model=pictogram,a/b", "model", (None, "a/b")),
        ("vae=none,v.safetensors", "vae", (None, "v.safetensors")),
        ("lora=none,ink.safetensors:0.5,fox", "lora", (None, ("ink.safetensors", 0.5), ("fox", 1.0))),
        ("lora:ink=0-1 (+0.5)", "lora:ink", (0.0, 0.5, 1.0)),
        ("prompt-sr=apple,pear", "prompt-sr", ("apple", "pear")),
        ("prompt-order=a,b", "prompt-order", (("a", "b"), ("b", "a"))),
        ("seed=1,1,2", "seed", (1, 2)),
    ],
)
def test_axes(text, name, values):
    axis = Axis.parse(text)
    assert (axis.name, axis.values) == (name, values)
    if name not in ("prompt-order", "rng"):
        assert Axis.parse(f"{name}={axis.text}") == axis


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps", "no axis"),
        ("stepz=1", "Did you mean steps"),
        ("zzz=1", "Known are: prompt"),
        ("count=2", "no axis 'count'"),
        ("steps=", "has no values"),
        ("steps=0", "from 1 to 1000"),
        ("guidance=31", "from 0 to 30"),
        ("sampler=Eulr a", "Did you mean Euler a"),
        ("schedule=Karas", "Did you mean Karras"),
        ("rng=gpu", "Choose one of: cpu, nv"),
        ("width=100", "multiples of 8"),
        ("size=12", "no size"),
        ("size=12x64", "width is 12"),
        ("lora:=1", "no axis"),
        ("lora:ink=heavy", "no number"),
        ("lora=ink:nan", "finite"),
        ('prompt-sr="",a', "is empty"),
        ("prompt-order=a", "one order"),
        ("prompt-order=a,b,c,d,e,f,g,h", "at most 7"),
    ],
)
def test_axes_that_are_refused(text, said):
    with pytest.raises(RequestError, match=said):
        Axis.parse(text)


def test_values_from_python_are_checked_too():
    for name, value in (("steps", "4"), ("steps", True), ("lora:ink", "1"), ("size", 3), ("prompt-sr", 1)):
        with pytest.raises(RequestError):
            Axis(name, (value,))
    with pytest.raises(RequestError, match="Give a path"):
        Axis("image", (Image.new("RGB", (64, 64)),))


def test_search_and_replace_is_done_at_once_in_both_prompts():
    request = request_with("prompt-sr=red,snow", "prompt-sr=snow,red")
    assert (request.prompt, request.negative_prompt) == ("a snow apple in red", "red, blur")
    assert request_with('prompt-sr=" red",""').prompt == "a apple in snow"
    assert request_with("prompt-sr=red,(red)").prompt == "a (red) apple in snow"
    assert request_with("prompt-sr=red,blue", "prompt-sr=red apple,pear").prompt == "a pear in snow"
    assert request_with("prompt-order=red,snow").prompt == "a snow apple in red"
    assert request_with("prompt=red,red pear", "prompt-sr=red,blue").prompt == "blue pear"


def test_the_order_of_the_axes_has_no_meaning():
    axes = ("prompt-sr=apple,pear", "prompt=apple,an apple", "prompt-order=apple,an", "steps=1,2")
    found = {request_with(*order) for order in itertools.permutations(axes)}
    assert len(found) == 1


def test_weights_of_loras():
    tagged = Setting(Request("a <lora:ink:te=0.5:unet=2:lbw=OUTALL> <lora:fox:1>"), loras=(("d/ink.safetensors", 1.0),))
    weighed = tagged.with_weight("ink", 0.25)
    assert weighed.request.prompt == "a <lora:ink:0.25:lbw=OUTALL> <lora:fox:1>"
    assert weighed.loras == tagged.loras
    given = Setting(Request("a"), loras=(("d/ink.safetensors", 1.0), ("fox", 0.5)))
    assert given.with_weight("ink", 0.0).all_loras == (("d/ink.safetensors", 0.0), ("fox", 0.5))
    with pytest.raises(RequestError, match="those of this picture are: ink, fox"):
        given.with_weight("owl", 1)
    picked = setting_of(given, [Axis.parse("lora:*=2"), Axis.parse("lora=owl:0.5")], [2.0, ("owl", 0.5)])
    assert picked.all_loras == (*given.all_loras, ("owl", 2.0))
    assert Setting(Request("a"), model="x").all_loras == ()
    both = setting_of(given, [Axis.parse("lora:ink=2"), Axis.parse("lora=owl:0.5")], [2.0, ("owl", 0.5)])
    assert both.all_loras == (("d/ink.safetensors", 2.0), ("fox", 0.5), ("owl", 0.5))
    assert setting_of(both, [Axis.parse("lora:owl=3")], [3.0]).picked == ("owl", 3.0)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({}, "No axis"),
        ({"x": "steps=1,2", "y": "steps=3"}, "two axes"),
        ({"x": "size=64x64", "z": "width=64"}, "size and width"),
        ({"x": "prompt-sr=red,blue", "y": "prompt-sr=red,green"}, "two axes"),
        ({"x": "lora:*=1"}, "there is none"),
        ({"x": "steps=1-100", "y": "seed=1-3"}, "100 x 3 values are 300 pictures"),
        ({"x": "prompt-sr=pear,plum"}, "has no 'pear'"),
        ({"x": "lora:owl=1,2"}, "no LoRA 'owl'"),
        ({"x": "strength=0.5,1"}, "without an image"),
    ],
)
def test_grids_that_are_refused(axes, said):
    with pytest.raises(RequestError, match=said):
        Grid(Setting(BASE.request, model="x"), **{side: Axis.parse(text) for side, text in axes.items()})


def test_more_cells_when_asked_for():
    assert len(Grid(BASE, x=Axis.parse("seed=1-300"), most=300).cells()) == 300


def test_cells_are_numbered_row_by_row():
    cells = Grid(BASE, x=Axis.parse("steps=1,2"), y=Axis.parse("seed=1,2"), z=Axis.parse("rng=cpu,nv")).cells()
    assert [cell.place for cell in cells[:4]] == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]
    assert [cell.number for cell in cells] == list(range(1, 9))
    assert cells[5].labels == ("2", "1", "nv")
    assert [getattr(cells[5].setting.request, name) for name in ("steps", "seed", "rng")] == [2, 1, "nv"]


def test_labels_tell_files_apart():
    assert Axis.parse("model=m/a.safetensors,b").labels == ("a", "b")
    assert Axis.parse("model=m/a.safetensors,n/a.safetensors").labels == ("m/a.safetensors", "n/a.safetensors")
    assert Axis.parse("prompt=photo of Mr.Smith,x").labels == ("photo of Mr.Smith", "x")
    assert Axis.parse('prompt-sr=a,""').labels == ("a", "(nothing)")


# ---------------------------------------------------------------- painting


@pytest.mark.parametrize("names", list(itertools.permutations(("model", "prompt", "steps"))))
def test_what_is_dear_changes_least(names):
    axes = {"model": "model=one,two,three", "prompt": "prompt=a,b", "steps": "steps=1-4"}
    base = Setting(Request("a"), loras=())
    order = Grid(base, *(Axis.parse(axes[name]) for name in names)).painting_order()
    seen = [(cell.setting.model, cell.setting.request.prompt) for cell in order]
    assert sum(one[0] != other[0] for one, other in itertools.pairwise(seen)) == 2
    assert sum(one != other for one, other in itertools.pairwise(seen)) == 5


@pytest.fixture(scope="module")
def pipes():
    return dict.fromkeys(("one", "two"), Pipeline(tiny_model("sd15")))


class Loads:
    """A loader that counts."""

    def __init__(self, pipes, broken=()):
        self.pipes, self.broken, self.asked = pipes, broken, []

    def __call__(self, model, *, vae=None, lora=None):
        self.asked.append((model, vae))
        if model in self.broken:
            raise CheckpointError(f"'{model}' is broken. Get it again.")
        return self.pipes[model]


DEAR = {"model": "model=one,two", "vae": "vae=none,v", "lora:ink": "lora:ink=0,1", "steps": "steps=1,2"}


@pytest.mark.parametrize("names", list(itertools.permutations(("model", "steps", "lora:ink"))))
def test_a_model_is_loaded_once_wherever_its_axis_stands(pipes, names):
    loads = Loads(pipes)
    base = Setting(Request("a <lora:ink:1>", seed=7, steps=1), loras=())
    grid = Grid(base, **{side: Axis.parse(DEAR[name]) for side, name in zip("xyz", names, strict=True)})
    order = grid.painting_order()
    assert sorted(cell.number for cell in order) == list(range(1, 9))
    for _ in paint(order, loads):
        pass
    assert loads.asked == [("one", None), ("two", None)]
    weights = [cell.setting.request.prompt for cell in order]
    assert sum(a != b for a, b in itertools.pairwise(weights)) == 3


def test_the_vae_changes_less_often_than_what_is_cheap_and_more_often_than_the_model(pipes):
    loads = Loads(pipes)
    grid = Grid(
        Setting(BASE.request.replaced(sampler="lcm"), loras=()),
        *(Axis.parse(DEAR[name]) for name in ("steps", "vae", "model")),
    )
    for _ in paint(grid.painting_order(), loads):
        pass
    assert loads.asked == [("one", None), ("one", "v"), ("two", None), ("two", "v")]


def test_what_cannot_be_painted_is_told_and_the_rest_is_painted(pipes):
    loads = Loads(pipes, broken=("two",))
    base = Setting(BASE.request.replaced(sampler="lcm"), loras=())
    grid = Grid(base, x=Axis.parse("steps=1,60"), y=Axis.parse("model=one,two"))
    painted = list(paint(grid.painting_order(), loads))
    assert [one.picture is not None for one in painted] == [True, False, False, False]
    assert "60 steps are more" in painted[1].refusal
    assert "broken" in painted[2].refusal
    assert loads.asked == [("one", None), ("two", None)]


def test_errors_of_ours_are_not_refusals(pipes, monkeypatch):
    grid = Grid(Setting(BASE.request, "one", loras=()), x=Axis("steps", (1,)))
    for error, kind in ((KeyError("x"), KeyError), (RuntimeError("CUDA out of memory."), None), (MemoryError(), None)):
        monkeypatch.setattr(Pipeline, "plan", lambda *_, error=error: (_ for _ in ()).throw(error))
        if kind is None:
            assert "memory" in next(paint(grid.cells(), Loads(pipes))).refusal
        else:
            with pytest.raises(kind):
                next(paint(grid.cells(), Loads(pipes)))


def test_a_cell_is_what_the_pipeline_paints(pipes):
    grid = Grid(Setting(BASE.request, "one", loras=()), x=Axis.parse("sampler=LCM,Euler a"), y=Axis.parse("steps=1,2"))
    for one in paint(grid.painting_order(), Loads(pipes)):
        alone = pipes["one"](one.cell.setting.request)
        assert np.array_equal(np.asarray(one.picture), np.asarray(alone))
        assert one.picture.info["parameters"] == alone.info["parameters"]
        assert one.ms > 0
