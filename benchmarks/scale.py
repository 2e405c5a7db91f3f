"""From unit costs to a service: how many GPUs, cores and bits a number of people need, and what a picture costs.

    python benchmarks/scale.py [--people 1000000] [--gpu-fps 37] [--gpu-price 2.0] ...

Every number that goes in is an option; docs/scale.md says which were measured, where, and which are others' or guesses.
"""

from __future__ import annotations

import argparse
import math

from race import keep

PEOPLE = (100, 10_000, 1_000_000)


def parsed() -> argparse.Namespace:
    """The unit costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--people", type=int, nargs="+", default=list(PEOPLE), help="who have the service")
    add("--at-once", type=float, default=0.02, help="share of them that is connected at the busiest time")
    add("--moving", type=float, default=0.25, help="share of a session's time in which its input changes")
    add("--fps", type=float, default=10.0, help="pictures a second that a session wants while it changes")
    add("--gpu-fps", type=float, default=37.1, help="pictures a second of one GPU")
    add("--full", type=float, default=0.7, help="how busy GPUs may be, so that frames do not wait")
    add("--gpu-price", type=float, default=2.0, help="dollars an hour, rented")
    add(
        "--server-ms", type=float, default=3.8, help="of a core, for each frame: decoding, scheduling, encoding, socket"
    )
    add("--core-price", type=float, default=0.04, help="dollars an hour, rented")
    add("--frame-kb", type=float, default=45.0, help="kilobytes of a frame, each way")
    add("--traffic-price", type=float, default=0.05, help="dollars for a gigabyte that goes out")
    add("--moving-day", type=float, default=8.0, help="hours a day that amount to as much as the busiest time")
    return parser.parse_args()


def row(people: int, args: argparse.Namespace) -> dict[str, float]:
    """One size of the service."""
    sessions = people * args.at_once
    frames_s = sessions * args.moving * args.fps
    gpus = max(1, math.ceil(frames_s / (args.gpu_fps * args.full)))
    cores = max(1, math.ceil(frames_s * args.server_ms / 1000 / args.full))
    thousand = 1000 / args.gpu_fps / args.full / 3600 * args.gpu_price
    thousand += args.server_ms / 3600 / args.full * args.core_price
    traffic = args.frame_kb * 1e3 * 1000 / 1e9 * args.traffic_price
    return {
        "people": people,
        "sessions": sessions,
        "frames_s": frames_s,
        "gpus": gpus,
        "server_cores": cores,
        "gbit_s_each_way": frames_s * args.frame_kb * 8e3 / 1e9,
        "dollars_1000_pictures": thousand,
        "dollars_1000_pictures_traffic": traffic,
        "dollars_day": args.moving_day * 3600 * frames_s / 1000 * (thousand + traffic),
    }


def main() -> None:
    """Print a table and, as the last line, one JSON document."""
    args = parsed()
    rows = [row(people, args) for people in args.people]
    print("| people | live at once | pictures/s | GPUs | server cores | Gbit/s | $ / 1000 | + traffic | $ / day |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for one in rows:
        print(
            f"| {one['people']:,} | {one['sessions']:,.0f} | {one['frames_s']:,.0f} | {one['gpus']:,} "
            f"| {one['server_cores']:,} | {one['gbit_s_each_way']:.2f} | {one['dollars_1000_pictures']:.4f} "
            f"| {one['dollars_1000_pictures_traffic']:.4f} | {one['dollars_day']:,.0f} |"
        )
    keep({"benchmark": "scale", **vars(args), "rows": rows})


if __name__ == "__main__":
    main()
