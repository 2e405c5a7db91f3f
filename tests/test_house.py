"""The laws of docs/house.md, held by tests; each guard is also shown a violation, so that one that is blind fails."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FOLDERS = ("src", "tests", "pictogram", "examples", "benchmarks")
OURS = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

FILE_LINES, FUNCTION_LINES = 400, 40
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "onnxruntime", "onnx", "numpy", "safetensors"}
#: Rooms of floors 0-2 and cli, and what even they may import at module level.
LIGHT_ROOMS = {"__init__", "__main__", "errors", "device", "memory", "prompt", "request", "image", "infotext", "plan"}
LIGHT_ROOMS |= {"noise", "foreign", "sampling", "cli"}


def name_of(path):
    return str(path.relative_to(ROOT))


def functions_of(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def too_long(source):
    """Functions above the limit, decorators not counted, docstrings counted."""
    lengths = {f.name: f.end_lineno - f.lineno + 1 for f in functions_of(ast.parse(source))}
    return {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES}


def imported_at_start(source):
    """Top-level packages imported when the module is: not inside functions, not for the type checker alone."""
    found, open_nodes = set(), [ast.parse(source)]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            open_nodes += node.orelse
        else:
            open_nodes += ast.iter_child_nodes(node)
    return found


def is_light(path):
    room = path.relative_to(ROOT / "src" / "fewstep").parts[0].removesuffix(".py")
    return room in LIGHT_ROOMS


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_files_are_one_sitting_and_functions_short(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= FILE_LINES
    assert not too_long(source)


@pytest.mark.parametrize("path", [p for p in SOURCES if is_light(p)], ids=name_of)
def test_light_rooms_import_nothing_heavy(path):
    allowed = {"image": {"numpy"}}.get(path.stem, set())
    assert not (imported_at_start(path.read_text(encoding="utf-8")) & HEAVY) - allowed


def test_the_guards_see_violations():
    assert too_long("def f():\n" + "    x = 1\n" * FUNCTION_LINES) == {"f": FUNCTION_LINES + 1}
    assert not too_long("def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1))
    planted = "try:\n    import torch\nexcept ImportError:\n    pass\nclass A:\n    from numpy import array\n"
    assert imported_at_start(planted) == {"torch", "numpy"}
    assert not imported_at_start("if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch\n")


@pytest.mark.parametrize(
    "program",
    [
        "import fewstep",
        "import fewstep.sampling, fewstep.request, fewstep.infotext, fewstep.device",
        "from fewstep.cli.main import main; assert main(['--help']) == 0",
    ],
    ids=["import fewstep", "floors 0-2", "fewstep --help"],
)
def test_a_light_start_loads_no_torch(program):
    report = "import json, sys; print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    command = [sys.executable, "-c", f"{program}\n{report}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not {"torch", "diffusers", "transformers", "peft", "onnxruntime"} & loaded


# ---------------------------------------------------------------- import contracts


def lint_imports(source):
    """import-linter's exit code and report on a copy of the package."""
    shutil.copy(ROOT / "pyproject.toml", source.parent)
    code = (
        f"import sys; sys.path.insert(0, {str(source)!r}); import importlinter.cli as linter; "
        "sys.exit(linter.lint_imports(no_cache=True, no_logo=True))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=source.parent, timeout=120, check=False
    )


@pytest.fixture
def copy(tmp_path):
    """The package's Python files in a folder of their own."""
    return shutil.copytree(
        ROOT / "src" / "fewstep", tmp_path / "src" / "fewstep", ignore=shutil.ignore_patterns("assets", "__pycache__")
    )


def test_the_import_contracts_hold(copy):
    done = lint_imports(copy.parent)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("room", "line", "contract"),
    [
        ("errors.py", "import fewstep.request", "a room imports only lower floors"),
        ("sampling/guidance.py", "from fewstep.models import vae", "a room imports only lower floors"),
        ("pipeline.py", "import diffusers", "diffusers only in"),
        ("cli/main.py", "def late():\n    from transformers import CLIPTokenizer", "transformers only in"),
        ("distill/trainer.py", "import peft", "peft only in"),
        ("sampling/schedule.py", "import torch", "sampling is arithmetic"),
        ("request.py", "import torch", "know no network library"),
    ],
)
def test_a_planted_import_is_caught(copy, room, line, contract):
    file = copy / room
    file.write_text(f"{file.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    done = lint_imports(copy.parent)
    assert done.returncode == 1
    assert re.search(rf"{contract}.* BROKEN", done.stdout), done.stdout


def test_an_unlisted_room_is_caught(copy):
    (copy / "helpers.py").write_text('"""No floor."""\n')
    assert lint_imports(copy.parent).returncode == 1


# ---------------------------------------------------------------- names, paths, dependencies


def tracked_texts():
    """Text files of the project (not build products): what a commit would hold."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    endings = {".py", ".md", ".toml", ".txt", ".json", ".html", ".ts", ".css", ".yml", "", ".cfg"}
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.suffix in endings and path.is_file()]


def test_no_machine_paths():
    """No file names a home folder, a temporary folder or a scratch place of the machine it was written on."""
    place = re.compile(rb"""(?<![\w.~/-])/(?:work|home|root|Users|mnt|tmp)/\w""")
    found = {name_of(p): m[0] for p in tracked_texts() if (m := place.search(p.read_bytes()))}
    assert not found


def test_words_that_are_not_used_for_ours():
    words = re.compile(r"(?i)(^|_)(cfg|utils?|manager|helpers?|processor|handler)(_|$)|(Manager|Helper|Processor)$")
    found = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        found |= {f"{name_of(path)}: {name}" for name in [*names, path.stem] if words.search(name)}
    assert not found


def requirement_names(lines):
    return {re.split(r"[\[<>=!~; ]", line)[0].lower().replace("_", "-") for line in lines}


def direct_dependencies():
    extras = [line for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines]
    return requirement_names(PROJECT["project"]["dependencies"] + extras) - {"fewstep"}


def test_dependencies_are_ranges_pinned_in_constraints_and_explained():
    declared = PROJECT["project"]["dependencies"]
    assert not [line for line in declared if "==" in line or "<" in line]
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    lines = [line for line in constraints if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line) for line in lines)
    assert not direct_dependencies() - requirement_names(lines)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in sorted(direct_dependencies()) if f"`{name}`" not in readme]


def test_every_import_is_declared():
    allowed = direct_dependencies() | {"pil", "fewstep"} | {name.lower() for name in sys.stdlib_module_names}
    imported = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported |= {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert not {name.lower().replace("_", "-") for name in imported - {"__future__"}} - allowed
