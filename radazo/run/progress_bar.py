"""The progress bar of a run, and deferred signals."""

import importlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from radazo import validation


@contextmanager
def deferred_signals(*numbers: int) -> Iterator[Callable[[], bool]]:
    """Record signals without acting on them, but raise a second Ctrl-C at once."""
    received = []

    def record(number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in received:
            signal.default_int_handler(number, frame)
        received.append(number)

    # Only the main thread handles signals.
    main = threading.current_thread() is threading.main_thread()
    with ExitStack() as stack:
        for number in numbers if main else ():
            handler = signal.getsignal(number)
            # Ignored signals stay ignored, as Ctrl-C in a background job.
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, record)
                stack.callback(signal.signal, number, handler)
        yield lambda: bool(received)


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
