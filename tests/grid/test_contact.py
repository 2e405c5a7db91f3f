"""Sheets of pictures: every picture in its place, unharmed."""

import pytest
from PIL import Image

from fewstep.grid.contact import GAP_PX, contact_sheet, shortened, table

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (40, 30), "blue")


def test_a_table_without_labels():
    sheet = table([[RED, BLUE], [None, RED]])
    assert sheet.size == (2 * 40 + 3 * GAP_PX, 2 * 30 + 3 * GAP_PX)
    assert sheet.crop((GAP_PX, GAP_PX, GAP_PX + 40, GAP_PX + 30)).tobytes() == RED.tobytes()
    assert sheet.getpixel((GAP_PX + 5, 2 * GAP_PX + 35)) == (255, 255, 255)


def test_labels_make_room():
    sheet = table([[RED, BLUE]], row_labels=["4 steps"], column_labels=["teacher", "student"])
    plain = table([[RED, BLUE]])
    assert sheet.width > plain.width
    assert sheet.height > plain.height
    right, bottom = sheet.width - GAP_PX, sheet.height - GAP_PX
    assert sheet.crop((right - 40, bottom - 30, right, bottom)).tobytes() == BLUE.tobytes()


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (9, 3)])
def test_contact_sheets_are_nearly_square(count, columns):
    assert contact_sheet([RED] * count).width == columns * 40 + (columns + 1) * GAP_PX
    assert contact_sheet([RED] * count, columns=1).width == 40 + 2 * GAP_PX


def test_labels_below():
    sheet = contact_sheet([RED, BLUE], labels=["seed 1", "seed 2"])
    below = sheet.crop((GAP_PX, GAP_PX + 30, GAP_PX + 40, sheet.height))
    assert below.getextrema() != ((255, 255),) * 3


def test_long_labels_are_shortened():
    assert shortened("a very long label indeed", 60).endswith("..")
    assert shortened("wide", 1) == ""


@pytest.mark.parametrize(
    "call", [lambda: table([]), lambda: contact_sheet([]), lambda: table([[RED]], row_labels=["a", "b"])]
)
def test_mistakes(call):
    with pytest.raises(ValueError, match=r"picture|labels|max"):
        call()
