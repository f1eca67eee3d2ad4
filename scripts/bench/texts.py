"""Texts to embed: made up from word lists, the same on every run and machine.

Three shapes: ``natural`` (as long as English sentences are, about 33 tokens on average with a long tail),
``short`` (8 to 12 words) and ``long`` (120 to 180 words). Identical texts are rare on purpose: a server may
remember what it has embedded.
"""

from __future__ import annotations

import random
from collections.abc import Callable

SEED = 20
SHAPES = ("natural", "short", "long")


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split("|")]


_NOUNS = _words(
    """
    archive baker balance bicycle bridge budget cabinet calendar camera canal captain carpenter ceiling
    channel chapter climate coast colleague compass contract corner council crane curtain customer
    delivery department desert detail dictionary doctor document driver editor electricity engine
    engineer evening factory farmer ferry festival fisherman flour forest furnace garden gardener
    gateway glacier grammar granite guitar harbour harvest helmet highway hospital hydrogen insurance
    island journalist journey kettle keyboard kitchen laboratory ladder lamp landlord language lantern
    lawyer lecture lens library lighthouse magnet market mayor meadow measurement mechanic melody memory
    merchant microscope mineral minister mirror molecule monument mountain museum musician nephew
    neighbour notebook nurse observatory ocean office orchard orchestra oven painter parliament
    passenger pasture pendulum petrol pharmacy photograph physician pilot platform plumber poem pension
    postcard potato printer professor protein province pump quarter railway recipe reservoir restaurant
    rhythm river rocket roof sailor satellite scaffold scientist sculpture secretary sediment sentence
    shepherd signal skeleton soldier spectrum staircase statistic storm student sugar supplier surgeon
    survey tailor teacher telescope tenant theatre theorem thermometer thread ticket timber tractor
    translator transistor treaty tribunal tunnel turbine umbrella university vaccine valley vessel
    veterinarian village vineyard violin volcano waiter warehouse watchmaker waterfall weather wedding
    whale wheat window winter witness workshop
    """
)
_ADJECTIVES = _words(
    """
    abandoned ancient annual bitter bright broken careful cheap chemical civil clumsy coastal cold
    common complex copper curious daily damp deep delicate digital distant domestic dusty early eastern
    elaborate electric empty enormous expensive familiar famous fertile foreign fragile frozen generous
    gentle golden grateful heavy hidden historic hollow honest humid industrial invisible large late
    local loud magnetic medieval mild modern municipal narrow nervous noisy northern ordinary parallel
    patient peculiar permanent polite precise private quiet rapid rare reliable remote rural rusty
    seasonal sharp silent slow solar steep stubborn sudden temporary thin tropical unfinished unusual
    urban useful vertical warm western wooden
    """
)
_VERBS = _words(
    """
    admired adjusted announced answered avoided borrowed built calculated carried cleaned collected
    compared completed considered copied counted covered crossed delivered described designed discovered
    discussed divided emptied examined expected explained filled financed followed forgot found guarded
    heated ignored imagined improved inherited inspected installed interrupted invented launched left
    lifted loaded lost managed measured mended mentioned misunderstood missed moved needed noticed
    observed opened ordered organised painted planned praised predicted preferred prepared preserved
    printed promised protected published questioned recognised recommended recorded refused removed
    rented repaired replaced reported rescued restored reviewed saved searched selected sketched sold
    studied supplied surrounded suspected tested traced translated understood visited warned watched
    weighed
    """
)
_PLACES = _words(
    """
    Lisbon Geneva Nairobi Kyoto Toronto Bergen Valencia Krakow Montevideo Melbourne Edinburgh Tbilisi
    Dakar Quito Hanoi Aarhus Ljubljana Wellington Marrakesh Vancouver Antwerp Trieste
    """
)
_PEOPLE = _words(
    """
    Amara Benedikt Chiara Dmitri Eleni Farid Greta Hiroshi Ingrid Joaquin Katarzyna Leif Miriam Nikhil
    Olga Pilar Quentin Rosalind Samuel Tamsin Ulrich Valentina Wojciech Yasmin Zoltan
    """
)
_TIMES = _phrases(
    """
    before breakfast| in the early spring| last Tuesday| after the second inspection|
    during the long strike| at dusk| for almost forty years| between two meetings|
    as soon as the snow had melted| once a month| in 1987| on the way home| shortly before midnight|
    throughout the summer| by the end of the week| every other morning
    """
)
_LINKS = _phrases(
    """
    because| although| while| so that| until| after| even though| whenever| and| but| which meant that|
    as if| where| on the condition that| since| unless
    """
)
_OPENERS = _phrases(
    """
    However,| In the end,| According to the report,| To everyone's surprise,| As far as we know,|
    For the same reason,| Strictly speaking,| Nevertheless,| On the other hand,| Not surprisingly,
    """
)
_ASIDES = _phrases(
    """
    by the way| it is said| roughly 12% of the total| at least in theory| despite the cost|
    as the minutes show| with some luck| more than 3,500 in all| to put it mildly
    """
)


