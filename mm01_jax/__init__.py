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
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(sorted(_PLACES))}"
        )
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


_STARTED = (sys.argv or [""])[0]
if _STARTED == "-m" or _STARTED.rpartition("/")[2].startswith("mm01-"):  # -m: Python is looking for the module
    from mm01_jax import command, signals

    signals.end_at_once()
    command.refuse_what_is_no_command(sys.orig_argv)  # most modules are no programs
