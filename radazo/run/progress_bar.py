"""The progress bar of a run."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from radazo import validation


@contextmanager
def progress_bar(
    api_name: str, progress: bool | None, num_steps: int | None
) -> Iterator[Callable[[int, float], None]]:
    """Show a progress bar as `minimize` documents; yield `advance(steps, value)`."""
    tqdm = None
    with suppress(ImportError):
        tqdm = importlib.import_module("tqdm.auto").tqdm
    if progress and tqdm is None:
        hint = "Install tqdm: `pip install tqdm`."
        rule = "be None or False without tqdm"
        validation.fail(api_name, "progress", rule, "True", hint)
    if progress is False or tqdm is None:
        yield lambda *_: None
        return
    # `disable=None` hides the bar if the output is not a terminal.
    with tqdm(total=num_steps, disable=None if progress is None else False) as bar:

        def advance(steps: int, value: float) -> None:
            bar.set_postfix_str(f"value {value:.6g}", refresh=False)
            bar.update(steps)

        yield advance


_HINT = "None shows a bar on a terminal where tqdm is installed."
validation.declare(validation.instance, "progress", optional=True, of=bool, hint=_HINT)
