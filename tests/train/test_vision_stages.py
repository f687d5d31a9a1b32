"""The stages of VL-01 as its configs have them, with the smallest of everything, each begun from the one before."""

import dataclasses
import json
import re

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from configs import vl_01_stage1, vl_01_stage2, vl_01_stage3, vl_01_stage4
from mm01_jax.config import Config
from mm01_jax.data.conversation_files import pack_record
from mm01_jax.data.dataset import open_dataset
from mm01_jax.train import loop
from tests import small
from tests.data import conversation_data as data
from tests.train.test_train_vision import part, weights

STAGES = {number: module.get_config() for number, module in enumerate((vl_01_stage1, vl_01_stage2), 1)}
STAGES |= {number: module.get_config() for number, module in enumerate((vl_01_stage3, vl_01_stage4), 3)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Conversations and pairs, each with images in records and as lines of text."""
    folder, found = tmp_path_factory.mktemp("data"), {}
    for kind, answer in (("conversations", None), ("pairs", "no idea.")):
        writer = ArrayRecordWriter(str(folder / f"{kind}.arrayrecord"), "group_size:4")
        for messages, pictures in data.records(48):
            writer.write(pack_record(messages, pictures, answer))
        writer.close()
        rejected = {} if answer is None else {"rejected": answer}
        lines = [json.dumps({"messages": data.conversation(1000 + i, 0)} | rejected) for i in range(48)]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")
        found[kind] = folder / f"{kind}.arrayrecord", folder / f"{kind}.jsonl"
    return found


def shrunk(number: int, files) -> Config:
    """A stage's data, what is frozen and whether images keep their resolution; sizes and times are the test's."""
    stage, base = STAGES[number], small.config(train__sequence_length=data.LENGTH, train__steps=2, train__eval_every=2)
    source, text = map(str, files[stage.data.records])
    grids = data.VISION.grids if len(stage.vision.grids) > 1 else stage.vision.grids
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(data.VISION, grids=grids),
        optimizer=dataclasses.replace(base.optimizer, frozen=stage.optimizer.frozen),
        data=dataclasses.replace(
            stage.data, source=source, mixed_in=stage.data.mixed_in and text, tokenizer="bytes", held_out=0.2
        ),
    )


@pytest.mark.parametrize("stages", [(4,), pytest.param((1, 2, 3, 4), marks=pytest.mark.slow)], ids=str)
def test_a_stage_begins_from_the_one_before_and_moves_all_of_it(stages, files, tmp_path, monkeypatch):
    small.use_one_device(monkeypatch)
    for number in stages:
        origin = str(tmp_path / str(number - 1)) if number - 1 in stages else None
        loop.run(shrunk(number, files), str(tmp_path / str(number)), origin, lambda line: None)
        after = weights(tmp_path / str(number))
        assert {part(path) for path in after} == {"text", "vision", "projector", "image_newline"}
        if origin:
            before = weights(origin)
            assert not any(np.array_equal(weight, after[path]) for path, weight in before.items())


@pytest.mark.parametrize(("number", "between"), [(1, None), (2, 20), (3, None), (4, 1)])
def test_a_stage_has_a_row_of_text_after_so_many_with_images(number, between, files):
    config = shrunk(number, files)
    rows = open_dataset(config.data, data.LENGTH, 320, vision=config.vision, log=lambda line: None).train
    for index in range(44):
        text = re.search(rb"is 10\d\d", bytes(rows.row(index)["tokens"].tolist()))
        assert bool(text) == (between is not None and index % (between + 1) == between)
    if number == 1:
        assert {layout_tiles(rows, sample) for sample in range(12)} <= {0, 2, 4}  # of an image a thumbnail and a tile


def layout_tiles(rows, sample: int) -> int:
    return int(rows.documents.num_tiles_D[sample])


def test_stages_hold_still_what_the_paper_says_and_only_the_first_has_one_resolution():
    assert {number: stage.optimizer.frozen for number, stage in STAGES.items()} == {1: ("text",), 2: (), 3: (), 4: ()}
    assert [len(stage.vision.grids) for stage in STAGES.values()] == [1, 28, 28, 28]
    assert [stage.data.records for stage in STAGES.values()] == ["conversations"] * 3 + ["pairs"]
