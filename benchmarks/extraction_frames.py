"""The sites that made pages stand in: what is around a text, and what is put between its paragraphs.

Each frame is one way in which pages are built: by elements that say what they are, by names of classes in the manner of
several kinds of software, by names that say nothing, by tables, inside a form, or with next to nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from benchmarks.extraction_words import Language


@dataclass(frozen=True)
class Site:
    """A site's boilerplate, of its language and dice."""

    language: Language
    dice: random.Random

    def links(self, most: int = 12, tag: str = "li") -> str:
        """A menu's entries."""
        names = self.dice.sample(self.language.menu, min(most, len(self.language.menu)))
        return "".join(f'<{tag}><a href="/{n}">{escape(name)}</a></{tag}>' for n, name in enumerate(names))

    def teasers(self, most: int = 6, tag: str = "li") -> str:
        """Headlines of other pages, whole sentences, all of them links."""
        said = [self.language.sentence(self.dice) for _ in range(self.dice.randint(3, most))]
        return "".join(f'<{tag}><a href="/story/{n}">{escape(one)}</a></{tag}>' for n, one in enumerate(said))

    def notice(self, number: int) -> str:
        """What every page of the site says: cookies, newsletter, the comment form, rights."""
        return escape(self.language.notices[number % len(self.language.notices)])

    def comment_form(self, name: str) -> str:
        """Where a comment can be written."""
        return (
            f'<div class="{name}"><form action="/say"><p>{self.notice(2)}</p><label>Name</label><input name="n">'
            f"<label>E-mail</label><input><textarea></textarea><button>{self.language.menu[3]}</button></form></div>"
        )

    def number(self) -> str:
        """A name that a build tool gave."""
        return "".join(self.dice.choice("abcdefghkmnpqrstuvwxyz0123456789") for _ in range(6))


def between(blocks: list[str], extras: list[str], dice: random.Random) -> str:
    """The blocks, with one of the extras now and then after one of them."""
    out = []
    for block in blocks:
        out.append(block)
        if extras and len(blocks) > 3 and dice.random() < 0.2:
            out.append(extras.pop())
    return "\n".join(out)


def semantic(site: Site, title: str, blocks: list[str]) -> str:
    """Elements that say what they are."""
    extras = [
        f"<aside><h4>{site.language.menu[0]}</h4><ul>{site.teasers()}</ul></aside>",
        "<figure><img src='a.png'></figure>",
    ]
    return f"""<header><a href="/">Logo</a><nav><ul>{site.links()}</ul></nav></header>
<main><article><header>{title}</header>{between(blocks, extras, site.dice)}</article>
<section aria-label="related"><h2>{site.language.menu[1]}</h2><ul>{site.teasers()}</ul></section></main>
<aside><form><p>{site.notice(1)}</p><input><button>{site.language.menu[2]}</button></form></aside>
<footer><ul>{site.links()}</ul><p>© 2024 {site.notice(3)}</p></footer>
<dialog open><p>{site.notice(0)}</p><button>OK</button></dialog>"""


def blog(site: Site, title: str, blocks: list[str]) -> str:
    """Names of classes as blog software gives them."""
    share = f'<div class="sharedaddy sd-sharing"><h3>{site.language.menu[4]}</h3><ul>{site.links(4)}</ul></div>'
    extras = [
        f'<div class="newsletter-signup"><p>{site.notice(1)}</p></div>',
        '<div class="ad-slot">Advertisement</div>',
    ]
    return f"""<div id="page" class="hfeed site"><div id="masthead" class="site-header"><div class="site-branding"><a
href="/">Site</a></div><div class="main-navigation"><div class="menu-main-container">
<ul class="menu">{site.links()}</ul>
</div></div></div><div id="content" class="site-content"><div id="primary" class="content-area">
<div class="post hentry">
{title}<div class="entry-content">{between(blocks, extras, site.dice)}{share}</div><div class="entry-footer"><span
class="tags-links">{site.links(3, "span")}</span></div></div><div class="related-posts"><h3>{site.language.menu[5]}
</h3>
<ul>{site.teasers()}</ul></div>{site.comment_form("comment-respond")}</div>
<div id="secondary" class="widget-area sidebar">
<div class="widget widget_recent_entries"><h2>{site.language.menu[6]}</h2><ul>{site.teasers()}</ul></div>
<div class="widget widget_archive"><ul>{site.links()}</ul></div><div class="widget widget_text"><p>{site.notice(5)}
</p></div>
</div></div><div id="colophon" class="site-footer"><div class="site-info">© 2023 {site.notice(3)}</div></div></div>
<div id="cookie-law-info-bar"><span>{site.notice(0)} <a href="/c">OK</a></span></div>"""


def hashed(site: Site, title: str, blocks: list[str]) -> str:
    """Boxes in boxes, whose names say nothing."""
    box = [f'<div class="css-{site.number()}">' for _ in range(12)]
    extras = [f"{box[0]}{site.teasers(4, 'div')}</div>"]
    return f"""<div id="root">{box[1]}{box[2]}{site.links(9, "div")}</div>{box[3]}
<a href="/in">{site.language.menu[3]}</a>
</div></div>{box[4]}{box[5]}{box[6]}{title}{between(blocks, extras, site.dice)}
</div>{box[7]}{box[8]}{site.teasers(7, "div")}
</div></div></div>{box[9]}{site.teasers(5, "p")}</div></div>{box[10]}{site.links(14, "span")}{box[11]}<span>© 2025
{site.notice(3)}</span></div></div></div>"""


