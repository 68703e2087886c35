"""Read the tables of the PTB tokenizer's automaton from the jar of pycocoevalcap, without Java."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from blip_recipe.metrics.errors import TokenizerError
from blip_recipe.metrics.java import pycocoevalcap_file

JAR = "stanford-corenlp-3.4.1.jar"
LEXER = "edu/stanford/nlp/process/PTBLexer.class"

FINAL, NO_CONTINUATION = 1, 8
"""Attributes of a state: a token may end here; no longer token begins like this."""

KNOWN_WORDS = 200_000
"""The number of words whose tokens are kept."""

CONSTANT_SIZES = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 18: 4}
"""Bytes of an entry of a class file's constant pool by its kind (section 4.4 of the Java virtual machine's
specification); texts, kind 1, have their own length."""
TEXT, STRING = 1, 8
TWO_PLACES = (5, 6)


@dataclass(frozen=True)
class Automaton:
    """The deterministic automaton of a lexer that JFlex 1.4 generated.

    Attributes:
        classes: The class of each UTF-16 unit, as a character.
        transitions: For each state, the next state by class; -1: none.
        actions: The number of the action of each final state.
        attributes: The attributes of each state.
        known: The tokens of words that were met before, each between spaces, or at the end of a line with the line end.
    """

    classes: str
    transitions: list[list[int]]
    actions: list[int]
    attributes: list[int]
    known: dict[str, list[str]] = field(default_factory=lambda: {"": []})

    def learn(self, word: str, tokens: list[str]) -> None:
        """Keep the tokens of a word, for not too many words."""
        if len(self.known) < KNOWN_WORDS:
            self.known[word] = tokens

    def classes_of(self, text: str) -> bytes:
        """The class of each character of a text; none is beyond U+FFFF."""
        return text.translate(self.classes).encode("latin-1")  # type: ignore[arg-type]


@cache
def read_automaton() -> Automaton:
    """Read the automaton from the jar.

    Raises:
        TokenizerError: The jar is not that of pycocoevalcap 1.2.
    """
    jar = pycocoevalcap_file("tokenizer", JAR)
    try:
        with zipfile.ZipFile(jar) as archive:
            packed = dict(string_constants(archive.read(LEXER)))
        classes = repeat_runs(packed["ZZ_CMAP_PACKED"])
        high_and_low = iter(packed["ZZ_ROWMAP_PACKED_0"])
        rows = [high << 16 | low for high, low in zip(high_and_low, high_and_low, strict=True)]
        targets = [each - 1 for part in range(9) for each in repeat_runs(packed[f"ZZ_TRANS_PACKED_{part}"])]
        actions = repeat_runs(packed["ZZ_ACTION_PACKED_0"])
        attributes = repeat_runs(packed["ZZ_ATTRIBUTE_PACKED_0"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise TokenizerError(f"{jar} is not the jar of pycocoevalcap 1.2: install it again ({error!r}).") from error
    columns = max(classes) + 1
    shared = {row: targets[row : row + columns] for row in set(rows)}
    return Automaton("".join(map(chr, classes)), [shared[row] for row in rows], actions, attributes)


def repeat_runs(packed: list[int]) -> list[int]:
    """Unpack pairs of a count and a value."""
    numbers = iter(packed)
    return [value for count, value in zip(numbers, numbers, strict=True) for _ in range(count)]


def string_constants(code: bytes) -> Iterator[tuple[str, list[int]]]:
    """The static texts of a class file with their names, as UTF-16 units."""
    count, at = struct.unpack_from(">H", code, 8)[0], 10
    texts: dict[int, bytes] = {}
    strings: dict[int, int] = {}
    number = 1
    while number < count:
        kind = code[at]
        if kind == TEXT:
            size = struct.unpack_from(">H", code, at + 1)[0]
            texts[number] = code[at + 3 : at + 3 + size]
            at += 3 + size
        else:
            if kind == STRING:
                strings[number] = struct.unpack_from(">H", code, at + 1)[0]
            at += 1 + CONSTANT_SIZES[kind]
        number += 2 if kind in TWO_PLACES else 1
    at += 6  # access flags, the class and its base
    at += 2 + 2 * struct.unpack_from(">H", code, at)[0]  # interfaces
    fields, at = struct.unpack_from(">H", code, at)[0], at + 2
    for _ in range(fields):
        _, name, _, attributes = struct.unpack_from(">4H", code, at)
        at += 8
        for _ in range(attributes):
            label, size = struct.unpack_from(">HI", code, at)
            value = struct.unpack_from(">H", code, at + 6)[0] if texts[label] == b"ConstantValue" else 0
            if value in strings:
                yield texts[name].decode(), decode_units(texts[strings[value]])
            at += 6 + size


def decode_units(text: bytes) -> list[int]:
    """The UTF-16 units of a class file's text, in which each unit has one to three bytes."""
    return [ord(unit) for unit in text.replace(b"\xc0\x80", b"\0").decode("utf-8", "surrogatepass")]
