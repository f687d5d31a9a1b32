"""MiniMax-01 in JAX: the names that programs build on. Importing this imports no jax; a name brings what it needs."""

import importlib
import sys

# Name -> the module that has it. `__init__.pyi` says the same to type checkers.
_PLACES = {
    "Config": "config",
    "ConfigError": "config",
    "Loaded": "loading",
    "MeshConfig": "config",
    "Sampling": "inference.sampling",
    "TextModel": "model.decoder",
    "generate": "inference.text",
    "load": "loading",
    "load_config": "config.command_line",
    "make_mesh": "sharding",
}
__all__ = [*_PLACES]


def __getattr__(name: str):
    if name not in _PLACES:
        message = f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(sorted(_PLACES))}"
        raise (ImportError if _is_from_import(sys._getframe(1)) else AttributeError)(message)
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def _is_from_import(frame) -> bool:
    """Whether a frame is in `from mm01_jax import NAME`, which would hide what an AttributeError says."""
    import opcode

    return frame.f_code.co_code[frame.f_lasti] == opcode.opmap["IMPORT_FROM"]


def __dir__() -> list[str]:
    return sorted(__all__)


_STARTED = (sys.argv or [""])[0]
if _STARTED == "-m" or _STARTED.rpartition("/")[2].startswith("mm01-"):  # -m: Python is looking for the module
    import _signal  # built in: nothing is imported before this is done

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # ends without a word, until there is one
    from mm01_jax import signals

    signals.end_at_once()  # first: Ctrl-C may come while the rest is imported

    from mm01_jax import command

    command.refuse_what_is_no_command(sys.orig_argv)  # most modules are no programs
