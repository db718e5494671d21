"""The documents: their code runs and prints what they show, their links lead somewhere, their names exist.

Blocks of a document run in order, in one namespace and one temporary folder:

    ```python              runs; what it prints is the ```text block behind it
    ```python raises       raises; the last line of the traceback is the ```text block behind it
    ```python file=PATH    is written to PATH, not run (any language)
    ```console             lines with "$ " (and "> ", which go on) are run by a shell; the others are what it prints
    ```console slow        likewise, in the slow tests alone

In an expected text "..." stands for anything. ``python tests/test_docs.py docs/FILE.md`` runs a document and writes
what it printed into it; look at the difference before you keep it.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import tomllib
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygrad_rnn
from tinygrad_rnn import nn, testing
from tinygrad_rnn.wrap import WRAPPERS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
EXECUTED = ["tutorial", "write-a-cell", "diagnostics", "interchange", "plugins"]
OFFLINE = "--quiet --disable-pip-version-check --no-build-isolation --no-deps"  # for pip: with what is installed here
LEFT_BY_TOOLS = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", "build", "dist"}
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ .*\n(?:> .*\n)*", re.MULTILINE)

needs_docs = pytest.mark.skipif(not DOCS.is_dir(), reason="needs the source tree: docs/ is no part of the wheel")


# ------------------------------------------------------------------------------------------ running


@dataclass
class Block:
    """One fenced block: its language, the words behind it, its text, and the line where the text starts."""

    language: str
    words: list[str]
    body: str
    line: int


def blocks_of(text: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(text):
        language, *words = match[1].split() or [""]
        found.append(Block(language, words, match[2], text.count("\n", 0, match.start(2)) + 1))
    return found


class Runner:
    """Runs the blocks of one document in `folder`; `mismatches` are (line, expected, got)."""

    def __init__(self, name: str, folder: Path, *, slow: bool) -> None:
        self.name = name
        self.folder = folder
        self.slow = slow
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.installed: list[Path] = []  # where Python finds what the document has installed
        self.mismatches: list[tuple[int, str, str]] = []
        self.got: dict[int, str] = {}  # line of a block -> what should stand in it

    def run(self, text: str) -> None:
        blocks = blocks_of(text)
        for i, block in enumerate(blocks):
            after = blocks[i + 1] if i + 1 < len(blocks) and blocks[i + 1].language == "text" else None
            file = next((word.removeprefix("file=") for word in block.words if word.startswith("file=")), None)
            if file is not None:
                path = self.folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.body, encoding="utf-8")
            elif block.language == "python":
                printed = self.python(block)
                if after is not None:
                    self.compare(after, printed)
                elif printed:
                    raise AssertionError(
                        f"{self.name}:{block.line}: prints this, and no text block follows:\n{printed}"
                    )
            elif block.language == "console" and (self.slow or "slow" not in block.words):
                self.console(block)

    def python(self, block: Block) -> str:
        # the empty lines give a traceback the line numbers of the document
        code = compile("\n" * (block.line - 1) + block.body, self.name, "exec")
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), contextlib.chdir(self.folder):
                exec(code, self.namespace)
        except Exception as error:
            if "raises" not in block.words:
                raise AssertionError(f"{self.name}:{block.line}: {traceback.format_exc()}") from error
            return printed.getvalue() + traceback.format_exception_only(error)[-1]
        if "raises" in block.words:
            raise AssertionError(f"{self.name}:{block.line}: should raise")
        return printed.getvalue()

    def console(self, block: Block) -> None:
        printed = ""
        for match in COMMAND.finditer(block.body):
            command = "\n".join(line[2:] for line in match[0].splitlines())
            printed += match[0] + self.shell(command)
        self.compare(block, printed)

    def shell(self, command: str) -> str:
        """What `command` prints, both streams, as where no terminal is, with the program of this environment."""
        scripts = Path(sys.executable).parent
        if command.startswith("pip install "):
            command = self.install(command.split()[2:])
        elif command.startswith("pip wheel "):
            command = command.replace("pip wheel", f"{sys.executable} -m pip wheel {OFFLINE}", 1)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TINYGRAD_RNN_")}
        environment |= {
            "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join(map(str, self.installed)),
            "PYTHONDONTWRITEBYTECODE": "1",  # a file that is changed twice in a second is read twice
            "COLUMNS": "120",
            "NO_COLOR": "1",
            "PYTHONIOENCODING": "utf-8",
            "TINYGRAD_RNN_DEVICE": "cpu",  # the pages show what a machine without a GPU prints
        }
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            timeout=300,
        )
        lines = [line.rstrip() for line in done.stdout.splitlines()]
        return "".join(line + "\n" for line in lines)

    def install(self, words: list[str]) -> str:
        """The command that installs into a folder of its own, without the network, and not into this environment.

        With -e modules are found in the source. In the quick run nothing but its metadata is then made, and by hand.
        """
        source = self.folder / words[-1].strip("'").partition("[")[0]
        target = self.folder / ".installed"
        self.installed = [source, target] if "-e" in words else [target]
        if "-e" not in words or self.slow:
            return f"{sys.executable} -m pip install {OFFLINE} --upgrade --target {target} {source}"
        project = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))["project"]
        made = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        made.mkdir(parents=True, exist_ok=True)
        (made / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        groups = project["entry-points"].items()
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups]
        (made / "entry_points.txt").write_text("".join(lines))
        return "true"

    def compare(self, block: Block, got: str) -> None:
        got = "".join(line.rstrip() + "\n" for line in got.splitlines())
        self.got[block.line] = got
        flags = doctest.ELLIPSIS | doctest.DONT_ACCEPT_BLANKLINE
        if not doctest.OutputChecker().check_output(block.body, got, flags):
            self.mismatches.append((block.line, block.body, got))


def updated(text: str, runner: Runner) -> str:
    """`text` with what was printed in place of every expected text that no longer fits."""
    wrong = {line for line, _, _ in runner.mismatches}

    def body(match: re.Match[str]) -> str:
        line = text.count("\n", 0, match.start(2)) + 1
        return f"```{match[1]}\n{runner.got[line] if line in wrong else match[2]}```"

    return FENCE.sub(body, text)


def run_document(name: str, folder: Path, *, slow: bool) -> None:
    path = DOCS / f"{name}.md"
    runner = Runner(f"docs/{name}.md", folder, slow=slow)
    runner.run(path.read_text(encoding="utf-8"))
    told = [f"docs/{name}.md:{line}\nexpected:\n{want}got:\n{got}" for line, want, got in runner.mismatches]
    assert not told, "\n".join(told)


def files_of(folder: Path) -> dict[str, str]:
    """The files of a package as they are distributed."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not set(path.parts) & LEFT_BY_TOOLS]
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in paths}


