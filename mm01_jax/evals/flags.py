"""The tasks of long context and their flags, as a command line has them."""

from mm01_jax.evals.ruler.names import FAMILIES, SEED
from mm01_jax.flag import Flag

TEMPLATES = ("base", "chat")
WORDS = {
    "needle": "a number hidden in real text, at each depth of each length: a map",
    "needles": "many numbers hidden in one text, each asked for from its end",
    "copy": "UUIDs copied letter by letter out of a text of UUIDs",
    "rounds": "an earlier answer repeated, in a conversation of many rounds (MR-NIAH)",
    "ruler": "RULER's thirteen families",
}
FLAGS = (
    Flag("lengths", "tokens of prompt and answer, 1k = 1,024, 1m = 1,048,576", default="4k", example="1k,4k,64k"),
    Flag("samples", "of each cell", int, 1, least=1, most=10_000),
    Flag("seed", "of names, values and places", int, SEED, least=0, most=2**32 - 1),
    Flag("template", "how a question is said: as text that goes on, or as a turn of a conversation", TEMPLATES, "base"),
    Flag("bos", "a special token that a base prompt begins with, by default none", example="TOKEN"),
    Flag("slots", "answers that are under way at a time, at least", int, 8, least=1, most=4096),
    Flag(
        "json",
        "a file for scores, beside it FILE.answers.jsonl; cut off, the same command goes on",
        example="FILE",
        writes=True,
    ),
    Flag("figure", "a file .png or .svg for a figure", example="FILE", writes=True),
    Flag("server", "a server of OpenAI's API to ask; of the checkpoint the tokenizer alone is read", example="URL"),
    Flag("model", "which of the server's models, where it has several", example="NAME"),
    Flag("api_key_file", "a file whose first line is the server's API key", example="key.txt", reads="a file"),
    Flag(
        "write",
        "a file for the samples, which are then not asked: no weights are loaded",
        example="FILE.jsonl",
        writes=True,
    ),
)
_DEPTHS = Flag("depths", "how many depths, evenly from a text's beginning to its end", int, 10, least=1, most=1000)
OWN_FLAGS = {
    "needle": (_DEPTHS,),
    "needles": (_DEPTHS,),
    "copy": (_DEPTHS,),
    "rounds": (
        Flag(
            "data",
            "published samples, a .jsonl file or a folder, instead of ours",
            example="FILE",
            reads="a file or folder",
        ),
    ),
    "ruler": (
        Flag("families", f"all, or of {', '.join(FAMILIES)}", default="all", example="vt,cwe"),
        Flag("templates", "your copy of RULER's strings: its constants.py, or a .json", example="FILE", reads="a file"),
    ),
}
HARNESS_FLAGS = (
    Flag("tasks", "of lm-evaluation-harness, parted by commas", example="hellaswag", required=True),
    Flag("include", "a folder of more tasks, YAML files", example="FOLDER", reads="a folder"),
    Flag("fewshot", "examples before each question; otherwise what a task says", int, least=0, most=1000),
    Flag("limit", "of each task's documents the first so many alone", int, least=1),
    Flag("context", "tokens of a text, or of a prompt and its answer, at most", int, 4096, least=2, most=2**24),
    Flag("bos", "a special token that texts begin with, by default none", example="TOKEN"),
    Flag("slots", "texts that are under way at a time, at least", int, 8, least=1, most=4096),
    Flag("json", "a file for the results", example="FILE", writes=True),
)
