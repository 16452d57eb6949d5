"""What a traced program computes."""

import jax


def intermediates(jaxpr):
    """Every array computed by a program and by the programs within it."""
    for equation in equations(jaxpr):
        yield from (variable.aval for variable in equation.outvars)


def equations(jaxpr):
    """Every operation of a program and of the programs within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
