"""What is kept of prompts: a tree of pieces, each with a page, some with the states at their end.

A piece is `grid` tokens; its page is what layers hold of its positions (keys and values), its states what they hold of
all tokens up to its end. A request goes on from the deepest piece of its prompt that has states: never from a page
without, and never from inside a piece, so that its cuts are those it has from cold. Its last token is always taken in
anew. Pages and states are pytrees of arrays that nobody changes.

Where a prompt shows images a piece is its tokens and what is seen at each of them (`engine_images.seen`): the same text
with other pixels is another piece.

States are the larger part. Where memory is short the least recently used go first, to the host where it has room, and
with them the pages that lead nowhere any more. A path keeps at most so many states: the last ones, those where paths
part, the others ever wider apart from the end on.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mm01_jax.inference.prefix_tree import Found, Node, bytes_of, digest_of, is_cut_else, is_last_here, pieces_of

MOST_GONE = 100_000  # pieces of which is remembered that they were here once


class Prefix:
    """The tree.

    Args:
      budget, host_budget: bytes of pages and states on the devices (all together), and on the host.
      path_states: states of one path at most.
      to_host, to_devices: move a page or states.
    """

    def __init__(
        self,
        grid: int,
        budget: int,
        *,
        host_budget: int = 0,
        path_states: int = 64,
        to_host: Callable[[Any], Any] = lambda tree: tree,
        to_devices: Callable[[Any], Any] = lambda tree: tree,
    ):
        self.grid, self.budget, self.host_budget, self.path_states = grid, budget, host_budget, path_states
        self._to_host, self._to_devices = to_host, to_devices
        self._roots: dict[bytes, Node] = {}
        self._gone: collections.OrderedDict[bytes, str] = collections.OrderedDict()
        self._stated: collections.OrderedDict[Node, None] = collections.OrderedDict()  # in the order of `_age`
        self._clock = 0
        self.bytes = self.host_bytes = 0
        self.counts = collections.Counter()
        self.misses = collections.Counter()

    def find(
        self,
        content: bytes,
        tokens: np.ndarray,
        seen: np.ndarray | None = None,
        *,
        rest: int | None = None,
        counted: bool = True,
    ) -> Found:
        """Up to the deepest piece with states that leaves at least one token; on the devices, wherever it was.

        Args:
          seen: uint8 (tokens, n), what images show at each token, zeros where they show nothing; None: no images.
          rest: the token from which on pieces were computed by themselves, those before with others; None: all alike.
        """
        usable = (len(tokens) - 1) // self.grid
        keys = pieces_of(tokens, seen, self.grid, rest)[:usable]
        path = self._path(content, keys)
        depth = max((node.depth for node in path if node.state is not None), default=0)
        miss = self._why(content, keys, path, depth)
        self._clock += 1
        if depth:
            self._use(path[depth - 1])
        found = Found([node.page for node in path[:depth]], path[depth - 1].state if depth else None, miss, len(path))
        if counted:
            reused = depth * self.grid
            self.counts.update(lookups=1, hits=int(depth > 0), asked_tokens=len(tokens), reused_tokens=reused)
            self.misses.update([] if miss is None else [miss])
        self._shrink()
        return found

    def has(self, content: bytes, tokens: np.ndarray, seen: np.ndarray | None = None, rest: int | None = None) -> bool:
        """Whether there are states after these tokens, whole pieces."""
        path = self._path(content, pieces_of(tokens, seen, self.grid, rest))
        return bool(path) and path[-1].depth * self.grid == len(tokens) and path[-1].state is not None

    def put(
        self,
        content: bytes,
        tokens: np.ndarray,
        take_page: Callable[[int], Any],
        take_state: Callable[[], Any],
        seen: np.ndarray | None = None,
        *,
        rest: int | None = None,
        behind: Node | None = None,
    ) -> Node:
        """Keeps pages of all `tokens`, whole pieces, and the states after the last of them, which it returns.

        Args:
          take_page: of a piece by its number, called for those that are not here. take_state: called if need be.
          behind: what the last call with a begin of these tokens returned: pieces up to there are not looked for.
        """
        assert len(tokens) % self.grid == 0, "states are kept at grid points alone"
        self._clock += 1
        node = behind
        if node is None or node.gone or node.depth * self.grid > len(tokens):
            node = self._root(content)
        known = node.depth * self.grid
        left = pieces_of(tokens[known:], None if seen is None else seen[known:], self.grid, rest, known)
        for number, key in enumerate(left, node.depth):
            if key not in node.children:
                child = Node(node, digest_of(node.digest, key), number + 1, page=take_page(number))
                node.children[key] = child
                self._account(child, bytes_of(child.page))
            node = node.children[key]
        self._promote(node)
        if is_new := node.state is None and node.parent is not None:
            node.state = take_state()
            self._stated[node] = None
        self._use(node)  # a node on the host leads to others there alone
        if is_new:
            self._gone.pop(node.digest, None)
            self._account(node, bytes_of(node.state))
            self._thin(node)
        self._shrink()
        return node

    def clear(self, why: str) -> None:
        """Forgets everything; whoever would have found it is told why."""
        for node in list(self._nodes()):
            node.gone = True
            self._remember(node, why)
        self._roots.clear()
        self._stated.clear()
        self.bytes = self.host_bytes = 0

    def statistics(self) -> dict:
        nodes = list(self._nodes())
        now = {
            "pages": len(nodes),
            "states": sum(node.state is not None for node in nodes),
            "bytes": self.bytes,
            "host_bytes": self.host_bytes,
        }
        names = ("lookups", "hits", "asked_tokens", "reused_tokens", "evicted_states", "evicted_pages", "to_host")
        return now | {name: self.counts[name] for name in names} | {"misses": dict(self.misses)}

    # The tree.

    def _root(self, content: bytes) -> Node:
        if content not in self._roots:
            self._roots[content] = Node(None, digest_of(b"", content), 0)
        return self._roots[content]

    def _path(self, content: bytes, keys: Sequence[bytes]) -> list[Node]:
        """The nodes of a prompt's pieces as far as there are any."""
        path, node = [], self._roots.get(content)
        for key in keys:
            node = None if node is None else node.children.get(key)
            if node is None:
                break
            path.append(node)
        return path

    def _use(self, last: Node) -> None:
        """A path is in use: on the devices, and newer than all others."""
        while last.parent is not None:
            self._promote(last)
            if last.state is not None:
                self._stated.move_to_end(last)
            last.used, last = self._clock, last.parent

    def _nodes(self) -> Iterator[Node]:
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            stack += node.children.values()
            if node.parent is not None:
                yield node

    def _why(self, content: bytes, keys: Sequence[bytes], path: list[Node], depth: int) -> str | None:
        """The reason why not more than `depth` of a prompt's pieces are reused."""
        if depth == len(keys):
            return None if keys else "shorter than a piece"
        if len(path) > depth:
            return self._gone.get(path[depth].digest, "no states kept there")
        digest = digest_of(b"", content)
        for key in keys[: depth + 1]:
            digest = digest_of(digest, key)
        if digest in self._gone:
            return self._gone[digest]
        node, tokens = path[-1] if path else self._roots.get(content), 4 * self.grid  # bytes
        alike = [key for key in (node.children if node is not None else ()) if key[:tokens] == keys[depth][:tokens]]
        if alike:
            return "cut elsewhere" if any(is_cut_else(key, keys[depth]) for key in alike) else "other pixels"
        others = [root for name, root in self._roots.items() if name != content]
        if depth == 0 and any(keys[0] in root.children for root in others):
            return "other content"
        return "new tokens"

    # Memory.

    def _account(self, node: Node, size: int) -> None:
        if node.on_host:
            self.host_bytes += size
        else:
            self.bytes += size

    def _promote(self, node: Node) -> None:
        if node.on_host:
            size = bytes_of(node.page) + bytes_of(node.state)
            node.page, node.state = self._to_devices(node.page), self._to_devices(node.state)
            node.on_host = False
            self.host_bytes -= size
            self.bytes += size

    def _shrink(self) -> None:
        """Back within both budgets: what was used longest ago goes to the host, and from there for good."""
        while self.bytes > self.budget and (node := self._oldest(on_host=False)) is not None:
            size = bytes_of(node.page) + bytes_of(node.state)
            if size <= self.host_budget and is_last_here(node):
                node.page, node.state = self._to_host(node.page), self._to_host(node.state)
                node.on_host = True
                self.bytes -= size
                self.host_bytes += size
                self.counts["to_host"] += 1
            elif node.state is not None:
                self._drop_state(node, "evicted")
            else:  # the host has no room for it: what it leads to goes, and it with that
                self._drop_state(self._oldest(on_host=True), "evicted")
        while self.host_bytes > self.host_budget and (node := self._oldest(on_host=True)) is not None:
            self._drop_state(node, "evicted")

    def _oldest(self, *, on_host: bool) -> Node | None:
        """The least recently used that can go: it has states, or leads to nothing on the devices. The deepest of
        several."""
        if not self.host_budget:  # then nothing lies there, and what leads nowhere has states
            return next(iter(self._stated), None)
        nodes = [node for node in self._nodes() if node.on_host == on_host]
        nodes = [node for node in nodes if node.state is not None or (not on_host and is_last_here(node))]
        return min(nodes, key=_age, default=None)

    def _thin(self, last: Node) -> None:
        """Keeps a path's states few: the one goes whose neighbours are closest for their distance from the end."""
        path, node = [], last
        while node.parent is not None:
            path.append(node)
            node = node.parent
        held = [node for node in reversed(path) if node.state is not None]
        if len(held) <= self.path_states:
            return
        before = [0, *(node.depth for node in held)]
        inner = [n for n in range(len(held) - 1) if len(held[n].children) < 2] or list(range(len(held) - 1))
        gap = {n: (held[n + 1].depth - before[n]) / (last.depth - held[n].depth) for n in inner}
        if inner:
            self._drop_state(held[min(inner, key=lambda n: (gap[n], n))], "thinned out")

    def _drop_state(self, node: Node, why: str) -> None:
        """Forgets a node's states, and the pages that lead nowhere then."""
        if node.state is not None:
            self._account(node, -bytes_of(node.state))
            node.state = None
            del self._stated[node]
            self._remember(node, why)
            self.counts["evicted_states"] += 1
        while node.parent is not None and node.state is None and not node.children:
            self._account(node, -bytes_of(node.page))
            self._remember(node, why)
            self.counts["evicted_pages"] += 1
            parent = node.parent
            parent.children = {key: child for key, child in parent.children.items() if child is not node}
            node.gone, node = True, parent
        if node.parent is None and not node.children:  # of a content that nobody may ask for again
            self._roots = {content: root for content, root in self._roots.items() if root is not node}

    def _remember(self, node: Node, why: str) -> None:
        self._gone[node.digest] = why
        while len(self._gone) > MOST_GONE:
            self._gone.popitem(last=False)


def _age(node: Node) -> tuple[int, int]:
    """The lower, the sooner it goes."""
    return node.used, -node.depth