@needs_docs
@pytest.mark.parametrize("name", EXECUTED)
def test_the_code_of_a_document_prints_what_it_shows(name: str, tmp_path: Path, own_registry: None) -> None:
    run_document(name, tmp_path, slow=False)
    for example in (DOCS / "examples").iterdir():
        if (tmp_path / example.name).is_dir():
            assert files_of(tmp_path / example.name) == files_of(example), f"{name}.md makes another {example.name}"


@needs_docs
def test_every_example_is_made_by_a_document() -> None:
    texts = [(DOCS / f"{name}.md").read_text("utf-8") for name in EXECUTED]
    for example in (DOCS / "examples").iterdir():
        assert any(f"file={example.name}/pyproject.toml\n" in text for text in texts)


@needs_docs
@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTED)
def test_the_slow_parts_of_a_document_too(name: str, tmp_path: Path, own_registry: None) -> None:
    if " slow\n" not in (DOCS / f"{name}.md").read_text(encoding="utf-8"):
        pytest.skip("has no slow block")
    run_document(name, tmp_path, slow=True)


def test_the_runner_notices_a_wrong_output(tmp_path: Path) -> None:
    runner = Runner("a document", tmp_path, slow=False)
    text = "```python\nprint(1)\n```\n\n```text\n2\n```\n\n```python\nprint('a b')\n```\n\n```text\na...\n```\n"
    runner.run(text)
    assert [(want, got) for _, want, got in runner.mismatches] == [("2\n", "1\n")]
    assert updated(text, runner) == text.replace("\n2\n", "\n1\n")
    for body in ("print(1)", "1 / 0"):
        with pytest.raises(AssertionError, match="a document:2"):
            Runner("a document", tmp_path, slow=False).run(f"```python\n{body}\n```\n")
    with pytest.raises(AssertionError, match="should raise"):
        Runner("a document", tmp_path, slow=False).run("```python raises\npass\n```\n")


