"""Weights that a new run begins with: a whole model from one run, or its parts from several.

--init-from=runs/text                    of a model with vision its text model; tower and projector are new
--init-from=runs/text,runs/tower         and the tower from a run that trained one, whatever decoder it had
--init-from=runs/stage1                  all of it
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from mm01_jax import checkpoint
from mm01_jax.checkpoint.disk_grid import WEIGHTS
from mm01_jax.config import Config, ConfigError, Problem, fields
from mm01_jax.config.resume import ROTARY_BASE, model_problems

Log = Callable[[str], None]


def check(config: Config, init_from: str, log: Log) -> None:
    """Whether every origin has weights for `config`, before anything is compiled.

    Raises:
      ConfigError: names every difference that the weights would not survive, and a part that two origins have.
      CheckpointError: an origin holds no checkpoint, or a damaged one.
    """
    given: dict[str, str] = {}
    for origin in init_from.split(","):
        opened = checkpoint.open_checkpoint(origin)
        if opened.notice:
            log(opened.notice)
        before = opened.config
        for part in parts(before, config):
            if part in given:
                allowed = f"one origin of {part or 'the model'}; {given[part]} has it too"
                raise ConfigError([Problem(key="--init-from", got=origin, allowed=allowed, nearest=given[part])])
            given[part] = origin
        problems = _problems(before, config, f"--init-from={origin}")
        if problems:
            raise ConfigError(problems)
        old, new = before.data.tokenizer, config.data.tokenizer
        trained = opened.manifest.step is not None  # a conversion brings no tokenizer: its config has a placeholder
        if trained and old != new:
            log(f"data.tokenizer {old!r} -> {new!r}: the weights of {origin} were trained on the tokens of the former")
        old, new = (fields.get(one, ROTARY_BASE) for one in (before, config))
        if old != new:
            log(f"{ROTARY_BASE} {old} -> {new}: the weights of {origin} learn longer distances")


def parts(before: Config, config: Config) -> tuple[str, ...]:
    """Which attributes of the model of `config` the weights of `before` are; "" is the model itself."""
    if config.vision is None:
        return ("",)
    if before.vision is None:
        return ("text",)
    return ("",) if before.model == config.model else ("vision",)


def load(config: Config, init_from: str, abstract_model: Any, fresh: Callable[[], Any]) -> Any:
    """The model: what the origins have, and the rest as `fresh` makes it; the same order of origins as in `check`."""
    model = None
    for origin in init_from.split(","):
        before = checkpoint.open_checkpoint(origin).config
        for part in parts(before, config):
            if not part:
                return checkpoint.load_weights(origin, abstract_model)
            model = fresh() if model is None else model
            prefix = WEIGHTS + "vision/" if part == "vision" else WEIGHTS
            opened = checkpoint.open_checkpoint(origin, prefix)
            setattr(model, part, opened.restore(getattr(abstract_model, part), cast=True))
    return model


def _problems(before: Config, config: Config, origin: str) -> list[Problem]:
    found = parts(before, config)
    problems = [] if found == ("vision",) else model_problems(before, config, origin)
    if before.vision is None or config.vision is None:
        return problems
    # How images are cut and which token they are is not the tower's.
    names = [name for name in fields.field_types(type(config.vision)) if name not in ("grids", "image_token")]
    old, new = (dataclasses.asdict(one.vision) for one in (before, config))
    allowed = f"the value of the tower whose weights lie in {origin}"
    return problems + [
        Problem(key=f"vision.{name}", got=new[name], allowed=allowed, nearest=repr(old[name]))
        for name in names
        if old[name] != new[name]
    ]
