"""How one live session paints: a frame and the session's parameters as a work of the engine."""

from __future__ import annotations

from fewstep.engine import pictures
from fewstep.engine.live import Order
from fewstep.engine.work import Steps
from fewstep.pipeline import Pipeline


class LivePainter:
    """The `paint` of one `LiveSession`, whose fields are a `LiveRequest`. Not shared between sessions."""

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe = pipe

    def paint(self, order: Order) -> Steps:
        """The steps of an order; the result is its picture. Raises what planning raises: RequestError, LoraError."""
        frame = order.frame
        return pictures.paint(self.pipe, self.pipe.plan(order.fields.of(frame.picture, frame.mask)))