# -------------------------------------------------------------------------------- links, style, modules


@needs_docs
def test_the_cell_of_the_readme_is_a_cell(tmp_path: Path, own_registry: None) -> None:
    """The README's cell as a plugin file: it runs in a model, and its gradients are right to second order."""
    (code,) = [block.body for block in blocks_of((DOCS.parent / "README.md").read_text("utf-8"))
               if block.language == "python"]  # fmt: skip
    (tmp_path / "cell.py").write_text(code, encoding="utf-8")
    (entry,) = tinygrad_rnn.load_plugin_file(tmp_path / "cell.py")
    rng = np.random.default_rng(0)
    cell = entry.cls(3, 4)
    params = {name: value.data for name, value in tinygrad_rnn.init_cell(cell, rng).items()}
    tinygrad_rnn.gradcheck(
        lambda xs, *values: tinygrad_rnn.unroll(cell, dict(zip(params, values, strict=True)), xs).outputs,
        rng.normal(size=(3, 2, 3)),
        *params.values(),
        rng=rng,
    )
    model = tinygrad_rnn.build_model(tinygrad_rnn.ModelConfig(cell=entry.cls.name, hidden=4), 5, entry)
    assert model.forward(model.init(rng), rng.integers(0, 5, (6, 2))).logits.shape == (6, 2, 5)


def documents() -> list[Path]:
    return sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])


