"""What a template is parsed into: immutable nodes, each with its line."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

__all__ = [
    "Action",
    "Block",
    "Branch",
    "Break",
    "Chain",
    "Command",
    "Continue",
    "Dot",
    "Field",
    "Function",
    "If",
    "Include",
    "Literal",
    "Nil",
    "Node",
    "Operand",
    "Pipe",
    "Range",
    "Text",
    "Variable",
    "With",
    "names_in",
]


class Dot(Struct, frozen=True):
    pass


class Nil(Struct, frozen=True):
    pass


class Literal(Struct, frozen=True):
    """A constant: bool, int (a character too), float or str; `text` as it was written."""

    value: bool | int | float | str
    text: str


class Field(Struct, frozen=True):
    """`.A.B` of the dot."""

    names: tuple[str, ...]


class Variable(Struct, frozen=True):
    """`$x.A.B`; `name` with its `$`."""

    name: str
    names: tuple[str, ...] = ()


class Function(Struct, frozen=True):
    name: str


class Chain(Struct, frozen=True):
    """`(pipeline).A.B`"""

    inner: Operand
    names: tuple[str, ...]


class Command(Struct, frozen=True):
    """`words[0]` is a function with the others as its arguments, or a value on its own."""

    words: tuple[Operand, ...]


class Pipe(Struct, frozen=True):
    """`variables` are declared, or set where `is_assignment`."""

    line: int
    commands: tuple[Command, ...]
    variables: tuple[str, ...] = ()
    is_assignment: bool = False


Operand = Dot | Nil | Literal | Field | Variable | Function | Chain | Pipe


class Text(Struct, frozen=True):
    line: int
    text: str


class Action(Struct, frozen=True):
    line: int
    pipe: Pipe


class If(Struct, frozen=True):
    line: int
    pipe: Pipe
    body: Block
    otherwise: Block | None


class Range(Struct, frozen=True):
    line: int
    pipe: Pipe
    body: Block
    otherwise: Block | None


class With(Struct, frozen=True):
    line: int
    pipe: Pipe
    body: Block
    otherwise: Block | None


class Include(Struct, frozen=True):
    """`{{ template "name" pipeline }}`"""

    line: int
    name: str
    pipe: Pipe | None


class Break(Struct, frozen=True):
    line: int


class Continue(Struct, frozen=True):
    line: int


Branch = If | Range | With
Node = Text | Action | If | Range | With | Include | Break | Continue
Block = tuple[Node, ...]


def names_in(part: Block | Node | Command | Operand | None) -> Iterator[str]:
    """Every name of a field below, in order: `.Function.Name` gives two."""
    match part:
        case tuple():
            for node in part:
                yield from names_in(node)
        case If() | Range() | With():
            for below in (part.pipe, part.body, part.otherwise):
                yield from names_in(below)
        case Action() | Include():
            yield from names_in(part.pipe)
        case Pipe():
            for command in part.commands:
                yield from names_in(command)
        case Command():
            for word in part.words:
                yield from names_in(word)
        case Field() | Variable():
            yield from part.names
        case Chain():
            yield from names_in(part.inner)
            yield from part.names
        case _:
            pass
