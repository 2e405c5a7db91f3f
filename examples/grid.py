"""Steps against guidance, as one sheet with legends; the embedded model is loaded once."""

from fewstep import Request
from fewstep.grid import Axis, Grid, Setting, paint
from fewstep.grid.sheet import sheet

base = Setting(Request("a red apple, 3d", seed=7))
grid = Grid(base, x=Axis.parse("steps=1-3"), y=Axis("guidance", (1, 1.5)))
painted = list(paint(grid.painting_order()))
pictures = {one.cell.number: one.picture for one in painted if one.picture is not None}
sheet(grid, pictures, footer=["a red apple, 3d, seed 7"]).save("grid.png")
print("grid.png")
