"""X/Y/Z grids: the same picture with other settings, one axis a side; and plain sheets of pictures.

    from fewstep.grid import Axis, Grid, Setting, paint

    grid = Grid(Setting(Request("a red apple, 3d", seed=7)), x=Axis.parse("steps=1-8"), y=Axis("guidance", (1, 1.5, 2)))
    for painted in paint(grid.painting_order()):
        painted.picture.save(f"{painted.cell.number}.png")

`fewstep.grid.folder` keeps all of it in a folder, with sheet, page and table.
"""

from fewstep.grid.axes import Axis
from fewstep.grid.cells import Cell, Grid
from fewstep.grid.contact import contact_sheet, shortened, table
from fewstep.grid.easel import Painted, paint
from fewstep.grid.setting import Setting

__all__ = ["Axis", "Cell", "Grid", "Painted", "Setting", "contact_sheet", "paint", "shortened", "table"]
