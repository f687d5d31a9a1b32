"""Does another implementation compute this model? If not, which known mistake explains its numbers.

Every hypothesis (no mistake, each of mistakes.py) is run in float32 on the same ids. An observable (the logits, the
state of a lightning layer) is at distance

    rms(other - hypothesis) / rms(hypothesis),   in multiples of the noise: the same of float32 from float64, no mistake

and a hypothesis is as far as its farthest observable. One is named only if it is within the noise and every other is
SEPARATION times farther; what cannot be told apart is listed instead, and no mistake is among it only as a candidate
like the others where another one is SEPARATION times nearer. Logits of low precision are far from every hypothesis:
nothing is named then, not even the nearest.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from mm01_jax.checkpoint import CheckpointError
from mm01_jax.convert import table
from mm01_jax.convert.certify import images as pictures
from mm01_jax.convert.certify import logits as logits_file
from mm01_jax.convert.certify import vision_mistakes
from mm01_jax.convert.certify.forward import Forward
from mm01_jax.convert.certify.images import Images
from mm01_jax.convert.certify.mistakes import MISTAKES
from mm01_jax.convert.certify.vision import Vision, weights_of
from mm01_jax.convert.certify.walk import Weights, walk
from mm01_jax.convert.sources import check_buffers, open_source
from mm01_jax.messages import say

NONE, _EXACT = "no mistake", "float64"
WITHIN = 30.0  # times the noise: two float32 implementations add in other orders
SEPARATION = 10.0
_IDS = (1, 300)  # default ids: one row, past one chunk of lightning attention


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`candidates` are the hypotheses that the numbers do not exclude, nearest first; `distances` in noise units."""

    candidates: tuple[str, ...]
    distances: dict[str, float]
    layers: dict[str, float]  # observable -> relative distance from no mistake
    noise: float  # relative noise of the logits, or of packed features where these decide alone

    @property
    def agrees(self) -> bool:
        """Whether no mistake is as good an explanation as any."""
        nearest = min(self.distances.values())
        return NONE in self.candidates and self.distances[NONE] < SEPARATION * max(nearest, 1.0)

    @property
    def named(self) -> str | None:
        """The one mistake that explains the numbers, or None."""
        return self.candidates[0] if len(self.candidates) == 1 and NONE not in self.candidates else None


def certify(
    source,
    against,
    *,
    ids: np.ndarray | None = None,
    images: Images | None = None,
    where: str = "ids",
    log: Callable[[str], None] = say,
) -> Verdict:
    """Compares the checkpoint in `source` with `against`: another checkpoint, or an npz of logits (and states).

    Args:
      against: a directory of either kind, or an .npz of `logits` (batch, time, vocab), any `state_<layer>`, and `ids`.
      ids: (batch, time) token ids; default those of the npz, or a fixed sequence of 300.
      images: of a VL checkpoint; default `pixels` and `image_sizes` of the npz. Their tokens, `packed` there, are
        compared too.
      where: what messages call the ids: the file that they were read from.

    Raises:
      CheckpointError: a damaged file, or arrays that do not fit the model.
      ValueError: no ids, or others than those of the npz.
    """
    checkpoint = open_source(source, check_finite=True)
    check_buffers(checkpoint)
    other = None if pathlib.Path(against).is_dir() else logits_file.read_arrays(against)
    if other is not None:
        where = where if ids is not None else str(against)
        ids = _ids_of(other, ids, str(against))
    if ids is None:
        ids = np.random.default_rng(0).integers(0, checkpoint.config.model.vocab_size, _IDS)
    logits_file.check_ids(ids, checkpoint.config.model.vocab_size, where)
    if images is None and other is not None and "pixels" in other:
        of_both = (f"{against}: pixels", f"{against}: image_sizes")
        images = Images(other["pixels"], other.get("image_sizes", np.zeros(0)), of_both)
    if images is not None:
        pictures.check(images, checkpoint.config, ids, where)
    if other is None:
        other = logits_file.compute(against, ids, images, where)
    _check_arrays(other, checkpoint.config.model, ids, str(against))
    verdict = judge(checkpoint, {"": other}, ids, images)[""]
    for line in report(verdict):
        log(line)
    return verdict


def _ids_of(other: dict, ids: np.ndarray | None, where: str) -> np.ndarray:
    if ids is None and "ids" not in other:
        raise ValueError(f"ids: {where} has none; give --ids")
    if ids is not None and "ids" in other and not np.array_equal(ids, other["ids"]):
        raise ValueError(f"--ids are not the ids in {where}, on which its logits were computed; leave --ids out")
    return other["ids"] if ids is None else ids


def _check_arrays(other: dict, model, ids, where: str) -> None:
    """Every array that is compared has the model's shape, and every one that is there is compared."""
    N, H = model.num_heads, model.head_dim
    shapes = {"logits": (*ids.shape, model.vocab_size)}
    for layer in range(model.num_layers):
        if table.mixer(model, layer).state:
            shapes[f"state_{layer}"] = (len(ids), N, H, H)
    if "logits" not in other:
        raise CheckpointError(f"{where}: no array 'logits'; it has {', '.join(other)}")
    given = ("ids", "pixels", "image_sizes", "packed")
    for name in other.keys() - {*given}:
        if name not in shapes:
            allowed = ", ".join(("ids", *shapes, *given[1:]))
            raise CheckpointError(f"{where}: {name!r} is none of the model's; allowed: {allowed}")
        dtype, shape = other[name].dtype, other[name].shape
        if dtype.kind != "f":
            raise CheckpointError(f"{where}: {name} is {dtype}; allowed: float32 (save bfloat16 as that), float64")
        if shape != shapes[name]:
            raise CheckpointError(f"{where}: {name} has shape {list(shape)}, the model gives {list(shapes[name])}")
        if bad := int(np.count_nonzero(~np.isfinite(other[name]))):
            raise CheckpointError(f"{where}: {name} has {bad:,} values that are not finite")


