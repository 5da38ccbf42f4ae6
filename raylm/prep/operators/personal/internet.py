"""Mail addresses, web addresses and the addresses of machines."""

from __future__ import annotations

import ipaddress
import re
import string
from collections.abc import Iterator

from raylm.prep.operators.personal.span import Range

_LONGEST_LOCAL = 64  # RFC 5321
# Signs of vowels and tones, which regular expressions take for no letters.
_SIGNS = (
    "\u0300-\u036f\u0900-\u0903\u093a-\u094f\u0981-\u0dff\u0e31-\u0e4e\u0eb1-\u0ecd\u0f71-\u0f84"
    "\u102b-\u103e\u17b4-\u17d3"
)
_LATIN = "0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
# An address is of one script. In those that write without spaces it ends where the script changes.
_LOCAL = re.compile(
    rf"(?:[{_LATIN}_.!#$%&'*+/=?^`{{|}}~-]+|(?<![^\W\d_])(?<![{_SIGNS}])(?:(?![{_LATIN}])[\w.+{_SIGNS}-])+)\Z"
)
_NOT_FIRST = ".!#$%&'*+/=?^`{|}~-"  # RFC 5322 allows more than people have: quotes and slashes around an address
_AT = re.compile(r"[@＠]| ?[\[(] ?at ?[\])] ?", re.IGNORECASE)
_LABEL = rf"[{_LATIN}](?:[{_LATIN}_-]{{0,61}}[{_LATIN}])?"
_OTHER_LABEL = rf"(?![{_LATIN}])[^\W_](?:(?![{_LATIN}])[\w{_SIGNS}-]){{0,62}}"
_DOT = r"(?:\.| ?[\[(] ?dot ?[\])] ?)"
_LETTER = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
_DOMAIN = re.compile(
    rf"(?:{_LABEL}(?:{_DOT}{_LABEL})*{_DOT}(?:xn--[a-z0-9-]+|[{_LETTER}]{{2,24}})(?![{_LATIN}_@])"
    rf"|{_OTHER_LABEL}(?:{_DOT}{_OTHER_LABEL})*{_DOT}(?:(?![{_LATIN}])[^\W\d_][{_SIGNS}]*){{2,24}}(?![\w@])"
    rf"|{_OTHER_LABEL}(?:{_DOT}{_OTHER_LABEL})*\.[a-z]{{2,24}}(?![{_LATIN}_@]))",
    re.IGNORECASE,
)
_OF_A_QUERY = re.compile(r"[/?&=]")  # what stands before a mail address in a web address
# git@host:path names a file; behind an address a colon may stand before a password or a sentence, too.
_COPIED_FROM = re.compile(r":(?:[~./]|[\w.-]+(?:/|\.[a-z]{2,4}\b))")
_COPIES = re.compile(r"\b(?:scp|rsync|sftp|ssh|git)\b[^\n]{0,80}\Z|(?<![\w.+-])(?:git|hg|svn)@\Z", re.I)
_FILES = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "html", "json", "pdf", "tar", "gz"})

# The digit comes before what looks back: then the search skips all other characters, at five times the speed.
_IPV4 = re.compile(
    rf"[0-9](?<![{_LATIN}_.-][0-9])(?<![\u0370-\u052f][0-9])[0-9]{{0,2}}(?:\.[0-9]{{1,3}}){{3}}(?![{_LATIN}_-]|\.[0-9])"
)
_IPV6_SIGN = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{6,39}(?<!:)(?![\w:])")
_VERSION = re.compile(
    r"(?:(?:\bv|\bver|version|release|build|firmware|driver|kernel|section|chapter|clause|§|article)[ .:]*"
    r"|[a-z][\w.+-]*/"  # nginx/1.18.0.22
    r"|(?:版本|固件|驱动|驅動|バージョン|ファームウェア|버전|펌웨어|верси[яюеи]|прошивк[аиу]|sürüm|wersja|versión|versão"
    r"|versione|الإصدار|เวอร์ชัน|phiên bản)[号為为은는이]?[ .:：]*)\Z",
    re.I,
)
_MACHINE = re.compile(r"\b(?:ip|ipv4|address|host|server|dns|ping|gateway|client)\b|://|地址|アドレス|서버|адрес", re.I)

# Marks of full width are of the sentence around an address.
_WIDE_MARKS = "，。、；：！？（）【】「」『』《》〈〉“”‘’…"
_URL = re.compile(rf"(?:https?://|ftp://|www\.(?=[^\W_]))[^\s<>\"'`{{}}|\\^\[\]{_WIDE_MARKS}]+", re.IGNORECASE)
_HOST = re.compile(rf"(?:[a-z]+://)?[{_LATIN}_.:@%-]*\.[{_LETTER}]{{2,24}}(?=[^\x00-\u024f])", re.IGNORECASE)


def emails(text: str) -> Iterator[Range]:
    """Mail addresses, also written `name [at] host [dot] org`."""
    if not any(mark in text for mark in ("@", "＠", "at]", "at)", "AT]", "AT)")):
        return
    seen = 0
    for at in _AT.finditer(text):
        local = _LOCAL.search(text, max(seen, at.start() - _LONGEST_LOCAL), at.start())
        domain = _DOMAIN.match(text, at.end())
        if local is None or domain is None:
            continue
        name = _OF_A_QUERY.split(local[0])[-1].lstrip(_NOT_FIRST)
        host = domain[0].lower()
        if name and host.rsplit(".", 1)[-1] not in _FILES and not _names_a_file(text, at, domain.end()):
            seen = domain.end()
            yield at.start() - len(name), domain.end()


def _names_a_file(text: str, at: re.Match[str], end: int) -> bool:
    """Whether what looks like an address is a place on another machine: user@host:path."""
    copied = text[end : end + 1] == ":" and text[end + 1 : end + 2].strip()
    commanded = copied and _COPIES.search(text[max(0, at.start() - 100) : at.end()])
    return bool(commanded) or _COPIED_FROM.match(text, end) is not None


def ips(text: str) -> Iterator[Range]:
    """Addresses that a machine can have on the public network; versions and numbered paragraphs are not taken."""
    for match in _IPV4.finditer(text):
        before = text[max(0, match.start() - 25) : match.start()]
        # 2.7.2.2 is a version unless something says otherwise: few machines have four parts of one digit.
        short = len(match[0]) == 7 and not _MACHINE.search(before)
        if not short and _is_public(match[0]) and not _VERSION.search(before):
            yield match.span()
    yield from _ipv6(text)


def _ipv6(text: str) -> Iterator[Range]:
    seen = 0
    for sign in _IPV6_SIGN.finditer(text):
        start = sign.start()
        while start > seen and text[start - 1] in string.hexdigits:
            start -= 1
        match = _IPV6.match(text, start) if start >= seen else None
        if match is None:
            continue
        seen = match.end()
        # With `::` in it, much of C++ and many Bible verses would do: ask for what is given out (RFC 4291).
        sure = "::" not in match[0] or re.match(r"[23][0-9A-Fa-f]{3}:", match[0])
        if sure and _is_public(match[0]):
            yield match.span()


def urls(text: str) -> Iterator[Range]:
    """Web addresses without the punctuation of the sentence they stand in."""
    for match in _URL.finditer(text):
        host = _HOST.match(match[0])  # one that a sentence without spaces goes on behind
        address = (host or match)[0].rstrip(".,;:!?*_~")
        while address.endswith(")") and address.count(")") > address.count("("):
            address = address[:-1].rstrip(".,;:!?")
        yield match.start(), match.start() + len(address)


def _is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast
