"""Runs a tokenizer.json that anybody may have made: a program of its own (`data/tokenizer_guard.py` starts it).

stdin begins with a line, {"size": bytes of the tokenizer.json that follow, "seconds": of the processor to load it,
"left": for all texts, beside their own, "bytes": of memory}. Then each request is a line {"do": "encode" | "count" |
"decode", "size", "seconds"} and `size` bytes: UTF-8, or int32 ids. Each answer is a line, {"size"} or {"error"}, and
`size` bytes: text, or int32 ids; of "count" the number of characters dropped stands in front of them. The first answer
is what `facts` says of the tokenizer. A regular expression that backtracks, a pattern that grows, a panic of the
library: all end here. Nothing of ours is imported.
"""

import array
import json
import math
import resource
import sys
from collections.abc import Iterable

MOST_IDS = 1 << 24  # an embedding has a row of each
_MOST_ADDED = 1_000_000  # characters of all added tokens: the library searches for all at once
_MOST_IN_VOCABULARY = 8_000_000  # characters of its tokens: 262,144, as the largest published have, of 30 each
_INTERNAL = (TypeError, AttributeError, LookupError, RecursionError)  # what our own look at another shape raises
_RARE = "\U0010fffd"  # which Unicode leaves to programs, and no vocabulary has