def judge(
    source, others: dict[str, dict[str, np.ndarray]], ids: np.ndarray, images: Images | None = None
) -> dict[str, Verdict]:
    """Runs every hypothesis once and weighs them for each of `others` (name -> arrays as in an npz)."""
    config = source.config.model
    forwards = {NONE: Forward(config), _EXACT: Forward(config, "float64")}
    forwards |= {name: mistake(config) for name, mistake in MISTAKES.items()}
    noise, ours, place = {}, {}, None
    far = {other: {name: {} for name in forwards} for other in others}
    if images is not None:
        forwards, place = _see(source, others, ids, images, far, noise)
    for kind, layer, name, array in walk(Weights(source), ids, forwards, place) if forwards else ():
        observable = "logits" if kind == "logits" else f"state_{layer}"
        for other, arrays in others.items():
            if observable in arrays and kind != "hidden":
                far[other][name][observable] = _distance(arrays[observable], array)
        if name == NONE:
            ours = {observable: array}
        elif name == _EXACT and observable in ours:
            noise[observable] = _distance(ours[observable], array)
    return {other: _weigh(distances, noise) for other, distances in far.items()}


def _see(source, others, ids: np.ndarray, images: Images, far, noise):
    """Adds the hypotheses about vision, and how far each one's packed features are, to `far` and `noise`.

    Returns:
      (the hypotheses that neither their number of tokens nor those features exclude, how each places its images).
    """
    config, weights, is_image = source.config, weights_of(source), pictures.tokens_of_images(source.config.vision, ids)
    visions = {NONE: Vision(config.vision), _EXACT: Vision(config.vision, "float64")}
    visions |= {name: mistake(config.vision) for name, mistake in vision_mistakes.MISTAKES.items()}
    packed = {name: v.images(images.pixels, images.sizes.tolist(), weights) for name, v in visions.items()}
    noise["packed"] = _distance(*(np.concatenate(packed[name]) for name in (NONE, _EXACT)))
    for name in MISTAKES:
        visions[name], packed[name] = visions[NONE], packed[NONE]
    fits = {name for name in packed if pictures.count_problem(is_image, packed[name]) is None}
    possible = set()
    for other, arrays in others.items():
        for name in packed:
            seen = far[other].setdefault(name, {})
            if "packed" in arrays:
                seen["packed"] = _distance(arrays["packed"], np.concatenate(packed[name]))
            elif name not in fits:
                seen["packed"] = np.inf
        nearest = min(seen["packed"] for seen in far[other].values()) if "packed" in arrays else 0.0
        bound = max(SEPARATION * nearest, WITHIN * noise["packed"])
        possible |= {name for name in fits if far[other][name].get("packed", 0.0) <= bound}
    if NONE not in fits and not all("packed" in arrays for arrays in others.values()):
        problem = pictures.count_problem(is_image, packed[NONE])
        raise CheckpointError(f"{images.where[0]}: {problem}; with `packed` a mistake could be named")
    # The noise of what follows is float32's of no mistake, where that has as many tokens.
    names = possible | {NONE, _EXACT} if NONE in fits else set()
    forwards = {}
    for name in (name for name in packed if name in names):
        dtype = "float64" if name == _EXACT else "float32"
        forwards[name] = MISTAKES.get(name, Forward)(config.model, dtype)
        forwards[name].positions_S = visions[name].positions(is_image)
    return forwards, lambda name, embed: pictures.merge(embed, is_image, visions[name].arranged(packed[name]))


def _weigh(far: dict[str, dict[str, float]], noise: dict[str, float]) -> Verdict:
    distances = {
        name: max(d / max(noise[observable], 1e-9) for observable, d in by_observable.items())
        for name, by_observable in far.items()
        if name != _EXACT
    }
    ranked = sorted(distances, key=distances.get)
    bound = max(SEPARATION * distances[ranked[0]], WITHIN)
    explained = distances[ranked[0]] <= WITHIN
    candidates = tuple(name for name in ranked if distances[name] < bound) if explained else ()
    return Verdict(candidates, distances, far[NONE], noise.get("logits", noise.get("packed")))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    distance = float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))
    return distance if np.isfinite(distance) else np.inf


def report(verdict: Verdict) -> list[str]:
    """The verdict in words: observables in the model's order, then the hypotheses, then what follows."""
    where = "logits" if "logits" in verdict.layers else "packed features"
    lines = [f"noise of float32 in the {where}: {verdict.noise:.1e} relative"]
    lines += [f"  {name}: {distance:.1e} from this model" for name, distance in verdict.layers.items()]
    ranked = sorted(verdict.distances.items(), key=lambda item: item[1])
    lines += [f"  {distance:12.1f} x noise from: {name}" for name, distance in ranked]
    best, second = ranked[0], ranked[1]
    if not verdict.candidates:
        what = f"the nearest is {best[1]:.0f} times the noise away"
        lines.append(f"cannot tell: no hypothesis explains the numbers within {WITHIN:.0f} times the noise; {what}")
    elif verdict.agrees:
        lines.append("agrees with this model within the noise of float32")
        others = [name for name in verdict.candidates if name != NONE]
        lines += [f"  cannot exclude: {name}" for name in others]
    elif verdict.named:
        lines.append(f"mistake: {best[0]}; {best[1]:.1f} times the noise away, the next is {second[1]:.0f} times")
    else:
        lines.append(f"cannot tell between: {'; '.join(verdict.candidates)}")
    return lines