def generate(shape: str, count: int) -> list[str]:
    """Return ``count`` texts of the shape; a smaller count gives the beginning of a larger one's list."""
    chance = random.Random(f"{SEED}/{shape}")  # noqa: S311 - not a secret
    make: Callable[[random.Random], str] = {"natural": _natural, "short": _short, "long": _long}[shape]
    return [make(chance) for _ in range(count)]


def _natural(chance: random.Random) -> str:
    """As in running English: most texts are one sentence, some a word or two, some a paragraph."""
    kind = chance.random()
    if kind < 0.06:
        return " ".join(_noun_phrase(chance) for _ in range(chance.randint(1, 2)))
    words = chance.lognormvariate(3.20, 0.52)
    return _of_words(chance, max(4, round(words)))


def _short(chance: random.Random) -> str:
    return _of_words(chance, chance.randint(8, 12))


def _long(chance: random.Random) -> str:
    return _of_words(chance, chance.randint(120, 180))


def _of_words(chance: random.Random, wanted: int) -> str:
    """Sentences until there are as many words as wanted, cut there."""
    words: list[str] = []
    while len(words) < wanted:
        words += _sentence(chance).split()
    return " ".join(words[:wanted]).rstrip(",;") + ("" if words[wanted - 1].endswith(".") else ".")


def _sentence(chance: random.Random) -> str:
    parts = [_clause(chance)]
    while chance.random() < 0.45 and len(parts) < 4:
        parts.append(f"{chance.choice(_LINKS)} {_clause(chance)}")
    text = " ".join(parts)
    if chance.random() < 0.2:
        return f"{chance.choice(_OPENERS)} {text}."
    return f"{text[0].upper()}{text[1:]}."


def _clause(chance: random.Random) -> str:
    subject = chance.choice(_PEOPLE) if chance.random() < 0.3 else _noun_phrase(chance)
    if chance.random() < 0.12:
        subject += f", {chance.choice(_ASIDES)},"
    clause = f"{subject} {chance.choice(_VERBS)} {_noun_phrase(chance)}"
    if chance.random() < 0.35:
        clause += f" {chance.choice(('in', 'near', 'from', 'outside'))} {chance.choice(_PLACES)}"
    if chance.random() < 0.4:
        clause += f" {chance.choice(_TIMES)}"
    return clause


def _noun_phrase(chance: random.Random) -> str:
    article = chance.choice(("the", "the", "the", "one", "every", "their", "this", "another", "my", "no"))
    adjective = f"{chance.choice(_ADJECTIVES)} " if chance.random() < 0.5 else ""
    noun = chance.choice(_NOUNS)
    if chance.random() < 0.2:
        noun += f" of the {chance.choice(_NOUNS)}"
    return f"{article} {adjective}{noun}"
