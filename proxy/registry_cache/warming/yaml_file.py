"""A YAML file that somebody else wrote, read within bounds.

A few hundred bytes of aliases of aliases stand for gigabytes, some megabytes of brackets for as many objects, and a
long number takes minutes to be one. Source: YAML 1.2, "Alias Nodes"; the billion laughs.
"""

from typing import Any

import yaml

MAX_BYTES = 1024 * 1024
# With every alias counted as what it stands for: more than any project has.
_MAX_NODES = 50_000
_MAX_DEPTH = 100
_LONG_SCALAR = 200

# What PyYAML raises for values that look like a number or a date and are none.
_UNUSABLE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


class _Loader(yaml.SafeLoader):
    """Knows the tags that Compose has for merging files, and counts."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """See PyYAML: called for each node, aliases too."""
        self._nodes += 1
        self._depth += 1
        if self._nodes > _MAX_NODES or self._depth > _MAX_DEPTH:
            raise yaml.YAMLError(_too_much())
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def resolve(self, kind: type, value: Any, implicit: Any) -> Any:
        """A long scalar is text, whatever it looks like: it would take minutes to become a number."""
        if kind is yaml.ScalarNode and len(value) > _LONG_SCALAR:
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


def _too_much() -> str:
    return f"more than {_MAX_NODES} values, aliases counted as what they stand for, or deeper than {_MAX_DEPTH}"


def _override(loader: _Loader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


_Loader.add_constructor("!override", _override)
_Loader.add_constructor("!reset", lambda _loader, _node: "")


def parsed(content: bytes) -> Any:
    """The document in *content*.

    Raises:
        ValueError: it is none, or beyond the bounds; the text is one line.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES} bytes: no Compose file")
    try:
        loader = _Loader(content)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _measure(node, {}, set(), 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except _UNUSABLE as error:
        raise ValueError(f"a value in it cannot be read: {' '.join(str(error).split())}") from error


def _measure(node: yaml.Node, known: dict[int, int], above: set[int], depth: int) -> int:
    """How many values *node* stands for, its aliases written out."""
    if id(node) in known:
        return known[id(node)]
    if id(node) in above or depth > _MAX_DEPTH:
        raise yaml.YAMLError("an alias that stands for what it is in" if id(node) in above else _too_much())
    inside = node.value if isinstance(node, yaml.CollectionNode) else []
    parts = [part for each in inside for part in (each if isinstance(each, tuple) else (each,))]
    above.add(id(node))
    count = 1 + sum(_measure(part, known, above, depth + 1) for part in parts)
    above.discard(id(node))
    if count > _MAX_NODES:
        raise yaml.YAMLError(_too_much())
    known[id(node)] = count
    return count
