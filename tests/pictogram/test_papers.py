"""The tables of README and card, from a small made-up evaluation."""

from pictogram.papers import by_evaluations, filled, groups, quality

RATE = {"share": 0.5, "low": 0.4, "high": 0.6, "count": 10}


def row(cell, evaluations, group="seen", **more):
    return {"cell": cell, "evaluations": evaluations, "group": group, "top1": RATE, "count": 10} | more


DOCUMENT = {
    "rows": [
        {"cell": "real pictures", "group": "seen", "top1": RATE},
        row("teacher DPM++ 2M guided", 100, frechet=1.0),
        row("teacher DDIM guided", 4, teacher_rms=3.0),
        row("LCM-LoRA", 4, teacher_rms=2.0),
        row("LCM-LoRA", 4, group="held-out style"),
    ]
}


def test_a_way_that_has_no_cell_at_a_number_of_evaluations_leaves_it_empty():
    table = by_evaluations(DOCUMENT["rows"][:4], "teacher_rms", "RMS")
    assert table.splitlines()[2:] == ["| teacher DDIM guided |  |  | 3.00 |  |", "| LCM-LoRA |  |  | 2.00 |  |"]


def test_ceilings_come_first_and_the_many_step_teacher_is_one():
    text = quality(DOCUMENT)
    assert text.index("real pictures") < text.index("teacher DPM++ 2M guided, 100 evaluations") < text.index("LCM-LoRA")


def test_the_card_shows_the_student_and_the_teacher_on_every_group():
    lines = groups(DOCUMENT).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| seen", "| seen", "| held-out style"]


def test_only_what_stands_between_the_marks_is_replaced():
    text = "a\n<!-- TABLE:x -->\nold\n<!-- /TABLE:x -->\nb"
    assert filled(text, "x", "new") == "a\n<!-- TABLE:x -->\nnew\n<!-- /TABLE:x -->\nb"
    assert filled(text, "y", "new") == text
