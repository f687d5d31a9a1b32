"""`certify` names the mistake behind an implementation's numbers, or says that it cannot tell; never a wrong name.

The numbers come from the tests' NumPy reference in float64 with one part of it replaced, plus noise of float32's size.
"""

import contextlib
import dataclasses
import functools
import io
import unittest.mock
import warnings
import zipfile

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
import numpy as np
import pytest

from mm01_jax.checkpoint import CheckpointError
from mm01_jax.convert.__main__ import main
from mm01_jax.convert.certify import arrays, judge, mistakes
from mm01_jax.convert.sources import open_source
from tests.convert import samples
from tests.reference import fixture, lightning
from tests.reference import mistakes as reference
from tests.reference.model import forward

NOISE = 4e-7  # relative, of the fixture's logits in float32
BLIND = ("lightning norm eps 1e-5", "lightning q scaled")
# The reference's names and ours, in one order; then the two that are no mistake of a port but of a released kernel.
NAMES = dict(zip(reference.MISTAKES, mistakes.MISTAKES, strict=False)) | dict(
    zip(("D1", "D4"), list(mistakes.MISTAKES)[15:], strict=True)
)
CASES = (*reference.MISTAKES, "D1", "D4")


def chunked(decays):
    """The reference's recurrence in chunks of 256, as kernels compute it, with their decay tables."""

    def recurrence(q, k, v, slope_N, documents_BS, state_BNHH):
        out, state = np.zeros_like(q), np.array(state_BNHH)
        for start in range(0, q.shape[1], 256):
            part = slice(start, start + 256)
            m = q[:, part].shape[1]
            at_query, inside, at_end, through = decays(slope_N[:, None], m)
            scores = np.einsum("btnh,bsnh->bnts", q[:, part], k[:, part]) * inside
            out[:, part] = np.einsum("bnts,bsnh->btnh", scores, v[:, part])
            out[:, part] += np.einsum("btnh,nt,bnhv->btnv", q[:, part], at_query, state)
            state = through[:, :, None] * state + np.einsum("bsnh,ns,bsnv->bnhv", k[:, part], at_end, v[:, part])
        return out, state

    return recurrence


def right_decays(slope_N1, m, shift=0):
    j = np.arange(1, m + 1.0)[None]
    distance = j[:, :, None] - j[:, None, :]
    inside = np.where(distance >= 0, np.exp(-slope_N1[:, :, None] * np.maximum(distance, 0)), 0.0)
    return np.exp(-slope_N1 * (j - shift)), inside, np.exp(-slope_N1 * (m - j)), np.exp(-slope_N1 * m)


def late_decays(slope_N1, m):
    return right_decays(slope_N1, m, shift=1)


def bfloat16_decays(slope_N1, m):
    rounded = slope_N1.astype("bfloat16").astype(np.float64)
    return tuple(table.astype("bfloat16").astype(np.float64) for table in right_decays(rounded, m))


KERNELS = {"D1": late_decays, "D4": bfloat16_decays}


@functools.cache
def numbers(name: str, dtype: str = "float32") -> dict:
    """Logits and states as an implementation with this mistake would save them."""
    weights, ids = fixture.weights(), fixture.load()["ids"]
    if name in KERNELS:
        with unittest.mock.patch.object(lightning, "recurrence", chunked(KERNELS[name])):
            result = forward(fixture.CONFIG, weights, ids)
    elif name == "none":
        result = forward(fixture.CONFIG, weights, ids)
    else:
        result = reference.forward_with(reference.MISTAKES[name], fixture.CONFIG, weights, ids)
    stream = np.random.RandomState(0)
    found = {"logits": result.logits_BSV} | {f"state_{i}": state for i, state in enumerate(result.states)}
    for key, x in found.items():
        noise = NOISE * np.sqrt(np.mean(x**2)) * stream.standard_normal(x.shape)
        found[key] = (x + noise).astype(dtype).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certify") / "in"
    return samples.write(directory, samples.settings("original", fixture.CONFIG, "float32"), fixture.weights(), 1)


@pytest.fixture(scope="module")
def verdicts(source):
    """(name, what was given) -> verdict; every hypothesis is run once for all of them."""
    others = {("none", "states"): numbers("none"), ("none", "bfloat16"): numbers("none", "bfloat16")}
    for name in CASES:
        others[name, "states"] = numbers(name)
        others[name, "logits"] = {"logits": numbers(name)["logits"]}
        others[name, "bfloat16"] = numbers(name, "bfloat16")
    return judge.judge(open_source(source), others, fixture.load()["ids"])


