"""Words by which pages name their elements, as classes and ids: those of what stands around a text, and of its notes.

They are looked for in names of small words with spaces between them: shareBar, share-bar and share_bar are "share bar".
Names of style sheets that say how a thing looks (overflow-hidden, text-left col-8) are none of these.
"""

from __future__ import annotations

import re


def _any_of(*words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(words)})\b")


# Only boilerplate is called so, …
SURE = _any_of(
    "cookies?|consent|gdpr|ccpa|onetrust",
    "newsletters?|mailing ?list|pay ?wall|promos?",
    "nav ?bar|top ?(?:bar|nav)|side ?nav|main ?menu|sub ?menu|mega ?(?:menu|nav|panel|col)|masthead|site ?header",
    "bread ?crumbs?|crumbs|pagination|pager|page ?nav|skip ?(?:links?|to|main|nav)|table ?of ?contents|toc",
    "(?<!with )(?<!has )(?<!no )side ?bar|(?:right|left)(?: ?rail| ?nav|col|column)",
    "footer|foot|colophon|contentinfo|complementary",
    r"related(?! works?\b)|recommend(?:ed|ations?)|trending|most ?(?:read|popular)",
    "read ?more|more ?(?:stories|news|articles|posts|from)|also ?(?:like|read)",
    "comments|comment ?(?:list|area|section|thread|form|respond|reply)|respond|reply ?form|disqus",
    "share ?(?:bar|buttons?|links?|this|tools)|sharing|sharedaddy|addtoany",
    "ads?|advert(?:s|isements?|ising)?|sponsor(?:ed)?|taboola|outbrain",
)
# … what is short and is called so is no text, …
NOTICES = _any_of(
    "(?:is|visually) hidden|sr only|screen reader text",
    "modal|lightbox|pop ?up|pop ?over|overlay|tool ?tip|tool ?bar|banner",
    "subscri(?:be|ption)|sign ?(?:in|up)|log ?in|donat(?:e|ion)|promotion",
    "social|share|follow|copyright",
)
# … and so is what is called so and has links.
LIKELY = _any_of(
    r"nav|navigation|menus?|\w+menu|header|rail|widget|search|register",
    "teasers?|popular|legal|rights|buttons?|actions|meta",
    "tags?|tag ?links|categories|cat ?links|edit ?section",
)
# Asides that belong to a text.
NOTES = _any_of(
    "admonition|notes?|tip|hint|warning|caution|important|danger|callout|info|example|definition",
    "pull ?quote|quote|foot ?notes?|side ?note|margin ?note",
)
