"""What made pages are about: articles, lists, code, tables, quotations, threads, recipes, references and more.

A kind gives blocks of HTML, and its writer keeps what of them is wanted. The page's own headline, names and dates count
neither way: some extractors give them apart from the text.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from html import escape

from benchmarks.extraction_words import Language

Blocks = list[str]


class Writer:
    """Writes blocks of HTML, and keeps which words are wanted and which count neither way."""

    def __init__(self, language: Language, dice: random.Random) -> None:
        self.language = language
        self.dice = dice
        self.wanted: list[str] = []
        self.neutral: list[str] = []

    def want(self, text: str) -> str:
        """Text that belongs to the page, as HTML."""
        self.wanted.append(text)
        return escape(text, quote=False)

    def either(self, text: str) -> str:
        """Text that may be kept or not, as HTML."""
        self.neutral.append(text)
        return escape(text, quote=False)

    def sentence(self) -> str:
        """A wanted sentence, some of them with a link or stressed words in them."""
        said = self.language.sentence(self.dice)
        cut = self.dice.randint(1, max(1, len(said) - 2))
        cut = said.rfind(" ", 0, cut) + 1 or cut
        tag = self.dice.choice(["", "", "", "b", "em", 'a href="/entry/12"', "span", 'a href="https://example.org/"'])
        self.wanted.append(said)
        if not tag:
            return escape(said, quote=False)
        end = said.find(" ", cut)
        end = len(said) if end < 0 or end > cut + 30 else end
        parts = [escape(part, quote=False) for part in (said[:cut], said[cut:end], said[end:])]
        return f"{parts[0]}<{tag}>{parts[1]}</{tag.split()[0]}>{parts[2]}"

    def prose(self, most: int = 6) -> str:
        """A wanted paragraph's inside."""
        return " ".join(self.sentence() for _ in range(self.dice.randint(2, most)))

    def paragraph(self, most: int = 6) -> str:
        """A wanted paragraph."""
        return f"<p>{self.prose(most)}</p>"

    def heading(self, level: int = 2) -> str:
        """A wanted heading within the page."""
        return f"<h{level}>{self.want(self.language.title(self.dice))}</h{level}>"

    def person(self) -> str:
        """A name that counts neither way."""
        return self.either(self.dice.choice(["Ada K.", "bluefin77", "J. Ortega", "Мария", "山田", "mod_tim", "Selma"]))

    def date(self) -> str:
        """A date that counts neither way."""
        return self.either(f"{self.dice.randint(1, 28)}.{self.dice.randint(1, 12)}.20{self.dice.randint(10, 25)}")


def article(writer: Writer) -> Blocks:
    """Sections of prose."""
    blocks = [writer.paragraph() for _ in range(writer.dice.randint(2, 4))]
    for _ in range(writer.dice.randint(1, 3)):
        blocks += [writer.heading(), *(writer.paragraph() for _ in range(writer.dice.randint(1, 4)))]
    return blocks


def note(writer: Writer) -> Blocks:
    """A short page: two or three sentences in all."""
    return [writer.paragraph(2), f"<p>{writer.sentence()}</p>"]


def lists(writer: Writer) -> Blocks:
    """Prose with lists: of sentences, of short items, nested, numbered, and of links with words about each."""
    dice = writer.dice
    short = "".join(f"<li>{writer.want(writer.language.phrase(dice))}</li>" for _ in range(dice.randint(3, 7)))
    blocks = [writer.paragraph(), f"<p>{writer.sentence()}</p><ul>{short}</ul>"]
    long = "".join(f"<li>{writer.prose(3)}</li>" for _ in range(dice.randint(2, 5)))
    blocks += [writer.heading(), f"<ul>{long}</ul>", writer.paragraph(3)]
    inner = "".join(f"<li>{writer.want(writer.language.phrase(dice))}</li>" for _ in range(3))
    blocks.append(f"<ol><li>{writer.sentence()}<ul>{inner}</ul></li><li>{writer.sentence()}</li></ol>")
    books = ""
    for number in range(3):
        name = writer.want(writer.language.title(dice))
        books += f'<li><a href="/b/{number}">{name}</a>: {writer.sentence()}</li>'
    return [*blocks, writer.heading(), f"<ul>{books}</ul>"]


