"""The rules of the house, read from its sources: who imports whom, what is private, how long it is.

Every import counts, those in functions and those for type checkers too, and so do the packages on
the way to a module, whose `__init__` it runs. Nothing is imported here.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("egattn", "experiments", "benchmarks", "tests")
# Lowest first: a unit imports from lower rows. "egattn._" stands for all modules with such names,
# "egattn" for what `import egattn` gives.
ROWS = (
    ("egattn._",),
    ("egattn.attention", "egattn.run", "egattn.cem"),
    ("egattn.entropy",),
    ("egattn.sharding", "egattn.optimizer"),
    ("egattn.data", "egattn.model", "egattn.flow"),
    ("egattn",),
    ("egattn.train",),
    (
        *("egattn.private", "egattn.report", "egattn.convert", "egattn.generate"),
        *("egattn.compile", "egattn.inspect", "egattn.doctor"),
    ),
    ("egattn.cli",),
    (
        *("experiments", "experiments.demo", "experiments.paper", "experiments.private_inference"),
        *("experiments.active_matter", "experiments.zeta"),
    ),
    ("benchmarks",),
    ("tests",),
)
ROW = {unit: number for number, units in enumerate(ROWS) for unit in units}
# In these rows units may import each other, without circles.
SIDEWAYS = (ROW["egattn._"], ROW["egattn.report"])
LONGEST = {"file": 400, "loop": 200, "function": 60}


class Module(NamedTuple):
    """A source file."""

    path: Path
    text: str
    tree: ast.Module


House = dict[str, Module]


def house(root: Path) -> House:
    """All modules by their dotted names."""
    found = {}
    for path in sorted(path for top in TOPS for path in (root / top).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if path.stem == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found[name] = Module(path, text, ast.parse(text))
    return found


def imports(modules: House) -> dict[str, set[str]]:
    """The modules of the house that each module imports."""
    return {name: set(_imported(modules, name)) - {name} for name in modules}


def _imported(modules: House, name: str) -> Iterator[str]:
    path, _, tree = modules[name]
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for target in _targets(tree, package):
        sibling = f"{package}.{target}"
        # Scripts find what lies beside them: their directory is no package.
        scripts = not path.with_name("__init__.py").exists()
        full = sibling if scripts and f"{package}.{target.split('.')[0]}" in modules else target
        parts = full.split(".")
        ways = [".".join(parts[: i + 1]) for i in range(len(parts))]
        exist = [way for way in ways if way in modules]
        # What is named beyond the last one is no module; packages around the importer run anyway.
        yield from exist[-1:]
        yield from (
            way for way in exist[:-1] if "." in way and not f"{name}.".startswith(f"{way}.")
        )


def _targets(tree: ast.Module, package: str) -> Iterator[str]:
    """Dotted names of what is imported, relative ones made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: 1 - node.level or None] if node.level else []
            where = [*around, *filter(None, [node.module])]
            yield from (".".join([*where, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            yield from _texts(node.args)


def _texts(nodes: list[ast.expr]) -> list[str]:
    values = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return [value for value in values if isinstance(value, str)]


def unit(name: str) -> str:
    """What has a place in a row: a package or module of the second level, or of the first."""
    top, first, *_ = [*name.split("."), ""]
    if top == "egattn" and first.startswith("_"):
        return "egattn._"
    return f"{top}.{first}" if first and top in ("egattn", "experiments") else top


def upward(modules: House) -> list[str]:
    """Imports between units that do not lead down."""
    found = []
    for name, others in imports(modules).items():
        for other in others:
            here, there = unit(name), unit(other)
            level = here == there or (ROW[here] == ROW[there] and ROW[here] in SIDEWAYS)
            if not (level or ROW[there] < ROW[here]):
                found.append(f"{name} imports {other}")
    return sorted(found)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle, if there is any."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def of_units(modules: House) -> dict[str, set[str]]:
    """The units that each unit imports."""
    graph: dict[str, set[str]] = {}
    for name, others in imports(modules).items():
        graph.setdefault(unit(name), set()).update({unit(other) for other in others} - {unit(name)})
    return graph


def private(modules: House) -> list[str]:
    """Private names of egattn's that programs use."""
    found = []
    for name, module in modules.items():
        if unit(name) == "benchmarks" or name.startswith("experiments"):
            found += [f"{name}: {used}" for used in _private(module.tree)]
    return found


def _private(tree: ast.Module) -> Iterator[str]:
    ours: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            where = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                full = f"{where}{alias.name}"
                if full.split(".")[0] == "egattn":
                    ours.add(alias.asname or alias.name.split(".")[0])
                    yield from [full] * any(map(_hidden, full.split(".")))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _hidden(node.attr) and _base(node.value) in ours:
            yield ast.unparse(node)
        # Patches: setattr(module, "_name", ...).
        if isinstance(node, ast.Call) and node.args and _base(node.args[0]) in ours:
            names = filter(_hidden, _texts(node.args[1:]))
            yield from (f"{ast.unparse(node.args[0])}.{name}" for name in names)


def _hidden(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _base(node: ast.expr) -> str | None:
    """The name that a chain of attributes begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def long(modules: House) -> list[str]:
    """Files and functions with too many lines."""
    found = []
    for name, module in modules.items():
        kind = "loop" if name == "egattn.run.loop" else "file"
        lines = module.text.count("\n")
        if lines > LONGEST[kind]:
            found.append(f"{name} has {lines} lines")
        for node in ast.walk(module.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST["function"]:
                    found.append(f"{name}.{node.name} has {lines} lines")
    return found


HOUSE = house(ROOT)


def test_every_unit_has_a_row():
    assert {unit(name) for name in HOUSE} - ROW.keys() == set()


def test_imports_lead_down():
    assert upward(HOUSE) == []


def test_a_run_knows_no_tokens_heads_or_decoder():
    known = {name: others for name, others in imports(HOUSE).items() if unit(name) == "egattn.run"}
    found = {unit(other) for others in known.values() for other in others}
    assert found <= {"egattn.run", "egattn._"}


def test_there_is_no_circle():
    assert circle(imports(HOUSE)) == []
    assert circle(of_units(HOUSE)) == []


def test_programs_use_no_private_names():
    assert private(HOUSE) == []


def test_nothing_is_long():
    assert long(HOUSE) == []


class TestRulesNotice:
    """What the rules are for, in houses of a few files."""

    @pytest.fixture
    def build(self, tmp_path):
        def build(files: dict[str, str]) -> House:
            for name, text in files.items():
                path = tmp_path / f"{name.replace('.', '/')}.py"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                if path.parent.name != "private_inference":
                    (path.parent / "__init__.py").touch()
            return house(tmp_path)

        return build

    @pytest.mark.parametrize(
        "text",
        [
            "from egattn.model import decoder",
            "import egattn.model.decoder",
            "from egattn.model.decoder import Decoder",
            "from ..model.decoder import Decoder",
            "def f():\n    import egattn.model.decoder as d",
            "from typing import *\nif TYPE_CHECKING:\n    from egattn.model import decoder",
            "import importlib\nimportlib.import_module('egattn.model.decoder')",
        ],
    )
    def test_an_import_that_leads_up(self, build, text):
        modules = build({"egattn.attention.api": text, "egattn.model.decoder": ""})
        assert "egattn.attention.api imports egattn.model.decoder" in upward(modules)

    def test_an_import_of_a_neighbour(self, build):
        data = build({"egattn.data.a": "import egattn.model.b", "egattn.model.b": ""})
        there = ["egattn.model", "egattn.model.b"]
        assert upward(data) == [f"egattn.data.a imports {name}" for name in there]

    def test_some_neighbours_may(self, build):
        assert (
            upward(build({"egattn.inspect.a": "import egattn.report", "egattn.report.b": ""})) == []
        )

    def test_a_library_that_knows_programs_or_tests(self, build):
        text = "import benchmarks.b\nfrom tests import t"
        modules = build({"egattn.cli": text, "benchmarks.b": "", "tests.t": ""})
        found = {line for line in upward(modules) if line.count(".") > 1}
        assert found == {"egattn.cli imports benchmarks.b", "egattn.cli imports tests.t"}

    def test_circles_of_scripts(self, build):
        scripts = {"a": "from b import x", "b": "def x():\n    import a"}
        modules = build({f"experiments.private_inference.{k}": v for k, v in scripts.items()})
        assert set(circle(imports(modules))) == modules.keys()

    def test_circles_through_packages(self, build):
        text = "from egattn.run import loop"
        modules = build({"egattn.run.loop": "import egattn.run", "egattn.run.__init__": text})
        assert set(circle(imports(modules))) == {"egattn.run", "egattn.run.loop"}

    def test_circles_of_packages(self, build):
        texts = {"inspect.a": "import egattn.report.b", "report.c": "import egattn.inspect.d"}
        texts |= {"report.b": "", "inspect.d": ""}
        modules = build({f"egattn.{name}": text for name, text in texts.items()})
        assert circle(imports(modules)) == []
        assert set(circle(of_units(modules))) == {"egattn.inspect", "egattn.report"}

    @pytest.mark.parametrize(
        "text",
        [
            "from egattn.train import _loop",
            "from egattn._strict import read",
            "from egattn.train.loop import _Loop as Loop",
            "from egattn.train import loop\nloop._Loop()",
            "import egattn.train.loop\negattn.train.loop._Loop()",
            "from egattn.train import loop\nsetattr(loop, '_LIMIT', 3)",
            "from egattn.train import loop\nmock.patch.object(loop, '_LIMIT', 3)",
        ],
    )
    def test_private_names(self, build, text):
        modules = build({"benchmarks.a": text, "experiments.zeta.a": text, "egattn.cli": text})
        assert [line.split(":")[0] for line in private(modules)] == [
            "benchmarks.a",
            "experiments.zeta.a",
        ]

    @pytest.mark.parametrize(
        ("name", "limit", "around"),
        [
            ("egattn.a", 400, "x\n"),
            ("egattn.run.loop", 200, "x\n"),
            ("tests.a", 59, "@g\nasync def f():\n"),
        ],
    )
    def test_length(self, build, name, limit, around):
        head, line = ("", around) if around == "x\n" else (around, "    x\n")
        assert long(build({name: head + limit * line})) == []
        (found,) = long(build({name: head + (limit + 1) * line}))
        assert found.startswith(name)
