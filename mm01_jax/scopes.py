"""Where the time of a program goes, by the parts of the model: a profile read through the named scopes of the code.

A trace has an event for every instruction that ran; the compiled program, saved beside it, says which scope each
instruction is of (the innermost). A loop, which contains others, is no event of its own.

    with scopes.traced(folder): run ...
    scopes.save_program(folder, compiled)
    for scope, seconds, launches in scopes.read(folder): ...
"""

import contextlib
import pathlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

# As `jax.named_scope` has them, in the order of a step.
SCOPES = (
    "vision",
    "embed",
    "norms",
    "lightning",
    "softmax",
    "route",
    "exchange",
    "experts",
    "head",
    "loss",
    "optimizer",
)
# What only decoding has: a scope for each operation of one token a row.
DECODE_SCOPES = (
    "norm_step",
    "projection_step",
    "lightning_step",
    "lightning_fold",
    "attention_step",
    "expert_step",
)
OTHER = "other"  # what lies in none: loops, slices of the stacks, sums of gradients
_TRANSFORMED = re.compile(r"(?:(?:jvp|transpose|vmap|remat|checkpoint)\()*(\w+)\)*")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*?[ )}]([a-z][\w\-]*)\(")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
_CONTAIN_OTHERS = ("while", "conditional", "call")


class ScopeTime(NamedTuple):
    """seconds: summed over devices, and over threads on a CPU. launches: instructions of it that ran."""

    scope: str
    seconds: float
    launches: int


def scope_of(op_name: str) -> str:
    """The innermost scope of an instruction's `op_name`: jit(step)/while/body/transpose(jvp(experts))/route/mul is
    route's.
    """
    names = (_TRANSFORMED.fullmatch(part) for part in op_name.split("/"))
    return next((name[1] for name in reversed(list(names)) if name and name[1] in (*SCOPES, *DECODE_SCOPES)), OTHER)


@contextlib.contextmanager
def traced(folder: pathlib.Path | str) -> Iterator[None]:
    """Traces what runs inside into `folder`; wait for it inside."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's calls are many, and are not read here
    jax.profiler.start_trace(str(folder), profiler_options=options)
    try:
        yield
    finally:
        jax.profiler.stop_trace()


def save_program(folder: pathlib.Path | str, compiled: jax.stages.Compiled) -> None:
    """Puts the text of a program that the trace is of beside it."""
    text = compiled.as_text()
    module = re.match(r"HloModule ([\w.\-]+)", text)[1]
    (pathlib.Path(folder) / f"{module}.hlo.txt").write_text(text)


def read(folder: pathlib.Path | str, name: Callable[[str], str] = scope_of) -> list[ScopeTime]:
    """The time of each scope, the dearest first.

    Args:
      folder: of `traced`, with the programs of `save_program`; of several traces the newest is read.
      name: what an instruction counts as, given its `op_name`.

    Raises:
      FileNotFoundError: there is no trace.
    """
    folder = pathlib.Path(folder)
    newest = _newest(folder)
    programs = {path.name.removesuffix(".hlo.txt"): path.read_text() for path in folder.glob("*.hlo.txt")}
    names = {module: _names(text, name) for module, text in programs.items()}
    every = {instruction: label for labels in names.values() for instruction, label in labels.items()}
    seconds, launches = defaultdict(float), Counter()
    for module, instruction, duration in (event for trace in newest for event in _events(trace)):
        label = (names.get(module, {}) if module else every).get(_plain(instruction), OTHER)
        if label is not None:
            seconds[label] += duration
            launches[label] += 1
    times = (ScopeTime(label, seconds[label], launches[label]) for label in seconds)
    return sorted(times, key=lambda time: -time.seconds)


def table(times: list[ScopeTime], most: int = 10) -> list[str]:
    """Lines of the dearest scopes and their shares."""
    total = sum(time.seconds for time in times) or 1.0
    return [
        f"{t.scope:<12}{100 * t.seconds / total:6.1f} %{1e3 * t.seconds:12.3f} ms{t.launches:9,}" for t in times[:most]
    ]


def _plain(instruction: str) -> str:
    """A GPU kernel is called after its instruction, with `_` for what a C name may not have."""
    return re.sub(r"\W", "_", instruction)


def _names(text: str, name: Callable[[str], str]) -> dict[str, str | None]:
    """Instruction -> its name, None of one that contains others.

    One without an `op_name` of its own is what most of the computation that it calls is.
    """
    bodies: dict[str, Counter[str]] = defaultdict(Counter)
    found: dict[str, tuple[str, str]] = {}  # instruction -> (opcode, its own name or the computation that it calls)
    body = ""
    for line in text.splitlines():
        if computation := _COMPUTATION.match(line):
            body = computation[1]
        elif instruction := _INSTRUCTION.match(line):
            op_name, calls = _OP_NAME.search(line), _CALLS.search(line)
            own = name(op_name[1]) if op_name else OTHER
            bodies[body][own] += own != OTHER
            found[instruction[1]] = (instruction[2], own if own != OTHER or not calls else f" {calls[1]}")
    return {_plain(key): _resolved(opcode, own, bodies) for key, (opcode, own) in found.items()}


def _resolved(opcode: str, own: str, bodies: dict[str, Counter[str]]) -> str | None:
    if opcode in _CONTAIN_OTHERS:
        return None
    if not own.startswith(" "):
        return own
    ((label, count),) = bodies[own[1:]].most_common(1) or [(OTHER, 0)]
    return label if count else OTHER


def timeline(folder: pathlib.Path | str) -> Iterator[tuple[str, str, str, float, float]]:
    """(device, kernel, instruction, start, seconds) of all that ran on devices in the newest trace of a folder."""
    for trace in _newest(pathlib.Path(folder)):
        for device, _, instruction, event in _every_event(trace):
            yield device, event.name, instruction, event.start_ns * 1e-9, event.duration_ns * 1e-9


def _newest(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of the newest trace, one a process."""
    traces = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
    if not traces:
        raise FileNotFoundError(f"{folder}: no trace (plugins/profile/*/*.xplane.pb)")
    return [trace for trace in traces if trace.parent == traces[-1].parent]


def _events(trace: pathlib.Path) -> Iterator[tuple[str, str, float]]:
    """(program or "", instruction, seconds) of all that ran on devices; on a CPU, in XLA's threads."""
    for _, module, instruction, event in _every_event(trace):
        yield module, instruction, event.duration_ns * 1e-9


def _every_event(trace: pathlib.Path) -> Iterator[tuple[str, str, str, Any]]:
    """(device, program or "", instruction, event)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the reader's own types (jax 0.12)
        planes = list(jax.profiler.ProfileData.from_file(str(trace)).planes)
        devices = [plane for plane in planes if re.match(r"/device:(GPU|TPU)", plane.name)]
        for plane in devices or planes:
            for line in _lines(plane):
                for event in line.events:
                    stats: dict[str, Any] = dict(event.stats)
                    if devices or ("hlo_op" in stats and not event.name.startswith("end: ")):
                        instruction = stats.get("hlo_op") or event.name.split(" = ")[0].removeprefix("%")
                        yield plane.name, str(stats.get("hlo_module", "")), str(instruction), event


def _lines(plane) -> list:
    """Those with one event an instruction, where a plane also has the same time by modules, steps or scopes."""
    lines = list(plane.lines)
    for wanted in ("XLA Ops", "Stream"):
        if some := [line for line in lines if line.name.startswith(wanted)]:
            return some
    return lines