@pytest.mark.parametrize("given", ["states", "logits"])
@pytest.mark.parametrize("name", [name for name in CASES if name not in BLIND])
def test_mistake_in_float32_is_named(name, given, verdicts):
    verdict = verdicts[name, given]
    assert verdict.named == NAMES[name]
    ranked = sorted(verdict.distances.values())
    assert ranked[0] < 5 and ranked[1] > 100 * ranked[0]


@pytest.mark.parametrize("name", BLIND)
def test_mistake_that_logits_hardly_show_is_not_told_from_the_others(name, verdicts):
    for given in ("states", "logits"):
        assert verdicts[name, given].named is None
        assert NAMES[name] in verdicts[name, given].candidates


@pytest.mark.parametrize("name", CASES)
def test_numbers_in_bfloat16_name_no_mistake(name, verdicts):
    assert verdicts[name, "bfloat16"].named is None
    assert not verdicts[name, "bfloat16"].agrees


def test_right_numbers_agree_and_list_what_they_cannot_exclude(verdicts):
    verdict = verdicts["none", "states"]
    assert verdict.agrees and verdict.named is None
    assert set(verdict.candidates) == {judge.NONE, *(NAMES[name] for name in BLIND)}
    said = judge.report(verdict)
    assert "agrees with this model within the noise of float32" in said


def test_right_numbers_in_bfloat16_are_said_to_be_too_coarse(verdicts):
    verdict = verdicts["none", "bfloat16"]
    assert not verdict.agrees and verdict.candidates == ()
    assert judge.report(verdict)[-1].startswith("cannot tell: no hypothesis explains the numbers within 30 times")


UNLISTED = {
    "rope_theta": {"rope_theta": 1e4},
    "alpha": {"layernorm_linear_attention_alpha": 1.5},
    "experts' alpha of 1 alone": {"layernorm_mlp_alpha": 1.0},
    "one expert": {"num_experts_per_tok": 1},
    "eps of the other norms": {"rms_norm_eps": 1e-4},
    "another eps of the lightning norm": {"lightning_norm_eps": 1e-3},
}


def test_mistakes_that_are_not_on_the_list_get_no_name_of_one_that_is(source):
    ids, others = fixture.load()["ids"][:, :24], {}
    for name, fields in UNLISTED.items():
        result = forward(dataclasses.replace(fixture.CONFIG, **fields), fixture.weights(), ids)
        others[name] = {"logits": result.logits_BSV.astype(np.float32)}
    for name, verdict in judge.judge(open_source(source), others, ids).items():
        assert verdict.named is None and not verdict.agrees, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mistake_is_named_or_not_told_on_few_ids_of_another_model_whose_weights_are_of_any_dtype(dtype, tmp_path):
    weights = samples.tensors("original", dtype=dtype)
    source = samples.write(tmp_path / "in", samples.settings("original", dtype=dtype), weights, 1)
    weights = {name: w.astype(np.float64) for name, w in weights.items()}
    for length in (1, 2, 24):
        ids, others = np.random.RandomState(length).randint(0, samples.CONFIG.vocab_size, (2, length)), {}
        for name, mistake in reference.MISTAKES.items():
            if "rotary_dim" in mistake.config:
                mistake = dataclasses.replace(mistake, config={"rotary_dim": samples.CONFIG.head_dim})
            result = reference.forward_with(mistake, samples.CONFIG, weights, ids)
            others[name] = {"logits": result.logits_BSV.astype(np.float32)}
        for name, verdict in judge.judge(open_source(source), others, ids).items():
            assert verdict.named in (NAMES[name], None), (name, length)
            assert verdict.named or NAMES[name] in verdict.candidates, (name, length)


def test_mistake_far_nearer_than_no_mistake_is_not_said_to_agree():
    distances = {judge.NONE: 29.0, "eps": 1.3, "other": 5000.0}
    verdict = judge.Verdict(("eps", judge.NONE), distances, {}, 1e-7)
    assert not verdict.agrees and verdict.named is None
    assert judge.report(verdict)[-1] == "cannot tell between: eps; no mistake"


def test_mistake_of_later_chunks_cannot_be_excluded_on_short_inputs(source):
    ids = fixture.load()["ids"][:, :200]
    right = forward(fixture.CONFIG, fixture.weights(), ids).logits_BSV.astype(np.float32)
    verdict = judge.judge(open_source(source), {"": {"logits": right}}, ids)[""]
    assert verdict.agrees and NAMES["D1"] in verdict.candidates


