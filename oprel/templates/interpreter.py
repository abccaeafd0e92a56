"""Runs a parsed template over plain data, within bounds of steps, output and nesting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal as Word
from typing import assert_never

from oprel.errors import TemplateError
from oprel.templates.functions import FUNCTIONS, LAZY, Problem
from oprel.templates.lexer import go_error
from oprel.templates.nodes import (
    Action,
    Block,
    Break,
    Chain,
    Command,
    Continue,
    Dot,
    Field,
    Function,
    If,
    Include,
    Literal,
    Nil,
    Operand,
    Pipe,
    Range,
    Text,
    Variable,
    With,
)
from oprel.templates.values import Record, Value, is_true, shown, type_name

__all__ = ["Limits", "run"]

Jump = Word["break", "continue"] | None


class Limits:
    """`steps` are nodes that are run and values that are looked up; a value's text costs one for each 64 characters.
    `output_chars` bounds what is written. `depth` bounds templates that call templates."""

    __slots__ = ("depth", "output_chars", "steps")

    def __init__(self, *, steps: int = 400_000, output_chars: int = 8 << 20, depth: int = 40) -> None:
        self.steps = steps
        self.output_chars = output_chars
        self.depth = depth


_NO_ARGUMENT = object()


def run(root: Block, defined: Mapping[str, Block], dot: Value, limits: Limits) -> str:
    """Raises TemplateError, for what Go refuses and for a bound."""
    running = _Run(defined, limits)
    try:
        running.template(root, dot)
    except RecursionError:
        raise go_error(running.line, "its data is nested too deep") from None
    return "".join(running.output)


class _Run:
    def __init__(self, defined: Mapping[str, Block], limits: Limits) -> None:
        self.output: list[str] = []
        self.line = 1
        self._defined = defined
        self._limits = limits
        self._steps = limits.steps
        self._room = limits.output_chars
        self._depth = 0
        self._variables: list[tuple[str, Value]] = []

    def template(self, block: Block, dot: Value) -> None:
        self._depth += 1
        if self._depth > self._limits.depth:
            raise self._error(f"exceeded maximum template depth ({self._limits.depth})")
        outer, self._variables = self._variables, [("$", dot)]
        self._block(block, dot)
        self._variables = outer
        self._depth -= 1

    # -- nodes

    def _block(self, block: Block, dot: Value) -> Jump:
        for node in block:
            self._step()
            self.line = node.line
            match node:
                case Text():
                    self._write(node.text)
                case Action():
                    value = self._pipe(node.pipe, dot)
                    if not node.pipe.variables:
                        self._write(self._text(value, is_top=True))
                case If() | With():
                    if (jump := self._if(node, dot)) is not None:
                        return jump
                case Range():
                    if (jump := self._range(node, dot)) is not None:
                        return jump
                case Include():
                    self._include(node, dot)
                case Break():
                    return "break"
                case Continue():
                    return "continue"
                case _:
                    assert_never(node)
        return None

    def _if(self, node: If | With, dot: Value) -> Jump:
        scope = len(self._variables)
        value = self._pipe(node.pipe, dot)
        jump: Jump = None
        if is_true(value):
            jump = self._block(node.body, value if isinstance(node, With) else dot)
        elif node.otherwise is not None:
            jump = self._block(node.otherwise, dot)
        del self._variables[scope:]
        return jump

    def _range(self, node: Range, dot: Value) -> Jump:
        scope = len(self._variables)
        value = self._pipe(node.pipe, dot)
        inner = len(self._variables)
        jump: Jump = None
        is_empty = True
        for key, item in self._items(node, value):
            is_empty = False
            self._step()
            self._set_items(node.pipe, key, item)
            told = self._block(node.body, item)
            del self._variables[inner:]
            if told == "break":
                break
        if is_empty and node.otherwise is not None:
            jump = self._block(node.otherwise, dot)
        del self._variables[scope:]
        return jump

    def _items(self, node: Range, value: Value) -> Iterator[tuple[Value, Value]]:
        match value:
            case None:
                return iter(())
            case dict():
                return iter(sorted(value.items()))
            case list() | tuple():
                return iter(enumerate(value))
            case bool() | float() | str() | Record():
                pass
            case int():
                if len(node.pipe.variables) > 1:
                    raise self._error(f"can't use {value} to iterate over more than one variable")
                return ((number, number) for number in range(value))
        raise self._error(f"range can't iterate over {shown(value)[:100]}")

    def _set_items(self, pipe: Pipe, key: Value, item: Value) -> None:
        names = pipe.variables
        if len(names) == 1:
            self._set(names[0], item)
        elif names:
            self._set(names[0], key)
            self._set(names[1], item)

    def _include(self, node: Include, dot: Value) -> None:
        block = self._defined.get(node.name)
        if block is None:
            raise self._error(f'template "{node.name[:100]}" not defined')
        self.template(block, None if node.pipe is None else self._pipe(node.pipe, dot))

    # -- values

    def _pipe(self, pipe: Pipe, dot: Value) -> Value:
        value: Value = _NO_ARGUMENT
        for command in pipe.commands:
            value = self._command(command, dot, value)
        for name in pipe.variables:
            if pipe.is_assignment:
                self._set(name, value)
            else:
                self._variables.append((name, value))
        return value

    def _command(self, command: Command, dot: Value, last: Value) -> Value:
        """`last` is what the command before it in the pipeline came to."""
        first, *arguments = command.words
        if isinstance(first, Function):
            return self._call(first.name, arguments, dot, last)
        if arguments or last is not _NO_ARGUMENT:
            raise self._error(self._no_function(first))
        if isinstance(first, Nil):
            raise self._error("nil is not a command")
        return self._value(first, dot)

    def _no_function(self, word: Operand) -> str:
        if isinstance(word, Field | Chain) or (isinstance(word, Variable) and word.names):
            return f"{word.names[-1]} has arguments but cannot be invoked as function"
        return "can't give argument to non-function"

    def _value(self, word: Operand, dot: Value) -> Value:
        self._step()
        match word:
            case Dot():
                return dot
            case Nil():
                return None
            case Literal():
                return word.value
            case Field():
                return self._fields(dot, word.names)
            case Variable():
                return self._fields(self._variable(word.name), word.names)
            case Function():
                return self._call(word.name, (), dot, _NO_ARGUMENT)
            case Chain():
                return self._fields(self._value(word.inner, dot), word.names)
            case Pipe():
                return self._pipe(word, dot)
            case _:
                assert_never(word)

    def _fields(self, value: Value, names: Iterable[str]) -> Value:
        if value is None:
            return None  # what a pipeline came to, as Go has it; nil in the middle of a chain is refused below
        for name in names:
            self._step()
            if isinstance(value, dict):
                value = value.get(name)
            elif isinstance(value, Record) and name in value.fields:
                value = value.fields[name]
            elif value is None:
                raise self._error(f"nil pointer evaluating interface {{}}.{name}")
            else:
                raise self._error(f"can't evaluate field {name} in type {type_name(value)}")
        return value

    def _variable(self, name: str) -> Value:
        for known, value in reversed(self._variables):
            if known == name:
                return value
        raise self._error(f"undefined variable: {name}")

    def _set(self, name: str, value: Value) -> None:
        for position in range(len(self._variables) - 1, -1, -1):
            if self._variables[position][0] == name:
                self._variables[position] = (name, value)
                return
        raise self._error(f"undefined variable: {name}")

    def _call(self, name: str, words: Iterable[Operand], dot: Value, last: Value) -> Value:
        if name in LAZY:
            return self._lazy(name, words, dot, last)
        arguments = [self._value(word, dot) for word in words]
        if last is not _NO_ARGUMENT:
            arguments.append(last)
        function = FUNCTIONS[name]
        if len(arguments) < function.least:
            at_least = "" if function.most == function.least else "at least "
            raise self._error(f"wrong number of args for {name}: want {at_least}{function.least} got {len(arguments)}")
        if function.most is not None and len(arguments) > function.most:
            raise self._error(f"wrong number of args for {name}: want {function.most} got {len(arguments)}")
        self._charge_all(arguments)
        try:
            value = function.call(*arguments)
        except Problem as problem:
            raise self._error(f"error calling {name}: {problem}") from None
        if isinstance(value, str):
            self._charge(value)
        return value

    def _lazy(self, name: str, words: Iterable[Operand], dot: Value, last: Value) -> Value:
        value: Value = _NO_ARGUMENT
        for word in words:
            value = self._value(word, dot)
            if is_true(value) == (name == "or"):
                return value
        if last is not _NO_ARGUMENT:
            return last
        if value is _NO_ARGUMENT:
            raise self._error(f"wrong number of args for {name}: want at least 1 got 0")
        return value

    # -- bounds

    def _step(self, count: int = 1) -> None:
        self._steps -= count
        if self._steps < 0:
            raise self._error(f"it takes more than {self._limits.steps} steps")

    def _charge(self, text: str) -> None:
        if len(text) > self._limits.output_chars:
            raise self._error(f"it makes a text of more than {self._limits.output_chars} characters")
        self._step(len(text) >> 6)

    def _charge_all(self, arguments: list[Value]) -> None:
        """What a function may have to go through, before it does: texts that double with each turn end here."""
        size = 0
        for argument in arguments:
            if isinstance(argument, str):
                size += len(argument)
        if size > self._limits.output_chars:
            raise self._error(f"it makes a text of more than {self._limits.output_chars} characters")
        self._step(size >> 6)

    def _text(self, value: Value, *, is_top: bool = False) -> str:
        text = shown(value, is_top=is_top)
        if not isinstance(value, str):
            self._charge(text)
        return text

    def _write(self, text: str) -> None:
        self._room -= len(text)
        if self._room < 0:
            raise self._error(f"it writes more than {self._limits.output_chars} characters")
        self.output.append(text)

    def _error(self, problem: str) -> TemplateError:
        return go_error(self.line, problem)