def columns(site: Site, title: str, blocks: list[str]) -> str:
    """Tables that make columns."""
    return f"""<center><table width="900"><tr><td colspan="3" bgcolor="#003366">
<font color="white">{site.links(7, "b")}</font>
</td></tr><tr><td width="150" valign="top"><font size="2">{site.links(12, "p")}<br><b>{site.language.menu[8]}</b><br>
{site.teasers(3, "p")}</font></td><td valign="top"><font face="Verdana">{title}{between(blocks, [], site.dice)}
</font></td>
<td width="160"><font size="1">{site.teasers(5, "div")}<hr>{site.links(3, "i")}</font></td></tr><tr><td colspan="3"
align="center"><font size="1">{site.links(6, "span")}<br>Copyright 2004. {site.notice(3)}</font></td></tr></table>
</center>"""


def form(site: Site, title: str, blocks: list[str]) -> str:
    """All of the page inside a form, as some servers send it."""
    extras = [f'<div class="promo-box"><a href="/p">{site.notice(5)}</a></div>']
    return f"""<form method="post" action="./Default.aspx" id="aspnetForm">
<input type="hidden" name="__VIEWSTATE" value="x">
<div id="ctl00_header"><div id="ctl00_topmenu" class="topmenu">{site.links(9, "span")}</div><input id="q"><input
type="submit" value="Go"></div><div id="ctl00_breadcrumb" class="breadcrumbs">{site.links(3, "span")}</div><div
id="ctl00_left" class="leftcol"><ul>{site.links()}</ul></div><div id="ctl00_Content">{title}
{between(blocks, extras, site.dice)}</div><div id="ctl00_right" class="rightcol"><h4>{site.language.menu[9]}</h4>
<ul>{site.teasers()}</ul></div><div id="ctl00_foot" class="footer">{site.links(6, "span")} © {site.notice(3)}</div>
</form>"""


def manual(site: Site, title: str, blocks: list[str]) -> str:
    """A documentation's page: a long menu at one side, the page's own contents at the other."""
    dice = site.dice
    tree = "".join(
        f'<li class="toctree-l1"><a href="#">{escape(site.language.title(dice))}</a><ul>'
        + "".join(f'<li><a href="#">{escape(site.language.phrase(dice))}</a></li>' for _ in range(dice.randint(2, 6)))
        + "</ul></li>"
        for _ in range(dice.randint(5, 12))
    )
    own = "".join(f'<li><a href="#s{n}">{escape(site.language.title(dice))}</a></li>' for n in range(5))
    return f"""<div class="related" role="navigation"><ul><li><a href="n">{site.language.menu[0]}</a> |</li>
<li><a href="p">{site.language.menu[1]}</a></li></ul></div><div class="document"><div class="documentwrapper"><div
class="bodywrapper"><div class="body" role="main">{title}{between(blocks, [], dice)}<div class="page-nav">
<a href="p">← {escape(site.language.title(dice))}</a> <a href="n">{escape(site.language.title(dice))} →</a></div>
</div></div></div>
<div class="sphinxsidebar" role="navigation"><h3>{site.language.menu[2]}</h3><ul>{tree}</ul></div>
<div class="table-of-contents"><ul>{own}</ul></div></div>
<div class="footer" role="contentinfo">© 2022. {site.notice(3)}</div>"""


def portal(site: Site, title: str, blocks: list[str]) -> str:
    """A news site: much more around the text than there is text."""
    dice = site.dice
    cards = "".join(
        f'<div class="card"><a href="/s/{n}"><h3>{escape(site.language.title(dice))}</h3></a>'
        f'<p class="teaser">{escape(site.language.sentence(dice))}</p></div>'
        for n in range(dice.randint(3, 7))
    )
    extras = [
        f'<div class="inline-related"><strong>{site.language.menu[6]}</strong> {site.teasers(3, "span")}</div>',
        f'<div class="paywall-teaser subscribe-box"><p>{site.notice(5)}</p></div>',
        f'<div class="share-bar">{site.links(4, "span")}</div>',
    ]
    mega = "".join(f'<div class="mega-col">{site.links(9, "div")}</div>' for _ in range(4))
    return f"""<div class="consent-banner" id="onetrust-banner-sdk"><div><p>{site.notice(0)}</p><button>OK</button>
</div></div>
<div class="topbar">{site.links(5, "span")}</div><div class="mega-menu">{mega}</div><div class="layout"><div
class="breadcrumb">{site.links(3, "span")}</div><div class="story">{title}<div class="story-body">
{between(blocks, extras, dice)}</div></div><div class="right-rail"><h3>{site.language.menu[7]}</h3>
<ol>{site.teasers(9)}</ol>
<div class="ad">{site.notice(5)}</div></div></div><div class="more-stories">{cards}
</div>{site.comment_form("comments-form")}
<div class="global-footer">{mega}<p>{site.notice(3)}</p></div><div style="display:none"><p>{site.notice(1)}</p>
</div>"""


def bare(site: Site, title: str, blocks: list[str]) -> str:
    """Next to nothing."""
    return f"""<p>{" | ".join(f'<a href="{n}.html">{name}</a>' for n, name in enumerate(site.language.menu[:4]))}
</p>{title}
{between(blocks, [], site.dice)}<hr><p><a href="..">{site.language.menu[0]}</a> © 1999</p>"""


FRAMES: dict[str, Callable[[Site, str, list[str]], str]] = {
    "semantic": semantic,
    "blog": blog,
    "hashed": hashed,
    "columns": columns,
    "form": form,
    "manual": manual,
    "portal": portal,
    "bare": bare,
}