def test_commands_certify_numbers_and_checkpoints_by_exit_code(source, tmp_path, capsys):
    ids = fixture.load()["ids"][:, :24].astype(np.int32)
    np.save(tmp_path / "ids.npy", ids)
    out = tmp_path / "out.npz"
    assert main(["logits", f"--source={source}", f"--ids={tmp_path / 'ids.npy'}", f"--out={out}"]) == 0
    found = np.load(out)
    assert found["logits"].shape == (1, 24, 97) and found["logits"].dtype == np.float32
    assert [name for name in found.files if name.startswith("state_")] == [f"state_{i}" for i in range(7)]
    assert main(["certify", f"--source={source}", f"--against={out}"]) == 0
    assert "agrees with this model" in capsys.readouterr().out
    plain = samples.settings("original", fixture.CONFIG, "float32") | {"rotary_dim": 16}
    samples.write(tmp_path / "wrong", plain, fixture.weights(), 1)
    arguments = [f"--against={tmp_path / 'wrong'}", f"--ids={tmp_path / 'ids.npy'}"]
    assert main(["certify", f"--source={source}", *arguments]) == 3
    assert "mistake: RoPE over the whole head" in capsys.readouterr().out


def test_numbers_that_do_not_fit_are_refused_by_name(source, tmp_path):
    ids = fixture.load()["ids"][:, :8].astype(np.int32)
    np.savez(tmp_path / "a.npz", ids=ids, logits=np.zeros((1, 8, 96), np.float32))
    np.savez(tmp_path / "b.npz", ids=ids, states=np.zeros(3))
    np.savez(tmp_path / "c.npz", logits=np.zeros((1, 8, 97), np.float32))
    np.savez(tmp_path / "d.npz", ids=ids + 90, logits=np.zeros((1, 8, 97), np.float32))
    (tmp_path / "e.npz").write_bytes(b"\x80\x04K\x01.")
    right = np.zeros((1, 8, 97), np.float32)
    np.savez(tmp_path / "f.npz", ids=ids, logits=right.astype("bfloat16"))
    np.savez(tmp_path / "g.npz", ids=ids, logits=right, state_7=np.zeros((1, 4, 16, 16), np.float32))
    for name, code, words in (
        ("a", 3, "logits has shape [1, 8, 96], the model gives [1, 8, 97]"),
        ("b", 3, "no array 'logits'"),
        ("c", 2, "has none; give --ids"),
        ("d", 3, "allowed: 0 to 96"),
        ("e", 3, "not an .npy or .npz of plain arrays"),
        ("f", 3, "logits is |V2; allowed: float32 (save bfloat16 as that), float64"),
        ("g", 3, "'state_7' is none of the model's; allowed: ids, logits, state_0,"),
    ):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            assert main(["certify", f"--source={source}", f"--against={tmp_path / f'{name}.npz'}"]) == code
        assert words in said.getvalue()


def test_a_file_of_arrays_that_can_mean_two_things_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", logits=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as members, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        members.writestr("logits.npy", members.read("logits.npy"))
    np.save(tmp_path / "ids.npy", np.zeros((1, 2), np.int64))
    assert arrays.read(tmp_path / "ids.npy").shape == (1, 2)
    with open(tmp_path / "ids.npy", "ab") as file:
        file.write(b"\0" * 48)
    for name, said in (("a.npz", "the name 'logits' occurs twice"), ("ids.npy", "48 bytes follow the 16 of its array")):
        with pytest.raises(CheckpointError, match=f"{name}: .*{said}"):
            arrays.read(tmp_path / name)


def test_ids_other_than_those_of_the_numbers_are_refused(source, tmp_path, capsys):
    ids = fixture.load()["ids"][:, :8].astype(np.int32)
    np.savez(tmp_path / "a.npz", ids=ids, logits=np.zeros((1, 8, 97), np.float32))
    np.save(tmp_path / "ids.npy", ids[:, ::-1])
    arguments = [f"--source={source}", f"--against={tmp_path / 'a.npz'}", f"--ids={tmp_path / 'ids.npy'}"]
    assert main(["certify", *arguments]) == 2
    assert "--ids are not the ids in" in capsys.readouterr().err


def test_logits_refuse_a_place_that_is_not_there_before_they_compute(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mm01_jax.convert.certify.logits.compute", lambda *_: pytest.fail("computed"))
    np.save(tmp_path / "ids.npy", np.zeros((1, 2), int))
    arguments = [f"--source={source}", f"--ids={tmp_path / 'ids.npy'}", f"--out={tmp_path / 'no' / 'out.npz'}"]
    assert main(["logits", *arguments]) == 2
    assert "allowed: a file in a folder that exists" in capsys.readouterr().err
