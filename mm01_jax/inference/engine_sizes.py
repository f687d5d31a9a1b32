"""How large an engine is, and what of it can be none: asked of its constructor before anything is compiled."""

import dataclasses
import typing

from mm01_jax.config.fields import nearest_name
from mm01_jax.inference.engine_request import check_count, check_switch
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.deterministic import CHUNK
from mm01_jax.model.multimodal import VLModel

_KEPT = ("budget", "prefix_bytes", "host_bytes", "path_states", "snapshots")
OTHERS = ("tokenizer", "vocab_size", *_KEPT, "poison", "like")  # arguments of an engine besides its sizes
MOST_SLOTS, MOST_POSITIONS, MOST_GRID = 65_536, 2**30, 256
_BOUNDS = {  # of whole numbers: the least and the most
    "num_slots": (1, MOST_SLOTS),
    "max_length": (1, MOST_POSITIONS),
    "grid": (1, MOST_GRID),
    "pieces": (1, 65_536),
    "wide": (1, 65_536),
    "lanes": (1, 64),
    "steps": (1, 1024),
    "drafts": (0, 16),
    "stop_ids": (1, 1024),
    "logprobs": (0, 100),
    "tiles": (0, 4096),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the shapes of all programs follow from.

    max_length: positions of a slot. grid: tokens of a piece. pieces: at most in one call of prefill; `wide` of them
    make one product where so many are left (faster on an accelerator; `engine_pieces.py`). lanes: prompts of which a
    call takes in a piece each, in one product; on one device (`engine_lanes.py`).
    steps: at most in one call of decode. drafts: tokens guessed in each, 0: none. stop_ids: of one request, at most.
    logprobs: most likely tokens whose log-probabilities are given with each new one. keep_logits: give those, too.
    routed_experts: requests may ask which experts their tokens went to. tiles: of images, in a call of their tower, 0:
    no images are taken. deterministic: answers have the bits of
    training's forward (`model/deterministic.py`).
    """

    num_slots: int
    max_length: int
    grid: int = 64
    pieces: int = 8
    wide: int = 1
    lanes: int = 1
    steps: int = 16
    drafts: int = 0
    stop_ids: int = 8
    logprobs: int = 0
    keep_logits: bool = False
    routed_experts: bool = False
    tiles: int = 0
    deterministic: bool = False

    @classmethod
    def of(cls, **sizes) -> "Sizes":
        """
        Raises:
          ValueError: one of the names is none, or a value may not be; names it and the nearest that may.
        """
        own = [field.name for field in dataclasses.fields(cls)]
        for name in sizes.keys() - set(own):
            names = (*own, *OTHERS)
            near = nearest_name(name, names) or "grid"
            raise ValueError(f"{name}: the engine has no such argument; allowed: {', '.join(names)}; nearest: {near}")
        found = cls(**sizes)
        found._check()
        return found

    def refuse(self, name: str, allowed: str, nearest):
        """Raises the ValueError of a size."""
        raise ValueError(f"{name}: got {getattr(self, name)!r}; allowed: {allowed}; nearest: {nearest}")

    def _check(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                is_large = isinstance(value, int | float) and value > most
                allowed = f"up to {most}" if is_large else f"a whole number at least {least}"
                self.refuse(name, allowed, most if is_large else least)
        for name in ("keep_logits", "routed_experts", "deterministic"):
            check_switch(name, getattr(self, name))
        if self.max_length % self.grid:
            self.refuse("max_length", f"a multiple of grid={self.grid}", -(-self.max_length // self.grid) * self.grid)
        most = 1 if self.wide > 1 or self.tiles or self.deterministic else self.num_slots
        if self.lanes > most:
            allowed = f"1 with wide > 1, tiles or deterministic=True, otherwise up to num_slots={self.num_slots}"
            self.refuse("lanes", allowed, most)
        if self.pieces % self.wide:
            self.refuse("pieces", f"a multiple of wide={self.wide}", -(-self.pieces // self.wide) * self.wide)
        if self.deterministic and self.grid % CHUNK:
            self.refuse("grid", f"a multiple of {CHUNK} with deterministic=True, up to {MOST_GRID}", CHUNK)
        if self.deterministic and self.drafts:
            self.refuse("drafts", "0 with deterministic=True, which computes every token as training does", 0)

    def check_mesh(self, row_shards: int, sequence_shards: int, devices: int) -> None:
        """ValueError where a mesh with so many shards of the rows (of decode) and of the sequence cannot cut them."""
        if self.lanes > 1 and devices > 1:
            self.refuse("lanes", f"1 on {devices} devices", 1)
        if self.tiles % row_shards:
            allowed = f"0, or a multiple of the {row_shards} shards of the rows"
            self.refuse("tiles", allowed, -(-self.tiles // row_shards) * row_shards)
        if self.num_slots % row_shards:
            nearest = max(1, round(self.num_slots / row_shards)) * row_shards
            self.refuse("num_slots", f"a multiple of the {row_shards} shards of the rows", nearest)
        if self.grid % sequence_shards:
            nearest = max(1, round(self.grid / sequence_shards)) * sequence_shards
            allowed = f"up to {MOST_GRID}, a multiple of the {sequence_shards} shards of the sequence"
            self.refuse("grid", allowed, nearest)


def check_engine(model, tiles: int, tokenizer, vocab_size, counts: dict, switches: dict) -> None:
    """ValueError where one of the constructor's other arguments is none.

    Args:
      tiles: of its sizes. counts: bytes (0: none) and other whole numbers by name; `budget` may be None. switches: True
        or False, by name.
    """
    check_model(model)
    if tiles and not isinstance(model, VLModel):
        raise ValueError(f"tiles: got {tiles}; allowed: 0 of a model without a vision tower; nearest: 0")
    if tokenizer is not None:
        check_tokenizer(tokenizer, "a Tokenizer or None")
    if vocab_size is not None:
        check_count("vocab_size", vocab_size, 1, model.config.vocab_size)
    for name, value in counts.items():
        if name != "budget" or value is not None:
            check_count(name, value, 0 if name.endswith("bytes") else 1, None)
    for name, value in switches.items():
        check_switch(name, value)


def check_model(model) -> TextModel | VLModel:
    """The model; ValueError where it is none."""
    check_kind("model", model, TextModel | VLModel)
    return model


def check_tokenizer(tokenizer, allowed: str) -> None:
    """ValueError where an object cannot make ids of texts and texts of ids."""
    missing = [name for name in ("decode", "encode", "vocab_size") if not hasattr(tokenizer, name)]
    if missing:
        got = type(tokenizer).__name__
        raise ValueError(f"tokenizer: got a {got}, which has no {missing[0]}; allowed: {allowed}")


def check_kind(name: str, value, kinds) -> None:
    """ValueError where a value is of none of these classes."""
    if not isinstance(value, kinds):
        names = [kind.__name__ for kind in typing.get_args(kinds) or [kinds]]
        allowed = " or ".join("None" if name == "NoneType" else name for name in names)
        raise ValueError(f"{name}: got a {type(value).__name__}; allowed: {allowed}")