def anchors(text: str) -> set[str]:
    """The headings of a document as the fragments of links to them."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@needs_docs
def test_links_lead_somewhere() -> None:
    broken = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, fragment = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            if not there.exists() or (fragment and fragment not in anchors(there.read_text(encoding="utf-8"))):
                broken.append(f"{path.name}: {target}")
    assert not broken


@needs_docs
def test_lines_are_not_too_long() -> None:
    """Prose, code and commands; a line of output or of a table is as long as it is."""
    long = []
    for path in DOCS.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        for block in blocks_of(text):
            if block.language in ("text", "console"):
                text = text.replace(block.body, "".join(COMMAND.findall(block.body)))
        long += [f"{path.name}: {line[:60]}" for line in text.splitlines() if len(line) > 150 and line[0] != "|"]
    assert not long


def modules() -> list[str]:
    """Every module of the library, without its first name: "cell", "ops.linear"."""
    found = pkgutil.walk_packages(tinygrad_rnn.__path__, "tinygrad_rnn.")
    return [name.partition(".")[2] for _, name, _ in found]


@needs_docs
def test_architecture_names_modules_that_exist_and_all_of_them() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\*\*(\w+)(?:\.py|/)\*\*", text))
    top = {name for name in modules() if "." not in name}
    inside = {name.partition(".")[2] for name in modules() if name.startswith("compile.")}
    assert named <= top | inside, "docs/architecture.md names a module that does not exist"
    assert top | inside <= named, "docs/architecture.md says nothing about a module"


@needs_docs
def test_architecture_draws_the_layers_of_import_linter() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = table["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["id"] == "layers"]
    known = set(modules())
    expected = [{name for name in re.findall(r"\w+", layer) if name in known} for layer in layers]
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    drawn = text.partition("top to bottom")[2].partition("\n\n")[2].partition("\n\n")[0]
    assert [set(re.findall(r"\w+", line)) for line in drawn.splitlines()] == [layer for layer in expected if layer]


@needs_docs
def test_documents_name_ops_that_exist() -> None:
    named = {name for path in documents() for name in re.findall(r"\bops\.(\w+)", path.read_text("utf-8"))}
    assert "softplus" in named and not [name for name in named if not hasattr(tinygrad_rnn.ops, name)]


def first_column(document: str, heading: str) -> list[str]:
    """The code at the beginning of every row of the first table under a heading, up to a colon."""
    text = (DOCS / document).read_text("utf-8").partition(f"\n{heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table is not None, heading
    return re.findall(r"^\| `(\w+)[^`]*` \|", table[0], re.MULTILINE)


@needs_docs
@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("## 5. Check it", list(testing.CHECKS)),
        ("### Initialisers", list(nn.INITIALISERS)),
        ("## 11. Wrappers", list(WRAPPERS)),
    ],
)
def test_a_table_names_everything_that_there_is(heading: str, names: list[str]) -> None:
    assert sorted(first_column("write-a-cell.md", heading)) == sorted(names)


# ----------------------------------------------------------------------------------------- public names


def public_names() -> list[str]:
    return [name for name in dir(tinygrad_rnn) if not name.startswith("_")]


def test_the_two_lists_of_public_names_agree() -> None:
    """What type checkers read (the TYPE_CHECKING block) and what runs (_PUBLIC): same names, same origins."""
    tree = ast.parse(inspect.getsource(tinygrad_rnn))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    declared: dict[str, tuple[str, str]] = {}
    exported: list[str] = []
    for statement in block.body:
        if isinstance(statement, ast.Assign):  # __all__: what an import under another name needs to count as public
            exported = ast.literal_eval(statement.value)
            continue
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname is not None, "a re-export says its name twice: import x as x"
            module = (statement.module or "").partition(".")[2]
            assert alias.asname not in declared, f"{alias.asname} is listed twice"
            declared[alias.asname] = (module, alias.name)
    loose = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert "__getattr__" not in loose, "a type checker that sees it takes every misspelt name"
    listed = [name for names in tinygrad_rnn._PUBLIC.values() for name in names.split()]
    assert len(listed) == len(tinygrad_rnn._SOURCES), "a name is given by two modules"
    assert declared == {**tinygrad_rnn._SOURCES, "ops": ("", "ops")}
    assert set(exported) == {name for name, (_, original) in declared.items() if name != original}


@pytest.mark.parametrize("name", public_names())
def test_a_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(tinygrad_rnn, name)
    if name in tinygrad_rnn._SOURCES:
        module, original = tinygrad_rnn._SOURCES[name]
        assert value is getattr(importlib.import_module(f"tinygrad_rnn.{module}"), original)
    if inspect.isfunction(value) or inspect.isclass(value):
        assert has_own_text(value), f"{name} has no docstring"


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Tensr'"):
        _ = tinygrad_rnn.Tensr


def has_own_text(value: Any) -> bool:
    """Whether a function, class or op has a docstring that is neither inherited nor made by @dataclass."""
    text = (value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__) or ""
    return bool(text.strip()) and not text.startswith(f"{value.__name__}(")


@pytest.mark.parametrize("module", modules())
def test_what_is_public_in_a_module_is_documented(module: str) -> None:
    """Every function and class without an underscore, and every public function in such a class."""
    loaded = importlib.import_module(f"tinygrad_rnn.{module}")
    assert loaded.__doc__, "the module has no docstring"
    missing = []
    for name, value in vars(loaded).items():
        if name.startswith("_") or getattr(value, "__module__", None) != loaded.__name__:
            continue
        if not (inspect.isfunction(value) or inspect.isclass(value) or hasattr(value, "vjp")):
            continue
        if not has_own_text(value):
            missing.append(name)
    assert not missing, f"tinygrad_rnn.{module}: no docstring for {', '.join(missing)}"


# ------------------------------------------------------------------------------------------- rewriting


def rewrite(path: Path) -> int:
    """Run a document, slow parts included, and write what it printed into it; the number of changed blocks."""
    text = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(str(path), Path(folder), slow=True)
        runner.run(text)
    path.write_text(updated(text, runner), encoding="utf-8")
    return len(runner.mismatches)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        sys.stdout.write(f"{argument}: {rewrite(Path(argument))} blocks changed\n")
