"""Pictures as clients send them."""

import base64
import io


def text_of(data):
    """Bytes as clients of A1111 send them."""
    return base64.b64encode(data).decode()


def file_of(image, kind="PNG", **how):
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()
