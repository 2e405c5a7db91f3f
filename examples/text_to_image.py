"""Text to picture with the model inside the package: offline, on a CPU.

python examples/text_to_image.py
"""

import fewstep

pipe = fewstep.load()
image = pipe("a red apple, 3d", steps=4, seed=7)
image.save("apple.png")  # the PNG records prompt, seed, steps and the rest
print(image.info["parameters"])
