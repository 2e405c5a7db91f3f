"""One live session's painter: the same pictures as the pipeline's own."""

import numpy as np
from PIL import Image

from fewstep.engine.live import Frame, Order
from fewstep.engine.live_request import LiveRequest
from fewstep.engine.local import LocalEngine, wait_for
from fewstep.engine.painter import LivePainter
from fewstep.engine.pictures import PictureNetwork
from fewstep.pipeline import Pipeline
from fewstep.request import Request
from tests.tiny import tiny_model


def test_an_order_is_the_pipelines_own_picture() -> None:
    pipe = Pipeline(tiny_model())
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    picture, mask = Image.fromarray(noise), Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 40, 40))
    fields = LiveRequest(Request("a red cat", seed=4, steps=2, strength=0.8))
    engine, painter = LocalEngine(PictureNetwork()), LivePainter(pipe)
    for frame in (Frame(1, picture, mask=mask), Frame(2, picture), Frame(3)):
        made = wait_for(engine, lambda frame=frame: painter.paint(Order(frame, 1, fields)))
        alone = pipe(fields.of(frame.picture, frame.mask))
        assert isinstance(alone, Image.Image)
        assert made.tobytes() == alone.tobytes()
    engine.close()
