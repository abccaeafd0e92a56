"""Templates changed before they are run: a field appended, or all that stands behind a field left out."""

from __future__ import annotations

import msgspec

from oprel.templates.nodes import Action, Block, Command, Field, If, Node, Pipe, Range, With

__all__ = ["cut_after", "with_field"]


def with_field(block: Block, name: str) -> Block:
    """`block` with `{{ .Name }}` at its end."""
    line = block[-1].line if block else 1
    return (*block, Action(line, Pipe(line, (Command((Field((name,)),)),))))


def cut_after(block: Block, name: str) -> Block:
    """`block` up to the first action that writes the field, which stays; all of it where there is none."""
    return _cut(block, name)[0]


def _cut(block: Block, name: str) -> tuple[Block, bool]:
    kept: list[Node] = []
    for node in block:
        if isinstance(node, If | Range | With):
            node, is_cut = _cut_branch(node, name)
        else:
            is_cut = isinstance(node, Action) and _writes(node, name)
        kept.append(node)
        if is_cut:
            return tuple(kept), True
    return tuple(kept), False


def _cut_branch(node: If | Range | With, name: str) -> tuple[If | Range | With, bool]:
    """Cut on both ways: which one is taken isn't known yet."""
    body, in_body = _cut(node.body, name)
    otherwise, in_otherwise = _cut(node.otherwise, name) if node.otherwise is not None else (None, False)
    return msgspec.structs.replace(node, body=body, otherwise=otherwise), in_body or in_otherwise


def _writes(action: Action, name: str) -> bool:
    words = (word for command in action.pipe.commands for word in command.words)
    return any(isinstance(word, Field) and name in word.names for word in words)
