"""How every command ends: what went wrong as a message on stderr instead of a traceback, and one of these exit codes.

    0    done
    2    what was typed is wrong
    3    bad checkpoint or data
    4    too many refused (non-finite) steps
    74   the last step could not be saved
    75   preempted after saving
    130  interrupted
    141  whoever read the output has gone

An exception says its own code in a class attribute `exit_code`. A plain ValueError, an OSError (a file that is not
there) and an error of absl's flags are what was typed. Anything else is a bug: it shows its traceback, and Python's 1.
"""

import os
import sys
from collections.abc import Callable, Sequence

from absl import flags

TYPED, INTERRUPTED, CLOSED_PIPE = 2, 130, 141


def run[Argv: Sequence[str] | None](
    function: Callable[[Argv], int | None], argv: Argv, *, name: str = "", interrupted: str = "interrupted"
) -> int:
    """Calls `function(argv)`, which returns an exit code or None for 0; what it raises becomes a message and a code.

    Args:
      name: of the command, said in front of the message.
      interrupted: what to say after Ctrl-C.
    """
    prefix = f"{name}: " if name else ""
    try:
        code = function(argv) or 0
        sys.stdout.flush()  # a reader that has gone is noticed here, not while Python shuts down
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except KeyboardInterrupt:
        print(f"{prefix}{interrupted}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        print(f"{prefix}{error}", file=sys.stderr)
    return code


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that a person can act on, None of a bug."""
    typed = TYPED if isinstance(error, ValueError | OSError | flags.Error) else None
    return getattr(error, "exit_code", typed)
