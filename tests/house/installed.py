"""Every command's main job from a wheel, in a clean environment and another folder.

    python -m tests.house.installed --python=python3.12,python3.13

Builds the wheel, installs it with its dependencies (pip's index is asked), and prints what each command line took.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from tests.command_line import Parser
from tests.house.checkout import ROOT

# Command line -> what its output has; each is started in a folder with nothing of ours. FILES are there before.
FILES = {
    "text.txt": "def add(a, b):\n    return a + b\n" * 200,
    "asked.jsonl": '{"id": 1, "prompt": "def "}\n{"messages": [{"role": "user", "content": "Hello"}]}\n',
    "mine.py": (
        "import dataclasses\nfrom mm01_jax import load_config\n\n\ndef get_config():\n"
        "    return dataclasses.replace(load_config('tiny'), name='mine')\n"
    ),
}
SMALL = ("--config.train.steps=3", "--config.train.batch_size=2", "--config.train.eval_batches=2")
STEPS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("mm01-train", "--help"), "Shipped configs: bench_1b"),
    (("mm01-generate", "--help"), "--chat"),
    (("mm01-eval", "--help"), "perplexity"),
    (("mm01-eval", "perplexity", "--help"), "--source"),
    (("mm01-convert", "--help"), "from-torch"),
    (("mm01-convert", "to-torch", "--help"), "--dialect"),
    (("mm01-plan", "--help"), "--target"),
    (("mm01-tokenize", "--help"), "--shard"),
    (("mm01-tokenize", "--source=text.txt", "--tokenizer=bytes", "--out=tokens"), "1 documents"),
    (("mm01-train", "--config=mine.py", "--dry-run"), '"name": "mine"'),
    (("mm01-train", "--config=tiny", "--workdir=run", *SMALL), "step 3/3"),
    (("mm01-generate", "--checkpoint=run", "--prompt=def ", "--max-tokens=8"), "def "),
    (
        (
            *("mm01-generate", "--checkpoint=run", "--prompts=asked.jsonl", "--out=answered.jsonl"),
            *("--template=minimax-01", "--max-tokens=8"),
        ),
        "answered.jsonl: 2 answers",
    ),
    (("mm01-generate", "--checkpoint=run", "--chat", "--template=minimax-01", "--max-tokens=8"), ""),
    (("mm01-eval", "perplexity", "--checkpoint=run", "--source=text.txt"), "nats a token"),
    (("mm01-convert", "to-torch", "--source=run", "--target=torch", "--dialect=original"), ""),
    (("mm01-convert", "from-torch", "--source=torch", "--target=back"), ""),
    (("mm01-convert", "check", "--source=torch", "--against=back"), ""),
    (("mm01-convert", "inspect", "--source=back"), ""),
    (("mm01-convert", "logits", "--source=torch", "--ids=ids.npy", "--out=logits.npz"), "logits.npz: "),
    (("mm01-convert", "certify", "--source=back", "--against=logits.npz"), ""),
    (("mm01-generate", "--checkpoint=torch", "--prompt=def ", "--max-tokens=8", "--tokenizer=bytes"), "def "),
    (("mm01-plan", "--config=tiny", "--target=h200-8", "--no-compile"), "FITS"),
    (("mm01-plan", "--config=text_01", "--target=v5p-1024", "--no-compile"), "FITS"),
)
PREPARE = """
import importlib.util, numpy, sys
import mm01_jax
assert "jax" not in sys.modules and importlib.util.find_spec("configs") is None
assert importlib.util.find_spec("train_main") is None
numpy.save("ids.npy", numpy.arange(8).reshape(1, 8))
print(mm01_jax.load_config("text_01").name, mm01_jax.generate.__name__, mm01_jax.load.__name__)
"""


def build(folder: pathlib.Path, python: str) -> pathlib.Path:
    """The wheel of this checkout, built from a copy: setuptools leaves files beside what it builds."""
    copy = folder / "source"
    for path in ("mm01_jax", "pallas_kernels", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", str(ROOT / path), str(target)], check=True)
    pip = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder / "wheels"), str(copy)]
    subprocess.run(pip, check=True)
    (wheel,) = (folder / "wheels").glob("mm01_jax-*.whl")
    return wheel


def install(folder: pathlib.Path, python: str, wheel: pathlib.Path) -> pathlib.Path:
    """The folder of the programs of a new environment with the wheel in it."""
    subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
    programs = folder / "venv" / "bin"
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", f"{wheel}[chat]"], check=True)
    return programs


def run(programs: pathlib.Path, folder: pathlib.Path) -> Iterator[tuple[str, float]]:
    """Every line of STEPS in `folder`: (the line, its seconds); AssertionError where one fails."""
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "JAX_PLATFORMS": "cpu"}
    for line, said in (((str(programs / "python"), "-I", "-c", PREPARE), "text_01 generate load"), *STEPS):
        began = time.monotonic()
        done = subprocess.run(
            line,
            cwd=folder,
            env=environment,
            input="hello\n/reset\nhello\n",
            capture_output=True,
            text=True,
            check=False,
        )
        shown = " ".join(line) if line[1] != "-I" else "import mm01_jax"
        assert done.returncode == 0 and said in done.stdout, f"{shown}: {done.returncode}\n{done.stdout}{done.stderr}"
        yield shown, time.monotonic() - began
    answers = [json.loads(text) for text in (folder / "answered.jsonl").read_text().splitlines()]
    assert [answer.get("id") for answer in answers] == [1, None] and all("text" in answer for answer in answers)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("tests.house.installed", __doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreters, with commas between")
    for python in parser.parse_args(argv).python.split(","):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            programs = install(folder, python, build(folder, python))
            print(subprocess.run([programs / "python", "--version"], capture_output=True, text=True).stdout.strip())
            for line, seconds in run(programs, folder / "elsewhere"):
                print(f"  {seconds:6.1f} s  {line}", flush=True)


if __name__ == "__main__":
    main()