# Normalizers and pre-tokenizers that lose no character but blanks.
_KEEPING = {"Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "Prepend", "ByteLevel", "Metaspace"}
_KEEPING |= {"Whitespace", "WhitespaceSplit", "Digits", "UnicodeScripts", "BertPreTokenizer", "FixedLength"}


def added_tokens(plain) -> list[dict]:
    """Those of what a tokenizer.json says; ValueError where its tokens have more characters than any's."""
    if not isinstance(plain, dict):
        raise ValueError(f"JSON of a {type(plain).__name__}, not of an object")
    added, words = plain.get("added_tokens") or [], plain["model"]["vocab"]
    _check_characters("its added tokens have", (token["content"] for token in added), _MOST_ADDED)
    names = (word if isinstance(word, str) else word[0] for word in words)  # Unigram has pairs
    _check_characters("its vocabulary has", names, _MOST_IN_VOCABULARY)
    return added


def _check_characters(what: str, names: Iterable[str], most: int) -> None:
    if (count := sum(map(len, names))) > most:
        raise ValueError(f"{what} {count:,} characters; allowed: at most {most:,}")


def facts(tokenizer, ends: Iterable[str], added: Iterable[dict]) -> dict:
    """What is asked of a tokenizer before any text: ids and names; of `ends` those that are there.

    added: `added_tokens` of its file; ValueError where the library has given one another id, or two one.
    """
    tokenizer.no_truncation()  # a file may ask for truncation: documents would silently become shorter
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a document is text, never the end of that document
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None  # a text has one encoding here
    _drop_processor(tokenizer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    _check_ids(vocabulary, added)
    if (highest := max(vocabulary.values(), default=0)) >= MOST_IDS:
        raise ValueError(f"a token has the id {highest:,}; allowed: below {MOST_IDS:,}")
    own = tokenizer.get_added_tokens_decoder()
    parts = [part.__getstate__() for part in (tokenizer.normalizer, tokenizer.pre_tokenizer) if part is not None]
    return {
        "vocab_size": max(vocabulary.values(), default=-1) + 1,
        "ends": {name: vocabulary[name] for name in ends if name in vocabulary},
        "falls_back": _falls_back(tokenizer, vocabulary),
        "specials": {t.content: number for number, t in own.items() if t.special},
        "takes_blanks": [t.content for t in own.values() if (t.lstrip or t.rstrip) and not t.special],
        "removes": [said for part in parts for said in _removes(json.loads(part))],
    }


def _drop_processor(tokenizer) -> None:
    """What puts special tokens around a text is not asked for; ValueError where it says the text itself anew."""
    if tokenizer.post_processor is None:
        return
    said = json.loads(tokenizer.post_processor.__getstate__())
    for part in said.get("processors", [said]):
        times = sum("Sequence" in piece for piece in part["single"]) if "single" in part else 1
        if times != 1 or part["type"] == "Sequence":
            what = f"says a text {times:,} times" if times != 1 else "has a Sequence in a Sequence"
            raise ValueError(f"its post_processor {what}; allowed: once, special tokens around it")
    tokenizer.post_processor = None


def _check_ids(vocabulary: dict[str, int], added: Iterable[dict]) -> None:
    """The library numbers added tokens by itself, after the vocabulary, and only logs that the file says otherwise."""
    seen: set[str] = set()
    for token in added:
        name, number = token["content"], token["id"]
        if name in seen:
            raise ValueError(f"the added token {name!r} occurs twice")
        if vocabulary.get(name) != number:
            used = f"uses {vocabulary.get(name)}" if name in vocabulary else "leaves it out"
            raise ValueError(f"the added token {name!r} has the id {number}; the tokenizers library {used}")
        seen.add(name)
    if len(set(vocabulary.values())) < len(vocabulary):
        names: dict[int, str] = {}
        for name, number in sorted(vocabulary.items()):
            if names.setdefault(number, name) != name:
                raise ValueError(f"the tokens {names[number]!r} and {name!r} have one id, {number}")


def _removes(part: dict) -> list[str]:
    """Of each part within that may lose characters a word: the pattern of what it keeps, else nothing."""
    kind, inner = part.get("type"), part.get("normalizers") or part.get("pretokenizers") or []
    if kind in ("Split", "Punctuation"):
        if part.get("behavior") != "Removed":
            return []
        return [part["pattern"].get("Regex", "") if kind == "Split" and part.get("invert") else ""]
    if kind == "Replace" and part.get("content", "").strip():
        return []
    return [said for one in inner for said in _removes(one)] if kind in _KEEPING else [""]


def _falls_back(tokenizer, vocabulary: dict[str, int]) -> bool:
    """Whether a character without a token becomes the tokens of its bytes, which are all there."""
    if any(f"<0x{byte:02X}>" not in vocabulary for byte in range(256)):
        return False
    tokens = [f"<0x{byte:02X}>" for byte in _RARE.encode()]
    return tokenizer.encode(_RARE, add_special_tokens=False).tokens[-len(tokens) :] == tokens


def dropped(text: str, offsets: list[tuple[int, int]]) -> int:
    """Characters of a text, blanks aside, that no token of it stands for."""
    at = gone = 0
    for start, stop in sorted(offsets):
        gone += sum(not c.isspace() for c in text[at:start])
        at = max(at, stop)
    return gone + sum(not c.isspace() for c in text[at:])


def answer(tokenizer, request: dict, content: bytes) -> bytes:
    if request["do"] == "decode":
        ids = array.array("i", content).tolist()
        return tokenizer.decode(ids, skip_special_tokens=False).encode()
    text = content.decode()
    encoded = tokenizer.encode(text, add_special_tokens=False)
    counted = [dropped(text, encoded.offsets)] if request["do"] == "count" else []
    return array.array("i", counted + encoded.ids).tobytes()


def once(pairs: list) -> dict:
    """An object of JSON; ValueError where a name occurs twice."""
    plain = dict(pairs)
    if len(plain) < len(pairs):
        seen: set[str] = set()
        raise ValueError(f"the name {next(n for n, _ in pairs if n in seen or seen.add(n))!r} occurs twice")
    return plain


def stay(nbytes: int) -> None:
    """With so many bytes of memory, of its own and not of mapped libraries."""
    resource.setrlimit(resource.RLIMIT_DATA, (nbytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def confine(seconds: float) -> None:
    """So many seconds of the processor from now on."""
    until = math.ceil(used() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def used() -> float:
    """Seconds of the processor so far."""
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime + found.ru_stime


def serve(requests, answers) -> None:
    first = json.loads(requests.readline())
    confine(first["seconds"])
    stay(first["bytes"])
    content = requests.read(first["size"]).decode()
    tokenizer = None

    def load() -> bytes:
        nonlocal tokenizer
        # Of a name that occurs twice the library takes the last. What is read here goes before the library reads.
        added = added_tokens(json.loads(content, object_pairs_hook=once))
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_str(content)
        return json.dumps(facts(tokenizer, first["ends"], added)).encode()

    good = _say(answers, load)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    left = first["left"]
    while good and (line := requests.readline()):
        request, before = json.loads(line), used()
        # What many texts take together is bounded too: each adds its own time, and what one saves another has.
        left = min(first["left"], left) + request["seconds"]
        confine(left)
        content = requests.read(request["size"])
        _say(answers, lambda: answer(tokenizer, request, content))  # noqa: B023
        left -= used() - before


def cause(error: BaseException) -> str:
    """An error in one line, without Python's words for what our own look at a file stumbled over."""
    if isinstance(error, _INTERNAL):
        return "its shape is not that of a tokenizer.json"
    return " ".join(str(error).split())[:300] or type(error).__name__


def _say(answers, work) -> bool:
    try:
        said, head = work(), {}
    except BaseException as error:  # of the library: Exception, and PanicException, which is none
        said, head = b"", {"error": cause(error)}
    answers.write(json.dumps({"size": len(said)} | head).encode() + b"\n" + said)
    answers.flush()
    return not head


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
