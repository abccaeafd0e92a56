"""From tokens to nodes: the grammar of Go's `text/template`, with the same refusals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from typing import Literal as Word

from oprel.errors import TemplateError
from oprel.templates.lexer import Token, go_error, quoted, tokens
from oprel.templates.literals import number, rune, string
from oprel.templates.nodes import (
    Action,
    Block,
    Branch,
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
    Node,
    Operand,
    Pipe,
    Range,
    Text,
    Variable,
    With,
)

__all__ = ["MAX_TEMPLATE_BYTES", "parse_source"]

MAX_TEMPLATE_BYTES = 64 * 1024
_MAX_DEPTH = 50
_BLANK = re.compile(r"[ \t\r\n]*")
_KEYWORDS = frozenset({"block", "break", "continue", "define", "else", "end", "if", "range", "template", "with"})
_KINDS: dict[str, type[Branch]] = {"if": If, "range": Range, "with": With}

Ending = Word["end", "else"]


def parse_source(source: str, *, functions: Set[str]) -> tuple[Block, dict[str, Block]]:
    """The template itself, and those that it defines, by name. `functions` are those that there are. Raises
    TemplateError, in Go's words."""
    if len(source.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE_BYTES:
        raise TemplateError(f"template: a template may have {MAX_TEMPLATE_BYTES >> 10} KiB at most")
    parser = _Parser(source, functions)
    root = parser.top()
    return root, parser.defined


class _Parser:
    def __init__(self, source: str, functions: Set[str]) -> None:
        self.defined: dict[str, Block] = {}
        self._functions = functions
        self._tokens = _Buffered(tokens(source))
        self._variables = ["$"]
        self._ranges = 0
        self._depth = 0

    def top(self) -> Block:
        nodes: list[Node] = []
        while (token := self._tokens.next()).kind != "end":
            if token.kind == "text":
                nodes.append(Text(token.line, token.text))
            elif self._keyword_ahead() == "define":
                self._define(self._tokens.next_word())
            else:
                node = self._action(token)
                if isinstance(node, str):
                    raise self._error(token, f"unexpected {{{{{node}}}}}")
                nodes.append(node)
        return tuple(nodes)

    # -- actions; the left delimiter is behind us

    def _action(self, left: Token) -> Node | Ending:
        keyword = self._keyword_ahead()
        if keyword is None:
            return self._output(left)
        word = self._tokens.next_word()
        match keyword:
            case "if" | "range" | "with":
                return self._branch(word)
            case "end":
                self._close(word, "end")
                return "end"
            case "else":
                return "else"  # what follows it is its branch's to read
            case "template":
                return self._include(word)
            case "block":
                return self._block(word)
            case "break" | "continue":
                return self._jump(word)
        raise self._unexpected(word, "command")

    def _output(self, left: Token) -> Action:
        return Action(left.line, self._pipeline("command", declares=1))

    def _branch(self, word: Token) -> Branch:
        self._enter(word)
        scope = len(self._variables)
        is_range = word.text == "range"
        pipe = self._pipeline(word.text, declares=2 if is_range else 1)
        self._ranges += is_range
        body, ending = self._items(word)
        self._ranges -= is_range
        otherwise = self._otherwise(word) if ending == "else" else None
        del self._variables[scope:]
        self._depth -= 1
        return _KINDS[word.text](word.line, pipe, body, otherwise)

    def _otherwise(self, word: Token) -> Block:
        """`{{else}}` … `{{end}}`, or `{{else if …}}`, which the one `{{end}}` closes too."""
        token = self._tokens.next_word()
        if token.kind == "word" and token.text in ("if", "with") and token.text == word.text:
            return (self._branch(token),)
        self._expect(token, "right", "input")
        block, ending = self._items(word)
        if ending == "else":
            raise self._error(token, "expected end; found {{else}}")
        return block

    def _items(self, opened: Token) -> tuple[Block, Ending]:
        nodes: list[Node] = []
        while (token := self._tokens.next()).kind != "end":
            if token.kind == "text":
                nodes.append(Text(token.line, token.text))
                continue
            node = self._action(token)
            if node == "end" or node == "else":
                return tuple(nodes), node
            nodes.append(node)
        raise self._error(token, "unexpected EOF")

    def _define(self, word: Token) -> None:
        name = self._name("define clause")
        self._close(self._tokens.next_word(), "define clause", is_read=True)
        outer, self._variables = self._variables, ["$"]
        ranges, self._ranges = self._ranges, 0
        body, ending = self._items(word)
        if ending == "else":
            raise self._error(word, "unexpected {{else}} in define clause")
        self._variables, self._ranges = outer, ranges
        self._add(name, body)

    def _block(self, word: Token) -> Include:
        self._enter(word)
        name = self._name("block clause")
        pipe = self._pipeline("block clause")
        outer, self._variables = self._variables, ["$"]
        ranges, self._ranges = self._ranges, 0
        body, ending = self._items(word)
        if ending == "else":
            raise self._error(word, "unexpected {{else}} in block clause")
        self._variables, self._ranges = outer, ranges
        self._depth -= 1
        self._add(name, body)
        return Include(word.line, name, pipe)

    def _add(self, name: str, body: Block) -> None:
        """An empty one may be defined again, and doesn't take the place of one that says something."""
        if name not in self.defined or _is_blank(self.defined[name]):
            self.defined[name] = body
        elif not _is_blank(body):
            raise self._error(self._tokens.peek(), f"template: multiple definition of template {quoted(name)}")

    def _include(self, word: Token) -> Include:
        name = self._name("template clause")
        token = self._tokens.peek_word()
        if token.kind == "right":
            self._tokens.next_word()
            return Include(word.line, name, None)
        return Include(word.line, name, self._pipeline("template clause"))

    def _jump(self, word: Token) -> Break | Continue:
        self._close(self._tokens.next_word(), word.text, is_read=True)
        if not self._ranges:
            raise self._error(word, f"{{{{{word.text}}}}} outside {{{{range}}}}")
        return Break(word.line) if word.text == "break" else Continue(word.line)

    def _name(self, context: str) -> str:
        token = self._tokens.next_word()
        if token.kind != "string":
            raise self._unexpected(token, context)
        return string(token)

    # -- pipelines

    def _pipeline(self, context: str, *, declares: int = 0, ends: str = "right") -> Pipe:
        """Reads the token that ends it, too. `declares`: how many variables it may declare."""
        line = self._tokens.peek_word().line
        variables, is_assignment = self._declared(context, declares)
        # As in Go, a name is known from here on: `$x := $x` and setting what isn't there fail when they are run.
        self._variables += variables
        commands: list[Command] = []
        while True:
            token = self._tokens.peek_word()
            if token.kind == ends:
                self._tokens.next_word()
                break
            commands.append(self._command(context, ends))
        self._check(commands, context, line)
        return Pipe(line, tuple(commands), variables, is_assignment)

    def _declared(self, context: str, most: int) -> tuple[tuple[str, ...], bool]:
        found: list[str] = []
        while most and (names := self._variable_ahead()) is not None:
            name, sign = names
            if sign == "comma":
                if len(found) + 1 >= 2 or most < 2:
                    raise go_error(name.line, f"too many declarations in {context}")
                found.append(name.text)
                continue
            found.append(name.text)
            return tuple(found), sign == "assign"
        if found:
            raise self._unexpected(self._tokens.peek_word(), context)
        return (), False

    def _variable_ahead(self) -> tuple[Token, str] | None:
        """`$x :=`, `$x =`, `$x,`: read; else nothing is."""
        token = self._tokens.peek_word()
        if token.kind != "variable":
            return None
        ahead = self._tokens.peek_past_space(1)
        if ahead.kind not in ("declare", "assign", "comma"):
            return None
        self._tokens.next_word()
        return token, self._tokens.next_word().kind

    def _command(self, context: str, ends: str) -> Command:
        words: list[Operand] = []
        while True:
            token = self._tokens.peek_word()
            if token.kind == ends or token.kind == "pipe":
                break
            words.append(self._operand(context))
            after = self._tokens.peek()
            if after.kind not in ("space", "pipe", ends):
                raise self._unexpected(after, context if after.kind == "close" else "operand")
        if self._tokens.peek_word().kind == "pipe":
            self._tokens.next_word()
        if not words:
            raise go_error(token.line, "empty command")
        return Command(tuple(words))

    def _operand(self, context: str) -> Operand:
        token = self._tokens.next_word()
        inner = self._term(token, context)
        names: list[str] = []
        while self._tokens.peek().kind == "field":
            names.append(self._tokens.next().text[1:])
        if not names:
            return inner
        match inner:
            case Field():
                return Field((*inner.names, *names))
            case Variable():
                return Variable(inner.name, (*inner.names, *names))
            case Literal() | Nil() | Dot():
                raise self._error(token, f"unexpected . after term {quoted(token.text)}")
        return Chain(inner, tuple(names))

    def _term(self, token: Token, context: str) -> Operand:
        match token.kind:
            case "dot":
                return Dot()
            case "field":
                return Field((token.text[1:],))
            case "variable":
                if token.text not in self._variables:
                    raise self._error(token, f"undefined variable {quoted(token.text)}")
                return Variable(token.text)
            case "string":
                return Literal(string(token), token.text)
            case "rune":
                return Literal(rune(token), token.text)
            case "number":
                return Literal(number(token), token.text)
            case "word":
                return self._word(token)
            case "open":
                self._enter(token)
                pipe = self._pipeline("parenthesized pipeline", ends="close")
                self._depth -= 1
                return pipe
        raise self._unexpected(token, context)

    def _word(self, token: Token) -> Operand:
        if token.text in ("true", "false"):
            return Literal(token.text == "true", token.text)
        if token.text == "nil":
            return Nil()
        if token.text in _KEYWORDS:
            raise self._unexpected(token, "operand")
        if token.text not in self._functions:
            raise self._error(token, f"function {quoted(token.text)} not defined")
        return Function(token.text)

    def _check(self, commands: list[Command], context: str, line: int) -> None:
        if not commands:
            raise go_error(line, f"missing value for {context}")
        for stage, command in enumerate(commands[1:], start=2):
            if isinstance(command.words[0], Literal | Nil | Dot):
                raise go_error(line, f"non executable command in pipeline stage {stage}")

    # -- small things

    def _keyword_ahead(self) -> str | None:
        token = self._tokens.peek_word()
        return token.text if token.kind == "word" and token.text in _KEYWORDS else None

    def _enter(self, token: Token) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error(token, f"nested more than {_MAX_DEPTH} deep")

    def _close(self, token: Token, context: str, *, is_read: bool = False) -> None:
        self._expect(token if is_read else self._tokens.next_word(), "right", context)

    def _expect(self, token: Token, kind: str, context: str) -> None:
        if token.kind != kind:
            raise self._unexpected(token, context)

    def _unexpected(self, token: Token, context: str) -> TemplateError:
        is_keyword = token.kind == "dot" or (token.kind == "word" and token.text in (*_KEYWORDS, "nil"))
        shown = "EOF" if token.kind == "end" else f"<{token.text}>" if is_keyword else quoted(token.text)
        return self._error(token, f"unexpected {shown} in {context}")

    def _error(self, token: Token, problem: str) -> TemplateError:
        return go_error(token.line, problem)


def _is_blank(body: Block) -> bool:
    return all(isinstance(node, Text) and _BLANK.fullmatch(node.text) for node in body)


class _Buffered:
    """Tokens with a look ahead; the methods with `word` pass over spaces."""

    def __init__(self, source: Iterator[Token]) -> None:
        self._source = source
        self._ahead: list[Token] = []
        self._last: Token | None = None

    def next(self) -> Token:
        token = self.peek()
        self._ahead.pop(0)
        return token

    def peek(self, position: int = 0) -> Token:
        while len(self._ahead) <= position:
            if self._last is None or self._last.kind != "end":
                self._last = next(self._source)
            self._ahead.append(self._last)
        return self._ahead[position]

    def next_word(self) -> Token:
        self.peek_word()
        return self.next()

    def peek_word(self) -> Token:
        if self.peek().kind == "space":
            self.next()
        return self.peek()

    def peek_past_space(self, position: int) -> Token:
        token = self.peek(position)
        return self.peek(position + 1) if token.kind == "space" else token
