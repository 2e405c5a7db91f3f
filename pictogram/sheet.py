"""Draw the contact sheet of the README with the shipped model: four steps, one seed a prompt, nothing picked by hand.

python -m pictogram.sheet             # -> docs/pictures/first-light.png
"""

import argparse
from pathlib import Path

import fewstep
from fewstep.grid import contact_sheet

PROMPTS = (
    "a red apple, 3d", "a dog, 3d", "a cat, cartoon", "a car, flat", "a heart, glossy", "a pizza, cartoon",
    "a guitar, 3d", "a tree, flat", "a house, 3d", "a star, glossy", "a fish, cartoon", "a rocket, 3d",
    "a rose, cartoon", "a smiley, 3d", "a penguin, flat", "a strawberry, glossy", "a frog, cartoon",
    "a robot, 3d", "a panda, 3d", "a mushroom, flat", "a snowman, 3d", "a butterfly, glossy", "a hamburger, 3d",
    "a lion, cartoon", "a dog on a blue background", "a car on a yellow background", "a pumpkin at night",
    "a sailboat at sunset", "a penguin in the snow", "an elephant in the desert", "a purple heart", "a green car",
    "two apples", "three stars, 3d", "a cat and a banana", "a guitar and a rose",
)  # fmt: skip


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the first prompt; each further one takes the next")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/pictures/first-light.png"))
    args = parser.parse_args()
    pipe = fewstep.load()
    pictures = [pipe(prompt, steps=args.steps, seed=args.seed + i) for i, prompt in enumerate(PROMPTS)]
    contact_sheet(pictures, labels=PROMPTS, columns=9).save(args.output, optimize=True)


if __name__ == "__main__":
    main()
