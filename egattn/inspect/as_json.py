"""What `inspect` finds, as JSON."""

import dataclasses
from pathlib import Path
from typing import Any

from egattn.inspect.found import Convertible, DataFound, HuggingFaceFound, Tensors
from egattn.inspect.found_run import RunFound, Size
from egattn.run import lines

# Left out where they are None, for nobody looked; other fields are null then.
_ABSENT = {"parameters", "learned", "size", "verified", "problem", "tensors", "convertible"}
# Their fields stand among those of the record that holds them.
_MERGED = (Size, Tensors, Convertible)


def to_json(found: RunFound | DataFound | HuggingFaceFound) -> str:
    """Returns one object on one line, numbers that are not finite as null.

    Its first key is `kind`: "run", "data" or "hugging_face". The others are the fields of the
    record; what was not looked at is left out.
    """
    return lines.to_json(_plain(found))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return _fields(value) if hasattr(value, "_fields") else value


def _fields(record: Any) -> dict[str, Any]:
    fields = {"kind": record.kind} if hasattr(record, "kind") else {}
    for name, item in record._asdict().items():
        if isinstance(item, _MERGED):
            fields |= _fields(item)
        elif item is not None or name not in _ABSENT:
            fields[name] = _plain(item)
    return fields
