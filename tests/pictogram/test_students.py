"""The table of students: what counts as keeping to the teacher, and what a row of it costs."""

import json

import pytest

from pictogram import students as module
from pictogram.students import COLUMNS, LIGHTER, cost_of, keeps, students, table
from tests.tiny import tiny_model

TEACHER = {"recognised": 99.0, "frechet_data": 3.0, "frechet_teacher": 1.0, "recall_teacher": 98.0, "diversity": 5.0}
TEACHER |= {"vendi": 20.0}


@pytest.mark.parametrize(("share", "kept"), [(1.0, True), (0.971, True), (0.969, False), (1.5, True)])
def test_a_column_is_kept_within_three_percent_or_better(share, kept):
    """Of what is better when it is larger; a distance, the other way round."""
    row = {key: value * (2 - share if key.startswith("frechet") else share) for key, value in TEACHER.items()}
    assert keeps(row, TEACHER) == (list(COLUMNS) if kept else [])


def test_a_name_is_bold_where_every_column_is():
    good = TEACHER | {"cell": "PCM", "role": "few", "evaluations": 4}
    bad = good | {"cell": "TCD", "frechet_data": 3.2}
    teacher = TEACHER | {"cell": "teacher", "role": "teacher", "evaluations": 100}
    text = table([teacher, good, bad], [4])
    assert "| **PCM** | **99.0** | **3.00** |" in text and "| TCD | **99.0** | 3.20 |" in text
    assert "| teacher | 99.0 | 3.00 |" in text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the script looks for students, with the package's own LoRA under the name of one."""
    monkeypatch.setattr(module, "STUDENTS", tmp_path)
    return tmp_path


@pytest.mark.embedded
def test_students_are_found_and_drawn_lighter_too(folder):
    stem, name = "pcm-adversarial", "PCM-adversarial"
    (folder / f"{stem}.safetensors").write_bytes((module.assets_path() / "lcm-lora.safetensors").read_bytes())
    found = list(students(tiny_model("pictogram")))
    assert [student.name for student in found] == ["LCM-LoRA", name, f"{name} x {LIGHTER[stem]}"]
    assert [student.weight for student in found] == [1.0, 1.0, LIGHTER[stem]]
    assert found[1].cell(4).steps == 4 and found[1].cell(4).lora


def test_cost_is_samples_minutes_and_where_it_began(folder):
    recipe = json.dumps({"steps": 10, "batch": 6, "accumulate": 2, "start": "somewhere/pcm.safetensors"})
    assert cost_of("pcm-adversarial", {"fewstep.recipe": recipe}) == {"samples": 120, "start": "PCM"}
    (folder / "pcm-adversarial.run").mkdir()
    (folder / "pcm-adversarial.run" / "metrics.jsonl").write_text(
        '{"samples_per_s": 0.1}\n{"samples_per_s": 0.2}\n{}\n'
    )
    assert cost_of("pcm-adversarial", {"fewstep.recipe": recipe})["minutes"] == pytest.approx((120 + 60) / 60)


def test_between_teacher_and_student_the_weights_are_between(folder):
    teacher, student = tiny_model("pictogram"), tiny_model("pictogram")
    for weight in student.unet.parameters():
        weight.data += 1.0
    part = module.between(teacher, student, 0.25)
    for start, end in zip(teacher.unet.parameters(), part.unet.parameters(), strict=True):
        assert (end - start - 0.25).abs().max() < 1e-5
