"""Fields of a request as other programs send them: numbers may come as text, and whole ones with a point."""

from __future__ import annotations

from typing import Any

from fewstep import request as asked


def typed(name: str, value: Any) -> Any:
    """The value of a field as the number that the field wants; as it is where it is none, which is refused later.

    >>> typed("seed", " -1"), typed("steps", 4.0), typed("guidance", "1.5"), typed("steps", "many")
    (-1, 4, 1.5, 'many')
    """
    kind = asked.SPECS[name].kind
    if kind not in ("whole", "number") or isinstance(value, bool) or not isinstance(value, (str, float)):
        return value
    try:
        number = float(value)
        if kind == "number" or not number.is_integer():
            return number
        return int(value) if isinstance(value, str) and "." not in value else int(number)
    except (ValueError, OverflowError):
        return value
