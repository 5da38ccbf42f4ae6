"""Wikipedia's markup becomes text: sentences, headings, lists and code, without what a page only shows beside them.

mwparserfromhell understands the markup, 0.6 MB of it a second. Templates are dropped, as what they say stands
elsewhere, but for those that only give their arguments a form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raylm.prep.extras import not_installed
from raylm.prep.readers.wiki_templates import only_gives_form, shown_form

# Namespaces whose links place something in the page or say something about it, and so are no part of its sentences.
PLACED_KEYS = ("6", "14", "-2")  # files, categories, media
_PLACED = frozenset(
    (
        *("file", "image", "category", "media", "datei", "bild", "kategorie", "fichier", "catégorie", "média"),
        *("archivo", "imagen", "categoría", "medio", "ficheiro", "imagem", "categoria", "multimédia", "immagine"),
        *("plik", "grafika", "kategoria", "bestand", "afbeelding", "categorie", "fil", "billede", "bilde", "kategori"),
        *("файл", "изображение", "категория", "файл", "зображення", "категорія", "soubor", "súbor", "kép", "fájl"),
        *("kategória", "fișier", "imagine", "dosya", "resim", "tiedosto", "kuva", "luokka", "αρχείο", "εικόνα"),
        *("κατηγορία", "קובץ", "תמונה", "קטגוריה", "ملف", "صورة", "تصنيف", "پرونده", "تصویر", "رده", "चित्र", "श्रेणी"),
        *("ไฟล์", "ภาพ", "หมวดหมู่", "tập tin", "hình", "thể loại", "berkas", "gambar", "ファイル", "画像", "カテゴリ"),
        *("文件", "档案", "檔案", "图像", "圖像", "分类", "分類", "파일", "그림", "분류"),
    )
)
_LANGUAGES = frozenset(
    " ".join(
        (
            "aa ab ace ady af ak als alt am ami an ang anp ar arc ary arz as ast atj av avk awa ay az azb ba ban",
            "bar bat-smg bbc bcl bdr be be-tarask be-x-old bew bg bh bi bjn blk bm bn bo bpy br bs btm bug bxr ca",
            "cbk-zam cdo ce ceb ch chr chy ckb co cr crh cs csb cu cv cy da dag de dga din diq dsb dtp dty dv dz",
            "ee el eml en eo es et eu ext fa fat ff fi fiu-vro fj fo fon fr frp frr fur fy ga gag gan gcr gd gl",
            "glk gn gom gor got gpe gsw gu guc gur guw gv ha hak haw he hi hif hr hsb ht hu hy hyw ia iba id ie",
            "ig igl ik ilo inh io is it iu ja jam jbo jv ka kaa kab kbd kbp kcg kg kge ki kk kl km kn knc ko koi",
            "krc ks ksh ku kus kv kw ky la lad lb lbe lez lfn lg li lij lld lmo ln lo lrc lt ltg lv lzh mad mai",
            "map-bms mdf mg mhr mi min mk ml mn mni mnw mos mr mrj ms mt mwl my myv mzn nah nan nap nb nds nds-nl",
            "ne new nia nl nn no nov nqo nr nrm nso nv ny oc olo om or os pa pag pam pap pcd pcm pdc pfl pi pih",
            "pl pms pnb pnt ps pt pwn qu rm rmy rn ro roa-rup roa-tara rsk ru rue rup rw sa sah sat sc scn sco sd",
            "se sg sgs sh shi shn si simple sk skr sl sm smn sn so sq sr srn ss st stq su sv sw szl szy ta tay",
            "tcy tdd te tet tg th ti tk tl tly tn to tpi tr trv ts tt tum tw ty tyv udm ug uk ur uz ve vec vep vi",
            "vls vo vro wa war wo wuu xal xh xmf yi yo yue za zea zgh zh zh-classical zh-min-nan zh-yue zu",
        )
    ).split()
)
_SWITCH = re.compile(r"-\{(.*?)\}-", re.S)
_VARIANT = re.compile(r"\s*(zh(?:-[a-z]+)*|sr-[a-z]+|kk-[a-z]+|uz-[a-z]+|iu-[a-z]+)\s*:\s*([^;]*)", re.I)
_WORD = re.compile(r"__([^\W\d](?:\w*?[^\W_])?)__")
# What languages for programs call so themselves.
_NAMES_OF_CODE = frozenset(
    (
        *("FILE", "LINE", "DATE", "TIME", "TIMESTAMP", "FUNC", "FUNCTION", "COUNTER", "STDC", "VERSION", "GNUC"),
        *("DIR", "CLASS", "METHOD", "NAMESPACE", "TRAIT", "END", "DATA", "WARN", "DIE", "PACKAGE", "SUB", "ENV"),
        *("VA_ARGS", "VA_OPT", "OBJC", "LP64", "MODULE", "CALLER", "STACKTRACE", "ASSEMBLER", "INCLUDE_LEVEL"),
    )
)
_GONE = "\2"  # where a template was dropped
_MARKS = r"\s,;:、，；–—\x02-"
_HOLLOW = re.compile(rf"[ \xa0]?[(（\[](?=[{_MARKS}]*\x02)[{_MARKS}]*[)）\]]")
_BEGUN = re.compile(rf"([(（])(?=[{_MARKS}]*\x02)[{_MARKS}]+")
_ENDED = re.compile(rf"[{_MARKS}]*\x02[{_MARKS}]*([)）])")
HEADING = "\0"  # and a level, in front of a heading until empty sections are gone; XML cannot hold it
_AS_IT_STANDS = "\1"  # in front of a line of code

_DROPPED_TAGS = frozenset(
    (
        *("gallery", "graph", "hiero", "imagemap", "indicator", "mapframe", "maplink", "ref", "references", "score"),
        *("script", "section", "style", "table", "templatestyles", "timeline"),
    )
)
_READINGS = frozenset(("rt", "rp", "rtc"))  # how the characters below are spoken
_KINDS = {"ref": "references", "references": "references", "table": "tables"}
_CODE_TAGS = frozenset(("syntaxhighlight", "source", "pre"))
_FORMULA_TAGS = frozenset(("math", "chem", "ce"))


@dataclass(frozen=True)
class Site:
    """What a dump says of its site: the names of namespaces whose links are no part of a sentence, in small letters."""

    placed: frozenset[str] = _PLACED

    @classmethod
    def of(cls, namespaces: Mapping[str, str]) -> Site:
        """A site whose namespaces are these, by key."""
        own = (namespaces.get(key, "").strip().lower() for key in PLACED_KEYS)
        return cls(_PLACED | {name for name in own if name})

    def shows(self, target: str) -> bool:
        """Whether a link to this stands in a sentence: no file, category or page in another language."""
        prefix, colon, _ = target.partition(":")
        name = " ".join(prefix.replace("_", " ").split()).lower()
        return not colon or not name or (name not in self.placed and name not in _LANGUAGES)


def _unheard(_kind: str, _markup: str) -> None:
    pass


def renderer(site: Site, left_out: Callable[[str, str], None] = _unheard) -> Callable[[str], str]:
    """A function from a page's markup to its text. left_out: hears of what goes, as a kind of markup and the markup."""
    try:
        import mwparserfromhell
    except ImportError as error:
        raise not_installed("reading Wikipedia dumps", error) from error
    render = _Renderer(site, mwparserfromhell.nodes, left_out)

    def to_text(markup: str) -> str:
        parsed = mwparserfromhell.parse(_SWITCH.sub(_chosen, markup), skip_style_tags=True)
        return _tidied("".join(render.code(parsed)))

    return to_text


