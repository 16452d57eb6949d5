"""README and docs/: links lead somewhere, commands parse, Python compiles, nothing is missing."""

import ast
import importlib
import itertools
import pkgutil
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

import egattn
from egattn import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Changelog and contributing are pages that include these.
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "experiments").glob("*/README.md")),
]
_OPERATORS = ("&", "&&", "|", "||", ">")
REFERENCE = sorted((DOCS / "api").glob("*.md"))


class Block(NamedTuple):
    """A fenced or indented block of code."""

    language: str
    text: str
    place: str


def blocks(page: Path) -> list[Block]:
    """Fenced blocks, in lists too, and the indented ones between them."""
    found, fence, language, lines = [], None, "", []
    text = page.read_text(encoding="utf-8")
    for number, line in enumerate([*text.splitlines(), ""], 1):
        opening = re.match(r"( *)```(\w*)$", line)
        indented = fence is None and line.startswith("    ")
        if fence is None and opening is None:
            lines += [line[4:]] if indented else []
        if fence is not None and line != f"{fence}```":
            lines.append(line.removeprefix(fence))
        elif opening or (lines and not indented):
            if lines:
                place = f"{page.relative_to(ROOT)}, up to line {number}"
                found.append(Block(language, "\n".join(lines), place))
            fence = opening[1] if opening and fence is None else None
            language, lines = (opening[2] if opening and fence is not None else ""), []
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]


def commands(block: Block, variables: dict[str, str]) -> list[list[str]]:
    """The words of each line that calls `egattn`, its continuation lines included.

    In a transcript, "console", such lines begin with "$ ". Variables of unknown value become 1.
    """
    prompt = r"\$ " if block.language == "console" else ""
    call = re.compile(rf" *{prompt}(?:srun )?(?:\S*/)?egattn (.*)")
    found = []
    for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
        if match := call.match(line):
            text = re.sub(r"\$(\w+)", lambda name: variables.get(name[1], "1"), match[1])
            words = shlex.split(text, comments=True)
            found.append(list(itertools.takewhile(lambda word: word not in _OPERATORS, words)))
    return found


def page_commands(page: Path) -> list[Any]:
    """A page's commands as parameters of a test, the shell variables that it sets put in."""
    sets = re.compile(r'^(?:\$ )?(\w+)="(.*)"$', re.MULTILINE)
    variables = dict(sets.findall(page.read_text(encoding="utf-8")))
    return [
        pytest.param(words, id=f"{block.place}: {' '.join(words)}")
        for block in blocks(page)
        for words in commands(block, variables)
    ]


COMMANDS = [parameter for page in PAGES for parameter in page_commands(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


class Parsed(BaseException):
    """A command got past its options; nothing on the way catches it."""


@pytest.fixture
def only_parse(monkeypatch):
    """Commands stop once their options are parsed, and look for no data or run before that."""
    parse = cli.parse
    # Or modules that are imported meanwhile would keep what is put in place below.
    for module in pkgutil.walk_packages(egattn.__path__, "egattn."):
        if ".attention." not in module.name:
            importlib.import_module(module.name)

    def parse_and_stop(command: str, kind: type, args: Any, default: Any = None) -> Any:
        parse(command, kind, args, default)
        raise Parsed

    manifest = SimpleNamespace(vocab_size=50257, context_length=128)
    monkeypatch.setattr(cli, "parse", parse_and_stop)
    monkeypatch.setattr("egattn.train.config.load_manifest", lambda *args, **kwargs: manifest)
    monkeypatch.setattr("egattn.train.config.inherited", lambda origin: {})
    monkeypatch.setenv("EGATTN_TRACEBACK", "1")


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_parse(words, only_parse, capsys):
    if "--help" in words:
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
        assert "usage: egattn" in capsys.readouterr().out
        return
    # The values of a placeholder, "RUN" or "...", are as good as any other word.
    with pytest.raises(Parsed):
        cli.main([word for word in words if word != "..."])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("egattn evalute RUN", "unknown command 'evalute'"),
        ("egattn generate RUN TEXT --top-q 0.9", "unknown argument '--top-q'"),
        ("egattn train RUN \\\n    --steps many", "invalid literal"),
        ("egattn private exprot RUN DIR  # a remark", "unknown program 'exprot'"),
    ],
)
def test_bad_commands_would_be_noticed(line, message, only_parse):
    (words,) = commands(Block("sh", line, ""), {})
    with pytest.raises(ValueError, match=re.escape(message)):
        cli.main(words)


def test_commands_and_code_were_found():
    """So that the tests above do not pass by finding nothing."""
    assert {parameter.values[0][0] for parameter in COMMANDS} == set(cli._COMMANDS)
    assert {Path(block.place.split(",")[0]).name for block in PYTHON} >= {
        "README.md",
        "generation.md",
    }


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_compiles(block):
    compile(block.text, block.place, "exec")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_imports_names_that_exist(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "egattn":
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)


def anchors(page: Path) -> set[str]:
    """Ids of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", x).strip().lower().replace(" ", "-") for x in headings}


def links(page: Path) -> list[str]:
    """Targets of inline links and images that stay within the repository."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^( *)```.*?^\1```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [target for target in found if not re.match(r"\w+:", target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_internal_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no {target}"
        # mkdocs serves only what is in docs/.
        assert DOCS not in page.parents or DOCS in target.parents, f"{link} leaves docs/"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_links_were_found():
    assert "docs/running.md" in links(ROOT / "README.md")
    assert "start.md" in links(DOCS / "index.md")


def public(module: Any) -> set[str]:
    """Names that a package exports: `__all__`, or what it defines or imports `as` itself."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    names = set()
    for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
        # The package's own modules, which it loads on first use, stand under TYPE_CHECKING.
        for statement in [node, *getattr(node, "body", [])]:
            if isinstance(statement, ast.ImportFrom):
                names |= {alias.asname for alias in statement.names if alias.asname == alias.name}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return {name for name in names if name and not name.startswith("_")}


@pytest.mark.parametrize("page", REFERENCE, ids=lambda page: page.stem)
def test_reference_has_all_that_is_public(page):
    text = page.read_text(encoding="utf-8")
    package = "egattn" if page.stem == "index" else f"egattn.{page.stem}"
    module = importlib.import_module(package)
    entries = re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)
    linked = re.findall(r"\]\[([\w.]+)\]", text)
    assert entries[0] == package
    # A single file is documented whole; of a package each name has its entry.
    if Path(module.__file__ or "").name == "__init__.py":
        assert public(module) <= {name.rpartition(".")[2] for name in entries + linked}


def test_each_public_module_has_a_page():
    packages = {path.parent.name for path in (ROOT / "egattn").glob("*/__init__.py")}
    files = {path.stem for path in (ROOT / "egattn").glob("[!_]*.py")} - {"cli"}
    assert {page.stem for page in REFERENCE} == packages | files | {"index"}


def test_each_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"^ +- .*?([\w/]+\.md)$", text, re.MULTILINE))
    assert named == {str(page.relative_to(DOCS)) for page in PAGES if DOCS in page.parents}
