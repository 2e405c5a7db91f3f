"""Image to image: the strength says how much of the first picture is forgotten.

python examples/image_to_image.py
"""

import fewstep

pipe = fewstep.load()
apple = pipe("a red apple, 3d", seed=7)
for strength in (0.4, 0.6, 0.8):
    pipe("a green pear, 3d", image=apple, strength=strength, steps=4, seed=7).save(f"pear-{strength}.png")