class _Renderer:
    """The text of parsed markup. nodes: mwparserfromhell's kinds of them."""

    def __init__(self, site: Site, nodes: Any, left_out: Callable[[str, str], None]) -> None:
        self._site, self._nodes, self._left_out = site, nodes, left_out

    def code(self, code: Any) -> Iterator[str]:
        for node in code.nodes:
            yield from self._node(node)

    def _node(self, node: Any) -> Iterator[str]:
        nodes = self._nodes
        if isinstance(node, nodes.Text):
            yield str(node)
        elif isinstance(node, nodes.Wikilink):
            yield from self._link(node)
        elif isinstance(node, nodes.ExternalLink):
            if node.title is not None:
                yield from self.code(node.title)
        elif isinstance(node, nodes.Heading):
            yield f"{HEADING}{node.level}{''.join(self.code(node.title)).strip()}\n"
        elif isinstance(node, nodes.HTMLEntity):
            yield node.normalize()
        elif isinstance(node, nodes.Template):
            yield from self._template(node)
        elif isinstance(node, nodes.Tag):
            yield from self._tag(node)

    def _link(self, node: Any) -> Iterator[str]:
        target = str(node.title).strip()
        if self._site.shows(target):
            yield from self.code(node.text) if node.text is not None else [target.lstrip(":")]
        else:
            self._left_out("files_and_categories", str(node))

    def _tag(self, node: Any) -> Iterator[str]:
        name = str(node.tag).strip().lower()
        if name == "br":
            yield "\n"
        elif name in _CODE_TAGS and node.contents is not None:
            lines = str(node.contents).strip("\n").split("\n")
            yield "\n" + "".join(f"{_AS_IT_STANDS}{line.rstrip()}\n" for line in lines)
        elif name in _FORMULA_TAGS and node.contents is not None:
            yield " ".join(str(node.contents).split())
        elif name == "dd" and node.wiki_markup:
            yield ":"  # in a line behind a term; at its beginning it goes as indentation
        elif name in _READINGS:
            return
        elif name in _DROPPED_TAGS:
            self._left_out(_KINDS.get(name, "galleries_and_such"), str(node))
        elif node.contents is not None:
            yield from self.code(node.contents)

    def _template(self, node: Any) -> Iterator[str]:
        name = "".join(str(node.name).replace("_", " ").split()).lower()
        name, colon, inline = name.partition(":")  # {{formatnum:3}} is a function of the parser
        if not only_gives_form(name):
            self._left_out("templates", str(node))
            yield _GONE
            return
        given = [inline] if colon else []
        given += ["".join(self.code(one.value)).strip() for one in node.params if not one.showkey]
        named = {str(one.name).strip(): "".join(self.code(one.value)).strip() for one in node.params if one.showkey}
        yield shown_form(name, given, named) or _GONE


