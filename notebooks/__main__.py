"""Run the notebooks and store them with their outputs.

  python -m notebooks                 all of them
  python -m notebooks first_steps     some of them

The source of a notebook is `NAME.py`, in the percent format of jupytext. Edit that
file, then run this command, which writes `NAME.ipynb`.
"""

import argparse
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def sources() -> dict[str, Path]:
    """Return the source file of each notebook, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("[!_]*.py"))}


def executed(path: Path) -> nbformat.NotebookNode:
    """Run the notebook of a source file, and return it with its outputs."""
    notebook = jupytext.read(path)
    NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
        record_timing=False,
    ).execute()
    # Keep only what does not change from run to run.
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":  # Progress bars and warnings are not results.
            cell.outputs = [x for x in cell.outputs if x.get("name") != "stderr"]
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m notebooks",
        description="Run the notebooks and store them with their outputs.",
    )
    known = sources()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {[*known]}")
    names = parser.parse_args().names or [*known]
    for name in names:
        if name not in known:
            parser.error(f"there is no notebook {name!r}; choose from {[*known]}")
        nbformat.write(executed(known[name]), known[name].with_suffix(".ipynb"))
        print(f"{name}.ipynb")


if __name__ == "__main__":
    main()
