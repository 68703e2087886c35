"""Texts that stress the rules of a tokenizer: made of words, abbreviations, numbers, quotes, tags and other scripts."""

from __future__ import annotations

import random
from collections.abc import Iterator

from blip_recipe.metrics.tokenizer import clean_caption

# fmt: off
PIECES = [
    "U.S.", "Mr.", "Mrs.", "Dr.", "St.", "etc.", "e.g.", "i.e.", "a.m.", "p.m.", "Inc.", "No.", "vs.", "Jan.",
    "Fig.", "J.", "A.", "&amp;", "&lt;", "&gt;", "&quot;", "&apos;", "&nbsp;", "</a>", "<b>", "<img src='x'>",
    "http://x.com/a?b=1", "www.foo.org", "foo@bar.com", "#tag", "@me", ":-)", ";-)", ":(", "<3", "1/2", "3,000",
    "2.5", "12:30", "555-1234", "(555) 123-4567", "+1 415 555 1234", "½", "¾ ", " 1½", "£5", "$4.50", "€3", "¢",
    "US$", "...", "…", ". . .", "....", "--", "---", "------", "–", "—", "'", "''", "\"", "``", "`", "‘a’", "“b”",
    "«c»", "'tis", "'twas", "'em", "'90s", "o'clock", "rock'n'roll", "y'all", "gonna", "gotta", "wanna", "cannot",
    "lemme", "gimme", "d'ye", "more'n", "Can't", "won't", "dogs'", "dog's", "dog’s", "I'd", "they'll", "we've",
    "ain't", "mother-in-law", "12-year-old", "co-op", "AT&T", "R&B", "and/or", "his/her", "**", "*", "\\", "\\/",
    "~", "^", "_", "a_b", "{", "}", "[", "]", "(", ")", "-LRB-", "|", "%", "50%", "20°C", "C#", "C++", "\u00ad",
    "so\u00adft", "naïve", "café", "Zürich", "北京", "猫", "日本", "ひ", "й", "русский", "عربي", "हिन्दी", "é", "é",
    "\u200b", "\u200d", "\ufeff", "\u0080", "\u0085", "\u0091q\u0092", "\u0093q\u0094", "\u00a0", "\u3000",
    "\u2028", " ", "😀", "👍🏽", "🇫🇷", "İ", " ΟΔΟΣ ", "ß", "ﬁ", "①", "²", "x²", "½x", "٣", "１２", " U.K", "Ph.D.",
    "B.A.",
    "Sgt.", "Ave.", "Blvd.", "Ft.", "Jr.", "Sr.", "A.J.", "e-mail", "T-shirt", "t-shirt.", "o.k.", "No. 5", "no.",
    "p.m. A", "U.S. Army", "St. Paul", "Corp.", "Ltd.", "?", "!", "??", "?!", "!!!", ",", ";", ":", "a,b",
    "1,000,000", "1,00", "10,", "3-2", "1-800-555-1234", "'s", "s'", "n't", "dunno", "'cause", "$", "€", "US", "A",
    "a", "the", "on",
]
# fmt: on
"""What the rules of PTB's lexer treat in a special way."""

CHARACTERS = [*map(chr, range(0x20, 0x7F)), *"\t\x80\x91\x92\xa0\xad£¢½éßİ–—‘’“”…€←\u3000一😀\ufe0f\ufffd\u0600אहกẞ"]
SHORT = "abcABC.'-,&;/1 2"
# fmt: off
WORDS = [
    "a", "the", "on", "with", "two", "small", "dog", "dogs", "red", "tall", "street", "riding",
    "cannot", "table's", "men", "Boston", "TV", "skiers", "it", "Paris",
]
# fmt: on


def odd_texts(seed: int, count: int) -> Iterator[str]:
    """Make `count` texts of one line each."""
    random_ = random.Random(seed)
    for _ in range(count):
        yield clean_caption(_odd_text(random_))


def _odd_text(random_: random.Random) -> str:
    kind, size = random_.random(), random_.randint(1, 12)
    if kind < 0.35:
        return " ".join(random_.choice(WORDS if random_.random() < 0.6 else PIECES) for _ in range(size))
    if kind < 0.65:
        return "".join(random_.choice(PIECES) + random_.choice([*3 * [""], " ", ".", ",", "-"]) for _ in range(size))
    if kind < 0.85:
        return "".join(random_.choices(CHARACTERS, k=3 * size))
    return "".join(random_.choices(SHORT, k=2 * size))
