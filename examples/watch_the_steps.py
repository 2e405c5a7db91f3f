"""Watch a picture form: sampling is a generator, so the caller decides what happens between two steps.

python examples/watch_the_steps.py
"""

import fewstep
from fewstep.request import Request

pipe = fewstep.load()
for step in pipe.steps(Request("a cat on a beach", steps=4, seed=7)):
    print(f"step {step.index + 1} of {step.count}: timestep {step.step.t} -> {step.step.t_next}")
    step.preview()[0].save(f"cat-{step.index + 1}.png")
    # `break` here, and nothing more is computed
