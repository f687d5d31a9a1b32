"""Signals as a terminal gives them, whatever the launcher of these tests ignores."""

import signal


def as_in_a_terminal() -> None:
    """A launcher may ignore some (`nohup`, `&`): a run obeys that, and the processes it starts inherit it."""
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
