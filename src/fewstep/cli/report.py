"""`fewstep report RUN_FOLDER ...`: the HTML page of a run, made again from its files; of several, side by side."""

import argparse
from pathlib import Path
from typing import Any


def register(subparsers: Any) -> None:
    """Add `report` to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="make the HTML page of training runs",
        description="Make the HTML page of a training run from its folder; several folders are laid side by side.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="folder such as lcm-lora.run")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="page to write [report.html in the run's folder]"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is; returns the exit code."""
    from fewstep.checkpoints.files import write_whole
    from fewstep.cli.output import check_folder
    from fewstep.distill.history import read_history
    from fewstep.distill.page import REPORT, report_page

    folders = arguments.folders
    path = arguments.out or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    text = report_page([read_history(folder) for folder in folders])
    check_folder(path.parent)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    print(path)
    return 0
