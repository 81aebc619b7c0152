"""What a run shows to the person in front of it, and hears: a bar and signals."""

import importlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from radazo import validation


@contextmanager
def deferred_signals(*numbers: int) -> Iterator[Callable[[], bool]]:
    """Note signals and let what is under way end; Ctrl-C is raised if it repeats."""
    seen = []

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in seen:
            signal.default_int_handler(number, frame)
        seen.append(number)

    # Python calls handlers in the main thread only, and what was told to ignore Ctrl-C
    # (a job in the background) goes on ignoring it.
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in numbers if main}
    heard = [
        n for n, handler in before.items() if handler not in (signal.SIG_IGN, None)
    ]
    for number in heard:
        signal.signal(number, note)
    try:
        yield lambda: bool(seen)
    finally:
        for number in heard:
            signal.signal(number, before[number])


@contextmanager
def progress_bar(
    api_name: str, progress: bool | None, num_steps: int | None
) -> Iterator[Callable[[int, float], None]]:
    """A progress bar as `bar(steps, value)`, of `num_steps` if their number is known;
    without tqdm only if not asked for."""
    try:
        tqdm = importlib.import_module("tqdm.auto").tqdm
    except ImportError:
        tqdm = None
    if progress and tqdm is None:
        validation.fail(
            api_name,
            "progress",
            "be None or False without tqdm",
            "True",
            "Install tqdm: `pip install tqdm`.",
        )
    if progress is False or tqdm is None:
        yield lambda *_: None
        return
    # disable=None hides the bar where the output is no terminal.
    with tqdm(total=num_steps, disable=None if progress is None else False) as bar:

        def advance(steps: int, value: float) -> None:
            bar.set_postfix_str(f"value {value:.6g}", refresh=False)
            bar.update(steps)

        yield advance
