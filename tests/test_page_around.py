"""Main text of web pages: what stands around it goes, whatever it is called, and nothing of the text goes with it."""

from __future__ import annotations

import pytest

from benchmarks.extraction import score, total
from benchmarks.extraction_pages import made
from raylm.prep.readers.page_text import page_reader

FIRST = "The ferryman measured the frozen harbour before the first snow fell, and wrote down every figure he had. "
SECOND = "Nobody in the valley crossed the wooden bridge that winter, because the ice would not hold a loaded sledge. "
TITLES = ["A survey of the salt road", "Seven copper kettles found", "How the chapel was left", "Lanterns by night"]


def text_of(body: str) -> str:
    html = f'<html><head><meta charset="utf-8"><title>T</title></head><body>{body}</body></html>'
    return page_reader(whole=False)(html.encode(), "utf-8").text


def prose(inner: str = "") -> str:
    return f"<h1>Winter</h1><p>{FIRST * 2}</p>{inner}<p>{SECOND * 2}</p>"


def links(tag: str, count: int = 6) -> str:
    return "".join(f'<{tag}><a href="/{number}">Section {number}</a></{tag}>' for number in range(count))


def assert_only_text(text: str, *gone: str) -> None:
    assert text.count(FIRST.strip()) == 2
    assert text.count(SECOND.strip()) == 2
    for words in gone:
        assert words not in text


# --- what goes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["div", "p", "span", "b", "li", "td"])
def test_a_menu_goes_whatever_its_elements_are(tag: str) -> None:
    wrapped = {"li": "<ul>{}</ul>", "td": "<table><tr>{}</tr></table>"}.get(tag, "<div>{}</div>").format(links(tag))
    assert_only_text(text_of(f'{wrapped}<div class="x1">{prose()}</div>{wrapped}'), "Section")


def test_a_menu_whose_links_are_parted_by_marks_goes() -> None:
    menu = " | ".join(f'<a href="/{number}">Section {number}</a>' for number in range(5))
    assert_only_text(text_of(f"<p>[ {menu} ]</p>{prose()}"), "Section", "|")


def test_columns_of_a_layout_table_go_and_the_middle_one_stays() -> None:
    left, right = links("p"), links("div")
    foot = '<td colspan="3"><a href="/i">Imprint</a><br>Copyright 2004. No reproduction without permission.</td>'
    table = f"<table><tr><td>{left}</td><td>{prose()}</td><td>{right}</td></tr><tr>{foot}</tr></table>"
    assert_only_text(text_of(table), "Section", "Imprint", "Copyright")


def test_entries_that_tell_of_other_pages_go_without_a_name() -> None:
    cards = "".join(f'<div><a href="/s"><h3>{title}</h3></a><p>Read what we found there.</p></div>' for title in TITLES)
    assert_only_text(text_of(f"<div>{prose()}</div><div>{cards}</div>"), *TITLES, "what we found")


@pytest.mark.parametrize(
    "name",
    [
        "cookie-banner",
        "onetrust-consent",
        "newsletter-signup",
        "related-posts",
        "shareBar",
        "comment-respond",
        "footer",
    ],
)
def test_a_notice_goes_for_its_name(name: str) -> None:
    notice = f'<div class="{name}"><p>Nothing here is about winters or harbours, and it stands on each page.</p></div>'
    assert_only_text(text_of(f"{notice}<div>{prose(notice)}</div>{notice}"), "Nothing here")


def test_forms_headings_of_what_goes_rights_and_words_for_keyboards_go() -> None:
    form = "<form><p>Your address will not be published.</p><input><textarea></textarea></form>"
    body = f'<a class="skip-link" href="#m">Skip to it</a><div>{prose()}<h3>Elsewhere</h3><ul>{links("li")}</ul></div>'
    gone = ("Your address", "Skip", "Elsewhere", "Section", "2023")
    assert_only_text(text_of(f"{body}{form}<div>© 2023 The parish of the valley</div>"), *gone)


def test_what_nobody_sees_goes_but_answers_that_unfold_stay() -> None:
    hidden = '<div style="display: none"><p>Pay us three pounds a month, please.</p></div>'
    assert_only_text(text_of(prose(hidden)), "Pay us")
    folds = "".join(f"<h3>Why {n}?</h3><div style='display:none'><p>{n}. {FIRST * 2}</p></div>" for n in range(5))
    assert text_of(folds).count(FIRST.strip()) == 10


def test_a_short_page_in_a_large_frame_keeps_its_own_words_only() -> None:
    teasers = "".join(f'<div><a href="/s">{SECOND}</a></div>' for _ in range(8))
    text = text_of(f"<div>{links('div', 12)}</div><div><h1>Note</h1><p>{FIRST}</p></div><div>{teasers}</div>")
    assert text.split() == ["Note", *FIRST.split()]
    card = f'<div class="card"><a href="/s"><h3>{TITLES[0]}</h3></a><p>{SECOND}</p></div>'
    text = text_of(f'<div><h1>Note</h1><p>{FIRST}</p></div><div class="more-stories">{card * 6}</div>')
    assert text.split() == ["Note", *FIRST.split()]


# --- what stays ---------------------------------------------------------------------------------------------------


def test_lists_of_short_items_stay_also_where_all_of_a_page_is_a_form() -> None:
    items = "<ul><li>200 g flour</li><li>3 eggs</li><li>salt</li></ul>"
    text = text_of(f'<form id="aspnetForm"><div>{links("span")}</div><div>{prose(items)}</div></form>')
    assert_only_text(text, "Section")
    assert all(item in text for item in ("200 g flour", "3 eggs", "salt"))


def test_lists_of_links_with_words_about_each_stay() -> None:
    items = "".join(f'<li><a href="/b">{title}</a>: tells of the winter of that year.</li>' for title in TITLES)
    text = text_of(prose(f"<ul>{items}</ul>"))
    assert all(f"{title}: tells of" in text for title in TITLES)


def test_figures_of_code_and_of_tables_stay_and_pictures_go() -> None:
    code = '<figure class="listing"><pre>let lamp = 1;</pre><figcaption>Listing 1</figcaption></figure>'
    table = "<figure><table><tr><th>Year</th><td>1871</td></tr></table></figure>"
    text = text_of(prose(f"{code}{table}<figure><img src='a.png'><figcaption>By our own hand</figcaption></figure>"))
    assert_only_text(text, "By our own hand")
    assert "let lamp = 1;" in text
    assert "1871" in text


def test_admonitions_stay_and_other_asides_go() -> None:
    note = f'<aside class="admonition note"><p>Mind this: {FIRST}</p></aside>'
    text = text_of(
        f"<article>{prose(note)}</article><aside class='about'><p>About the parish and its people.</p></aside>"
    )
    assert "Mind this" in text
    assert "About the parish" not in text


def test_paragraphs_that_are_links_for_the_most_part_stay() -> None:
    said = '<a href="/w">The old ferryman</a> measured <a href="/w">the harbour of the lower valley</a> in a winter.'
    text = text_of("".join(f"<section><div><p>{said * 2}</p></div></section>" for _ in range(4)))
    assert text.count("measured the harbour") == 8
    linked = "".join(f'<a href="/w">{sentence.strip(" .")}</a>. ' for sentence in (FIRST, SECOND))
    assert "every figure he had." in text_of(prose(f"<p>{linked}</p>").replace(FIRST, ""))


def test_a_table_that_names_its_columns_stays_and_one_of_links_goes() -> None:
    rows = "".join(f'<tr><td><a href="/p">{title}</a></td><td>{len(title)}</td></tr>' for title in TITLES)
    named = text_of(prose(f"<table><tr><th>Name</th><th>Size</th></tr>{rows}</table>"))
    assert all(title in named for title in TITLES)
    assert TITLES[0] not in text_of(prose(f"<table>{rows}</table>"))


def test_code_whose_words_are_links_and_headings_that_are_links_stay() -> None:
    code = '<pre><a href="/f">open</a>(<a href="/w">width</a>)</pre>'
    head = '<section><h2>The <a href="/b">bridge</a></h2><a href="#b">#</a></section>'
    text = text_of(prose(head + code))
    assert "open(width)" in text
    assert "The bridge" in text


def test_a_question_that_is_a_button_stays() -> None:
    text = text_of(prose(f"<h3><button>Who crossed the bridge?</button></h3><div>{SECOND}</div><button>Buy</button>"))
    assert "Who crossed the bridge?" in text
    assert "Buy" not in text


@pytest.mark.parametrize("name", ["with-sidebar", "sidebar", "footer", "comments", "related", "menu"])
def test_what_holds_most_of_the_prose_stays_whatever_its_name(name: str) -> None:
    assert_only_text(text_of(f'<nav>{links("b")}</nav><div class="{name}"><div>{prose()}</div></div>'), "Section")


def test_an_articles_names_say_what_it_is_about() -> None:
    article = f'<article class="post tag-newsletter category-cookies"><p>{FIRST}</p></article>'
    assert text_of(article + f"<article><p>{SECOND * 3}</p></article>").count(FIRST.strip()) == 1


@pytest.mark.parametrize(
    "section", ['section id="cookies"', 'div class="section" id="comments"', 'div class="sect2" id="ads"']
)
def test_a_sections_id_says_what_it_is_about(section: str) -> None:
    text = text_of(f"{prose()}<{section}><h2>On these</h2><p>Kettles are kept in jars.</p></{section.split()[0]}>")
    assert "kept in jars" in text


@pytest.mark.parametrize("name", ["overflow-hidden", "text-left col-md-8", "content with-sidebar", "relatedness"])
def test_names_that_say_how_a_thing_looks_cost_nothing(name: str) -> None:
    assert "kept in jars" in text_of(prose(f'<div class="{name}"><p>Kettles are kept in jars.</p></div>'))


def test_a_page_of_elements_within_elements_is_read() -> None:
    for tag in ("div", "font", "blockquote"):
        text = text_of(f"<{tag}>" * 3000 + f"<p>{FIRST}</p>" + f"</{tag}>" * 3000)
        assert FIRST.strip() in text


def test_made_pages_of_all_kinds_keep_their_words_and_little_else() -> None:
    reader = page_reader(whole=False)
    sums = total(score(page, reader(page.html.encode(), "utf-8").text) for page in made(104, seed=29))
    assert sums.kept >= 0.99
    assert sums.precision >= 0.98