def code(writer: Writer) -> Blocks:
    """A tutorial: prose around code that is set apart, in lines and in spans of colour."""
    dice = writer.dice
    blocks = [writer.paragraph(3)]
    for number in range(dice.randint(2, 4)):
        name = dice.choice(["measure", "cross", "repair", "count_lanterns", "draw_map"])
        lines = [
            f"def {name}_{number}(bridge, width={dice.randint(1, 99)}):",
            "    # the old ferryman knew this",
            f"    for lamp in range({dice.randint(2, 9)}):",
            '        print("lamp", lamp, bridge[lamp] < width and "open")',
            "    return {name: value for name, value in bridge.items()}",
        ]
        shown = writer.want("\n".join(lines))
        if dice.random() < 0.4:
            shown = shown.replace("def ", '<span class="k">def</span> ').replace("for ", '<span class="k">for</span> ')
        box = dice.choice(["<pre>{}</pre>", "<pre><code>{}</code></pre>", '<div class="highlight"><pre>{}</pre></div>'])
        call = writer.want(f"{name}_{number}(bridge)")
        blocks += [writer.heading(3), f"<p>{writer.sentence()} <code>{call}</code></p>", box.format(shown)]
        blocks.append(writer.paragraph(3))
    return blocks


def tables(writer: Writer) -> Blocks:
    """Prose with tables of numbers and words, one of them long."""
    dice = writer.dice
    blocks = [writer.paragraph()]
    for rows in (dice.randint(3, 6), dice.randint(12, 30)):
        head = "".join(f"<th>{writer.want(writer.language.phrase(dice))}</th>" for _ in range(3))
        body = ""
        for _ in range(rows):
            name = writer.want(writer.language.phrase(dice))
            cells = [f"{dice.randint(1, 9999)}", f"{dice.random() * 100:.1f} %"]
            if dice.random() < 0.3:
                name = f'<a href="/place">{name}</a>'
            body += f"<tr><td>{name}</td>" + "".join(f"<td>{writer.want(cell)}</td>" for cell in cells) + "</tr>"
        caption = f"<caption>{writer.want(writer.language.title(dice))}</caption>" if dice.random() < 0.5 else ""
        blocks += [writer.heading(), f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"]
        blocks.append(writer.paragraph(3))
    return blocks


def quotations(writer: Writer) -> Blocks:
    """Prose with quotations, a pull quote, a poem in lines and notes at its foot."""
    verse = "<br>".join(writer.want(writer.language.phrase(writer.dice)) for _ in range(6))
    quote = f"<blockquote><p>{writer.prose(3)}</p><cite>{writer.person()}</cite></blockquote>"
    notes = "".join(f"<li>{writer.sentence()}</li>" for _ in range(3))
    bare = f"<blockquote>{writer.prose(3)}</blockquote>"
    middle = [writer.paragraph(), f"<p>{verse}</p>", bare, writer.paragraph()]
    return [writer.paragraph(), quote, *middle, f"<ol>{notes}</ol>"]


def thread(writer: Writer) -> Blocks:
    """A forum's thread: posts with a head, buttons and a signature each; short ones among them."""
    dice = writer.dice
    shape = dice.choice(["div", "table", "article", "li"])
    posts = []
    for number in range(dice.randint(3, 9)):
        said = f"<p>{writer.sentence()}</p>" if dice.random() < 0.3 else writer.paragraph(4)
        if number and dice.random() < 0.4:
            quoted = writer.wanted[0]
            said = f"<blockquote>{writer.either(quoted)}</blockquote>{said}"
        head = f'<div class="author"><a href="/u/{number}">{writer.person()}</a> <span>{writer.date()}</span></div>'
        buttons = '<div class="post-buttons"><a href="#">Reply</a> <a href="#">Quote</a> <a href="#">Report</a></div>'
        posts.append((head, said, buttons))
    if shape == "table":
        rows = [f"<tr><td>{head}</td><td><div>{said}</div>{buttons}</td></tr>" for head, said, buttons in posts]
        return [f'<table class="thread">{"".join(rows)}</table>']
    if shape == "li":
        items = [f'<li class="post">{head}<div>{said}</div>{buttons}</li>' for head, said, buttons in posts]
        return [f"<ul>{''.join(items)}</ul>"]
    box = f'<{shape} class="post">{{}}<div class="post-body">{{}}</div>{{}}</{shape}>'
    return [box.format(*post) for post in posts]


def recipe(writer: Writer) -> Blocks:
    """A recipe: a word before, ingredients in very short items, steps, and a table of what is in it."""
    dice = writer.dice
    units = ["200 g", "1/2 tsp", "3", "50 ml", "2 EL", "一杯", "½ cup"]
    things = [f"{dice.choice(units)} {writer.language.phrase(dice)}" for _ in range(dice.randint(5, 10))]
    items = "".join(f"<li>{writer.want(thing)}</li>" for thing in things)
    steps = "".join(f"<li>{writer.prose(3)}</li>" for _ in range(dice.randint(3, 6)))
    grams = [(name, f"{dice.randint(1, 90)} g") for name in ("kcal", "NaCl")]
    rows = "".join(f"<tr><th>{writer.want(name)}</th><td>{writer.want(much)}</td></tr>" for name, much in grams)
    kind = dice.choice(["ul", "ul", "div"])
    parts = f"<ul>{items}</ul>" if kind == "ul" else items.replace("<li>", "<div>").replace("</li>", "</div>")
    first = [writer.paragraph(), writer.heading(), parts, writer.heading()]
    return [*first, f"<ol>{steps}</ol>", f"<table>{rows}</table>"]


def reference(writer: Writer) -> Blocks:
    """A page of documentation: names and what they mean, an admonition, signatures."""
    dice = writer.dice
    terms = ""
    for number in range(dice.randint(3, 8)):
        name = writer.want(f"lantern.{dice.choice(['open', 'close', 'lit'])}_{number}(width, *, slow=True)")
        terms += f'<dt id="m{number}"><code>{name}</code></dt><dd><p>{writer.prose(3)}</p></dd>'
    kind = dice.choice(["div", "aside"])
    hint = f'<{kind} class="admonition note"><p>{writer.prose(3)}</p></{kind}>'
    short = "".join(f"<li><code>{writer.want(f'--lamp-{n}')}</code></li>" for n in range(4))
    return [writer.paragraph(3), hint, writer.heading(), f"<dl>{terms}</dl>", writer.heading(), f"<ul>{short}</ul>"]


def linked(writer: Writer) -> Blocks:
    """An encyclopedia's article: half of its words are links, and it ends with sources."""
    blocks = []
    for _ in range(writer.dice.randint(3, 6)):
        parts = []
        for _ in range(writer.dice.randint(2, 5)):
            said = writer.language.joint.join(
                f'<a href="/wiki/x">{writer.want(part)}</a>' if writer.dice.random() < 0.5 else writer.want(part)
                for part in (writer.dice.choice(column) for column in writer.language.columns)
            )
            parts.append(said + writer.language.stop + '<sup><a href="#n">[1]</a></sup>')
        blocks.append(f"<p>{' '.join(parts)}</p>")
    blocks[2:2] = [writer.heading()]
    sources = "".join(f"<li>{writer.sentence()} <a href='#'>{writer.want('doi 10/x' + n)}</a></li>" for n in "abc")
    return [*blocks, writer.heading(), f"<ol>{sources}</ol>"]


def answers(writer: Writer) -> Blocks:
    """Questions and answers that fold, as details or as boxes."""
    folds = ["<details><summary>{}</summary><p>{}</p></details>", "<div><h3>{}</h3><div>{}</div></div>"]
    fold = writer.dice.choice(folds)
    return [fold.format(writer.want(writer.language.title(writer.dice) + "?"), writer.prose(4)) for _ in range(5)]


def breaks(writer: Writer) -> Blocks:
    """Text without paragraphs: lines are broken, and an empty one parts them."""
    return ["<br><br>\n".join(writer.prose(4) for _ in range(writer.dice.randint(3, 6)))]


def interview(writer: Writer) -> Blocks:
    """Short lines, each in a box of its own, some of two words."""
    dice = writer.dice
    lines = []
    for _ in range(dice.randint(8, 16)):
        said = writer.sentence() if dice.random() < 0.7 else writer.want(writer.language.phrase(dice))
        lines.append(f"<div><b>{writer.person()}:</b> {said}</div>")
    return [writer.paragraph(3), *lines]


KINDS: dict[str, Callable[[Writer], Blocks]] = {
    "article": article,
    "note": note,
    "lists": lists,
    "code": code,
    "tables": tables,
    "quotations": quotations,
    "thread": thread,
    "recipe": recipe,
    "reference": reference,
    "linked": linked,
    "answers": answers,
    "breaks": breaks,
    "interview": interview,
}
