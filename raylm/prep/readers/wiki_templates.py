"""Templates of Wikipedia that only give their arguments a form: what a reader sees of them.

Most templates say what stands elsewhere, or what a page only shows beside its sentences; those here hold a word of the
sentence, which would have a hole without them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# Templates that only give their arguments a form, in small letters without spaces: which ones they show.
_LAST = frozenset(
    (
        *("lang", "langue", "idioma", "langx", "transl", "translit", "transliteration", "spr", "språk", "llang"),
        *("color", "colour", "fontcolor", "fontcolour", "couleur", "farbe"),
    )
)
_FIRST = frozenset(
    (
        *("nowrap", "nobr", "nowraplinks", "nobreak", "small", "smaller", "big", "larger", "abbr", "abkürzung"),
        *("quote", "quotation", "cquote", "blockquote", "bquote", "quotebox", "poem", "verse", "poemquote", "zitat"),
        *("citationbloc", "citation", "cita", "citazione", "math", "mvar", "var", "em", "strong", "code", "kbd"),
        *("ill", "illm", "interlanguagelink", "link-interwiki", "lien", "center", "smallcaps", "sc", "tooltip"),
        *("uppercase", "lowercase", "sup", "sub", "exp", "ind", "formatnum", "nombre", "num", "gaps"),
        *("notatypo", "sic", "linktext", "keypress", "key", "angbr", "chem", "chem2", "ce", "visibleanchor"),
        *("okina", "zh-hans", "zh-hant", "tq", "lc", "uc", "ucfirst", "lcfirst", "unicode", "script", "samp"),
        *(
            "petitescapitales",
            "vanchor",
            "ruby",
            "ルビ",
            "読み仮名",
            "仮リンク",
            "link-en",
            "le",
            "s",
            "esd",
            "nihongo2",
        ),
        *("versalita", "versalitas", "maiuscoletto", "ens", "des", "frs", "ess", "its", "las", "grs", "rus", "إنج"),
        *("citação", "cytat", "citaat", "citát", "цитата", "комментарий", "comment", "citationétrangère", '"', "bq"),
        *("u", "strike", "aswritten", "date-", "formatnombre", "nts", "number", "число", "nobold", "noitalic"),
        *("jis2004フォント", "補助漢字フォント", "補助漢字", "italic", "bold", "nihongofoot", "nihongokrt"),
    )
)
_ALL = frozenset(
    (
        *("convert", "cvt", "val", "unité", "unite", "unit", "date", "nb", "conv", "umrechnung", "größe", "unidad"),
        *("fmtn", "unità"),
    )
)
_RANGES = frozenset(("-", "–", "to", "and", "by", "x", "×", "or", "+/-", "±", "à", "et", "bis", "und"))
_FRACTIONS = frozenset(("frac", "sfrac", "fraction", "bruch", "fract"))
# Their second argument names what is shown, where it is given.
_SECOND = frozenset(("w", "нп", "нп1", "нп2", "нп3", "нп4", "нп5", "непереведено", "непереведено5", "iwl"))
_LISTS = {
    **{"hlist": ", ", "flatlist": ", ", "ubl": "\n", "unbulletedlist": "\n", "plainlist": "\n", "bulletedlist": "\n"},
    **{"orderedlist": "\n", "liste": "\n", "cslist": ", ", "liste horizontale": ", "},
}
# What stands before and behind the first argument.
_AROUND = {
    **{"circa": ("c. ", ""), "c.": ("c. ", ""), "ca.": ("ca. ", ""), "guil": ("« ", " »"), "e": ("×10^", "")},
    **{"sqrt": ("√", ""), "radic": ("√", ""), "siglo": ("siglo ", ""), "séc": ("século ", ""), "usd": ("US$", "")},
    **{"us$": ("US$", ""), "eur": ("€", ""), "€": ("€", ""), "gbp": ("£", ""), "inr": ("₹", ""), "jpy": ("¥", "")},
}
_SIGNS = {
    **{"nbsp": " ", "spaces": " ", "thinsp": " ", "snd": " – ", "spndash": " – ", "ndash": "–", "mdash": "—"},
    **{"endash": "–", "emdash": "—", "spacedndash": " – ", "'": "'", "=": "=", "!": "|", "·": " · ", "dot": " · "},
    **{"•": " • ", "bull": " • ", "okina": "ʻ", "hamza": "ʼ", "ayin": "ʿ", "1er": "1er", "1re": "1re", "n°": "n°"},
    **{"mme": "Mme", "m.": "M.", "inr": "₹", "usd": "US$", "eur": "€", "gbp": "£", "—": " — ", "–": " – "},
}
_CENTURY = re.compile(r"([ivxlcdm]+)(er?)(siècle)?")
_IN_NAME = re.compile(r"\d+/\d+")


def only_gives_form(name: str) -> bool:
    """Whether a template of this name, in small letters without spaces, shows its arguments and nothing else."""
    known = (_LAST, _FIRST, _FRACTIONS, _ALL, _SECOND, _LISTS, _AROUND, _SIGNS)
    return (
        name.startswith("lang-")
        or name in ("nihongo", "tsl", "s-", "-s", "-s-")
        or (any(name in those for those in known) or bool(_CENTURY.fullmatch(name) or _IN_NAME.fullmatch(name)))
    )


def shown_form(name: str, positional: Sequence[str], named: Mapping[str, str]) -> str:
    """What is seen of such a template; nothing where it is given nothing."""
    given = [text for text in positional if text] or [named[key] for key in ("1", "text", "2") if named.get(key)]
    if not given:
        return _by_name_alone(name)
    if label := named.get("lt") or named.get("label"):
        return label
    if name in _LISTS:
        return _LISTS[name].join(given)
    if name in ("s", "s-", "-s", "-s-") and len(given) > 1:
        return _century(name, given)
    if name in _LAST:
        return given[-1]
    if name in _FRACTIONS:
        return " ".join([*given[:-2][-1:], "/".join(given[-2:] if len(given) > 1 else ["1", *given])])
    if name in _SECOND:
        return positional[1] if len(positional) > 1 and positional[1] else given[0]
    if name in _AROUND:
        before, behind = _AROUND[name]
        return f"{'' if name == 'siglo' and not positional[2:] else before}{given[0]}{behind}"
    return _with_unit(name, given, named) if name in _ALL else _first(name, given)


def _by_name_alone(name: str) -> str:
    if name in _SIGNS:
        return _SIGNS[name]
    if _IN_NAME.fullmatch(name):
        return name
    century = _CENTURY.fullmatch(name)
    return f"{century[1].upper()}{century[2]}{' siècle' if century[3] else ''}" if century else ""


def _century(name: str, given: Sequence[str]) -> str:
    """A century as French articles write it: XIX and e."""
    word = " siècle" if name in ("s", "-s") else ""
    return f"{given[0]}{given[1]}{word}{' av. J.-C.' if name.startswith('-') else ''}"


def _first(name: str, given: Sequence[str]) -> str:
    if name == "nihongo" and len(given) > 1:
        return f"{given[0]} ({', '.join(given[1:3])})"
    return given[2] if name == "tsl" and len(given) > 2 else given[0]


def _with_unit(name: str, given: Sequence[str], named: Mapping[str, str]) -> str:
    """A number and its unit, as given; what it is converted to is not computed."""
    if name in ("date", "unité", "unite", "unit", "nb", "unidad", "fmtn", "unità"):
        return " ".join(given)
    if name == "val":
        power = f"×10^{named['e']}" if named.get("e") else ""
        return " ".join([given[0] + power, *filter(None, [named.get("u") or named.get("ul")])])
    shown = 4 if len(given) > 2 and given[1] in _RANGES else 2
    return " ".join(given[:shown])
