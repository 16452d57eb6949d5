"""A Griffe extension for the reference: jaxtyping's shapes as people read them."""

import re
from typing import Any

import griffe


class Shapes(griffe.Extension):
    """Shows `Float[Array, "_batch _length"]` as `Float[Array, "batch length"]`.

    Underscores and leading blanks are there for the checker and for linters.
    """

    def on_function_instance(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Tidies the annotations of a function's parameters and of what it returns."""
        for annotation in (func.returns, *(x.annotation for x in func.parameters)):
            _tidy(annotation)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Tidies the annotation of an attribute."""
        _tidy(attr.annotation)


def _tidy(annotation: Any) -> None:
    if not isinstance(annotation, griffe.Expr):
        return
    if isinstance(annotation, griffe.ExprTuple):
        annotation.elements = [
            re.sub(r"(?<=['* ])[_ ]", "", x) if isinstance(x, str) else x
            for x in annotation.elements
        ]
    for part in annotation.iterate(flat=False):
        if part is not annotation:
            _tidy(part)