def _chosen(match: re.Match[str]) -> str:
    """One spelling of what is written in several: the first that is given; rules for titles and pages are hidden."""
    flags, bar, body = match[1].rpartition("|")
    if bar and set(flags.replace(";", "").strip().upper()) & set("THD-"):
        return ""
    variants = _VARIANT.findall(body)
    return variants[0][1].strip() if variants else body


def _tidied(text: str) -> str:
    """Paragraphs between single blank lines; headings of sections that hold nothing any more are dropped."""
    kept: list[str] = []
    for line in text.replace("'''", "").replace("''", "").split("\n"):
        if line.startswith(HEADING):
            _drop_empty(kept, level=line[1])
            kept.append(line)
            continue
        if not line.startswith(_AS_IT_STANDS):
            line = _whole(line).strip(" \t").lstrip(": \t")
        if line or (kept and kept[-1] and not kept[-1].startswith(HEADING)):
            kept.append(line)
    _drop_empty(kept, level="0")
    lines = (line[2:] if line.startswith(HEADING) else line.removeprefix(_AS_IT_STANDS) for line in kept)
    return "\n".join(lines).strip()


def _whole(line: str) -> str:
    """A line without words for the site's software, and without the brackets that dropped templates leave."""
    line = _WORD.sub(lambda match: "" if _is_for_the_site(match[1]) else match[0], line)
    if _GONE in line:
        line = _ENDED.sub(r"\1", _BEGUN.sub(r"\1", _HOLLOW.sub("", line))).replace(_GONE, "")
    return line


def _is_for_the_site(word: str) -> bool:
    return word == word.upper() and word not in _NAMES_OF_CODE and not word.startswith("STDC_")


def _drop_empty(kept: list[str], level: str) -> None:
    """Remove what a heading of this level, or the end, leaves empty: blank lines and headings not above it."""
    blank = False
    while kept and (not kept[-1] or (kept[-1].startswith(HEADING) and kept[-1][1] >= level)):
        blank |= not kept.pop()
    if blank and kept and not kept[-1].startswith(HEADING):
        kept.append("")
