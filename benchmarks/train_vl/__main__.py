"""MiniMax-VL-01 at CPU size, from nothing to answers about pictures: `make train-vl`.

Four runs: the text model on pictures told in letters, the tower on captions, stage I, stage II. Then questions about
pictures that no run has seen are answered, and report.json says how many rightly, beside chance and training pictures.

    python -m benchmarks.train_vl [--workdir=runs/vl] [--questions=300] [--json=FILE]
"""

import json
import pathlib
import sys
import time

from benchmarks.results import Report, add_json, device
from benchmarks.train_vl.questions import CHANCE, TASKS, messages, questions, write
from benchmarks.train_vl.runs import train
from mm01_jax import loading
from mm01_jax.data.conversations import END
from mm01_jax.inference import pictures
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.text import Settings, answers
from tests.command_line import Parser, whole

GOALS = {"digit": 0.92, "larger": 0.90, "colour": 0.95}
BATCH = 50


def right_answers(loaded: loading.Loaded, task: str, count: int, *, held_out: bool) -> int:
    """Of so many questions those whose whole answer, generated greedily, is right."""
    asked = list(questions(100, count, [task], held_out=held_out))
    settings, right = Settings(12, Sampling(temperature=0.0), 0), 0
    stop = loaded.tokenizer.special(END)
    for start in range(0, count, BATCH):
        some = asked[start : start + BATCH]
        conversations = [messages(question)[:1] for question in some]
        files = [[picture.png for picture in question.pictures] for question in some]
        ids, shown = pictures.prompts(conversations, files, loaded.tokenizer, loaded.config.vision)
        given = answers(loaded.model, loaded.tokenizer, ids, settings, stop, shown)
        right += sum(answer.text == question.answer for answer, question in zip(given, some, strict=True))
    return right


def examples(folder: pathlib.Path, count: int = 10) -> tuple[pathlib.Path, str]:
    """Writes pictures of digits that no run saw, named by what they show; the first and its digit."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = list(questions(101, count, ["digit"], held_out=True))
    paths = [folder / f"{number}_is_{question.answer}.png" for number, question in enumerate(asked)]
    for path, question in zip(paths, asked, strict=True):
        path.write_bytes(question.pictures[0].png)
    return paths[0], asked[0].answer


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.train_vl", __doc__)
    parser.add_argument("--workdir", default="runs/vl")
    parser.add_argument("--questions", type=whole(1), default=300, help="of each task, twice: held out, trained on")
    add_json(parser)
    given = parser.parse_args(argv)
    root, start, count = pathlib.Path(given.workdir), time.monotonic(), given.questions
    write(root / "data")
    took = {"data": round(time.monotonic() - start, 1)} | train(root)
    loaded, asking = loading.load(str(root / "stage2")), time.monotonic()
    scores = {
        task: {
            "held_out": right_answers(loaded, task, count, held_out=True),
            "training": right_answers(loaded, task, count, held_out=False),
            "chance": round(CHANCE[task] * count),
        }
        for task in TASKS
    }
    shown = examples(root / "pictures")
    took |= {"asking": round(time.monotonic() - asking, 1), "all": round(time.monotonic() - start, 1)}
    say(root, Report(given.json, "benchmarks.train_vl", argv), count, scores, took)
    print(f"ask it yourself, about a picture that no run saw (is {shown[1]}):")
    print(f"  mm01-generate --checkpoint={root / 'stage2'} --image={shown[0]} --prompt='<image>digit?' --temperature=0")
    return 0 if all(scores[task]["held_out"] >= goal * count for task, goal in GOALS.items()) else 1


def say(root: pathlib.Path, report: Report, count: int, scores: dict, took: dict[str, float]) -> None:
    """Prints and writes what was right of `count` questions a task, and the seconds of each part."""
    plain = {"questions": count, "goals": GOALS, "right": scores, "seconds": took}
    (root / "report.json").write_text(json.dumps(plain, indent=1) + "\n")
    for task, score in scores.items():
        for kind, right in score.items():
            what = f"vl_tiny, {task}, of {count} questions: {kind.replace('_', ' ')}"
            report.add(what, right, "right answers", device=device())
            report.add(f"{what}, share", 100 * right / count, "%", device=device())
        print(f"{task}: " + ", ".join(f"{kind.replace('_', ' ')} {n / count:.1%}" for kind, n in score.items()))
    for part, seconds in took.items():
        report.add(f"vl_tiny, seconds: {part}", seconds, "s", device=device())
    print(f"{took['all']:.0f} s; {root / 'report.json'}")


if __name__ == "__main__":
    sys.exit(main())
