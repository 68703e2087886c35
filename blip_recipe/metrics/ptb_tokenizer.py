"""Tokenize captions exactly as the PTB tokenizer of the COCO caption tools does, without Java.

The automaton that finds the tokens is that of the COCO tools' own jar (`ptb_tables.py`). This module runs it, and does
with each token what PTBTokenizer does with the options `-preserveLines -lowerCase`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from blip_recipe.metrics.ptb_tables import FINAL, NO_CONTINUATION, Automaton, read_automaton

START = 2
"""The state in which a token begins."""

NEWLINE = "\n"
SPACES = " \t\n\v\f\r\x85"
BEYOND = re.compile("[\U00010000-\U0010ffff]")
CASED_WORD = re.compile(r"((?:[^\W\u2E80-\u9FFF]|(?<=\w)[-\xad'’.](?=\w))+)")
WORD_AFTER_SPACES = re.compile(r" *([^ \n]*)")

Change = Callable[[str], str]


class Token(NamedTuple):
    """What to do with the text that an action stands for.

    Attributes:
        change: Makes the token of the text; None: the text is no token.
        back: Number of its last units that belong to the next token.
        changes_whole: Whether the token is made of the text with these units.
        context: The states that find where the token ends and what must follow it begins: of the automaton of the
            token, and of the backwards automaton of what follows.
        keep: The number of units to keep, if there is a fixed one.
        strip: Whether spaces at the end belong to the next token.
    """

    change: Change | None
    back: int = 0
    changes_whole: bool = False
    context: tuple[int, int] | None = None
    keep: int | None = None
    strip: bool = False


def replace(changes: dict[str, str], text: str) -> str:
    """Replace the texts of `changes`, one after the other."""
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def same(text: str) -> str:
    """The text itself."""
    return text


def drop_soft_hyphens(text: str) -> str:
    """Remove soft hyphens; of a text with nothing else, a hyphen remains."""
    return text.replace("\xad", "") or "-"


def spell_dash(text: str) -> str:
    """Three or four hyphens are a dash."""
    return "--" if 3 <= len(text) <= 4 else text


def spell_ampersand(text: str) -> str:
    """Decode `&amp;`."""
    return re.sub("&amp;", "&", text, flags=re.IGNORECASE)


CURLY = dict.fromkeys("\x91‘‛‹", "`") | dict.fromkeys("\x92’›", "'")
CURLY |= dict.fromkeys("\x93“«", "``") | dict.fromkeys("\x94”»", "''")
open_quotes = partial(replace, {"&apos;": "`", "'": "`", '"': "``", "&quot;": "``"} | CURLY)
close_quotes = partial(replace, {"&apos;": "'", '"': "''", "&quot;": "''"} | CURLY)
spell_fractions = partial(replace, {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"})
spell_currencies = partial(replace, {"¢": "cents", "£": "#"} | dict.fromkeys("\x80¤₠€", "$"))
spell_parentheses = partial(replace, {"(": "-LRB-", ")": "-RRB-"})
bind_spaces = partial(replace, {" ": "\xa0"})


def bind_number(text: str) -> str:
    """A telephone number: one word, without parentheses."""
    return spell_parentheses(bind_spaces(text))


def always(token: str) -> Token:
    """Make the same token of every text."""
    return Token(lambda text: token)


SKIP = Token(None)
SAME = Token(same)
WORD = Token(drop_soft_hyphens)

ACTIONS: dict[int, Token] = {
    1: SKIP,  # a character that no rule knows
    2: always("<"),
    3: SAME,
    4: Token(spell_dash),
    5: always(NEWLINE),
    6: WORD,
    7: SKIP,  # white space
    8: Token(close_quotes),
    9: SAME,
    10: always(">"),
    11: always("--"),
    12: WORD,
    13: always("..."),
    14: Token(spell_fractions),
    15: Token(spell_currencies),
    16: always("-RCB-"),
    17: always("-LRB-"),
    18: always("-RRB-"),
    19: SAME,
    20: always("-LCB-"),
    21: always("-RSB-"),
    22: always("-LSB-"),
    23: SKIP,
    24: Token(same, context=(13, 14)),
    25: Token(same, back=1),
    26: Token(open_quotes, back=1),
    27: Token(bind_spaces),
    28: Token(spell_parentheses),
    29: WORD,
    30: Token(drop_soft_hyphens, context=(3, 4)),
    31: SAME,
    32: Token(drop_soft_hyphens, back=1),
    33: Token(same, back=1, changes_whole=True),  # an abbreviation that ends the sentence: the full stop counts twice
    34: Token(spell_parentheses, back=1),
    35: Token(open_quotes, keep=1),
    36: Token(close_quotes, back=1),
    37: Token(spell_ampersand),
    38: Token(bind_spaces),
    39: Token(bind_spaces),
    40: Token(drop_soft_hyphens, context=(5, 6)),
    41: Token(same, context=(16, 17)),
    42: Token(same, back=2),  # gon-na
    43: Token(same, context=(15, 14)),
    44: Token(same, context=(9, 10), strip=True),
    45: SAME,
    46: Token(drop_soft_hyphens, back=1),
    47: Token(same, back=1, changes_whole=True, context=(7, 8), strip=True),
    48: Token(same, back=2),
    49: Token(same, back=1, changes_whole=True, context=(11, 12)),
    50: Token(same, back=3),  # can-not
    51: Token(spell_ampersand, back=1),
    52: SAME,
    53: Token(same, back=4),
    54: Token(bind_number),
}
"""What each action of the automaton does."""

INITIAL = 47
"""The action of an abbreviation before a capital: the full stop of a single letter is a token of its own."""


def tokenize_lines(lines: Sequence[str]) -> list[list[str]]:
    """Tokenize `lines` as one text, in lower case.

    Args:
        lines: Texts without line ends.

    Returns:
        The tokens of each line.
    """
    automaton, text = read_automaton(), split_surrogates(NEWLINE.join(lines))
    classes, known = automaton.classes_of(text), automaton.known
    found: list[list[str]] = []
    begin, head = 0, list[str]()
    while len(found) < len(lines):
        stop = text.find(NEWLINE, begin)
        if stop < 0:
            stop = len(text)
        *words, last = text[begin:stop].split(" ")
        try:
            # Nearly all tokens depend on nothing but their word and whether it is the last one.
            tokens, end = [token for word in (*words, last + text[stop : stop + 1]) for token in known[word]], stop
        except KeyError:
            tokens, end = scan_line(text, classes, begin, stop, automaton)
        tokens = head + tokens
        if end > stop:
            # A tag that spans lines. Java prints it as it is, so that its parts are words of these lines.
            *tokens, tag = tokens
            first, *others, rest = tag.split(NEWLINE)
            found += [[*tokens, first], *([each] for each in others)]
            head, begin = [rest], end
        else:
            found.append(tokens)
            head, begin = [], stop + 1
    return found


def scan_line(text: str, classes: bytes, begin: int, stop: int, automaton: Automaton) -> tuple[list[str], int]:
    """The tokens of the line from `begin` to `stop`, and the end of the last one."""
    tokens = []
    while begin < stop:
        match = WORD_AFTER_SPACES.match(text, begin)
        assert match
        word, end = match[1] + (NEWLINE if match.end() == stop < len(text) else ""), match.end()
        found = automaton.known.get(word)
        if found is None:
            found, end, seen = scan(text, classes, begin, end, automaton)
            if end == match.end() and seen <= end < len(text):
                automaton.learn(word, found)
        tokens += found
        begin = end
    return tokens, begin


def scan(text: str, classes: bytes, begin: int, least: int, automaton: Automaton) -> tuple[list[str], int, int]:
    """Find tokens until at least `least`.

    Returns:
        The tokens, the end of the last one, and the last place that was looked at.
    """
    transitions, attributes, actions = automaton.transitions, automaton.attributes, automaton.actions
    tokens, seen = [], begin
    while begin < least:
        state, end, final, at = START, begin, START, begin
        for at in range(begin, len(text)):
            state = transitions[state][classes[at]]
            if state < 0:
                break
            if attributes[state] & FINAL:
                end, final = at + 1, state
                if attributes[state] & NO_CONTINUATION:
                    break
        else:
            at = len(text)
        seen = max(seen, at)
        action = ACTIONS[actions[final]]
        if action.context:
            end = end_before_context(classes, begin, end, action.context, automaton)
        if action.strip:
            end = begin + len(text[begin:end].rstrip(SPACES))
        kept = begin + (action.keep or end - begin - action.back)
        if action.change:
            is_initial = actions[final] == INITIAL and end - begin == 2
            token = text[begin : end if action.changes_whole and not is_initial else kept]
            tokens.append(lower(join_surrogates(action.change(token))))
        begin = kept
    return tokens, begin, seen


def end_before_context(classes: bytes, begin: int, end: int, context: tuple[int, int], automaton: Automaton) -> int:
    """The end of a token that is followed by a context, both of which end at `end`: the last one that is possible.

    Args:
        classes: The classes of the text's units.
        begin, end: The place of the token with its context.
        context: The first states of the token, and of the context read backwards.
        automaton: The automaton.
    """
    transitions, attributes = automaton.transitions, automaton.attributes
    state, backwards = context
    is_end = []
    for each in classes[begin:end]:
        is_end.append(attributes[state] & FINAL)
        state = transitions[state][each]
        if state < 0:
            break
    else:
        is_end.append(attributes[state] & FINAL)
    is_end += [0] * (end - begin + 1 - len(is_end))
    at = end
    while not (is_end[at - begin] and attributes[backwards] & FINAL):
        at -= 1
        backwards = transitions[backwards][classes[at]]
    return at


def split_surrogates(text: str) -> str:
    """Write characters beyond U+FFFF as two UTF-16 units each, as Java does."""
    return BEYOND.sub(lambda each: "".join(map(chr, units_of(each[0]))), text)


def units_of(text: str) -> tuple[int, ...]:
    """The UTF-16 units of a text."""
    code = text.encode("utf-16-le")
    return struct.unpack(f"<{len(code) // 2}H", code)


def join_surrogates(token: str) -> str:
    """The characters of UTF-16 units; a unit that is none becomes a question mark, as in Java's output."""
    if token.isascii():
        return token
    return re.sub(
        "[\ud800-\udfff]", "?", token.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    )


def lower(token: str) -> str:
    """The lower case as Java has it, where a final sigma ends a word with a hyphen or an apostrophe in it."""
    if "Σ" not in token:
        return token.lower()
    words = CASED_WORD.split(token)
    return "".join(each.lower() if number % 2 == 0 else lower_sigma(each) for number, each in enumerate(words))


def lower_sigma(word: str) -> str:
    """A word in lower case; of its sigmas, one that no cased letter follows and one precedes is final."""
    return "".join(
        ("ς" if has_case(word[:place]) and not has_case(word[place + 1 :]) else "σ") if each == "Σ" else each.lower()
        for place, each in enumerate(word)
    )


def has_case(text: str) -> bool:
    """Whether a text has a letter with case."""
    return text.lower() != text.upper()
