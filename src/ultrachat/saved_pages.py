"""Messages that are saved pages, back to the text a person saw: ShareGPT's dumps hold ChatGPT's HTML.

    strip_html('<div class="markdown prose"><p>Use <code>x</code> &amp;amp; y</p></div>')    # "Use `x` &amp; y"
    strip_html("what does <div> do?")                                                    # as it is
    strip_remains("2 / 2How are you?")                                                   # "How are you?"

Absent on purpose: web pages at large (`<html>`, scripts, styles), and formulas, which the page shows thrice.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)((?:\s[^<>]*)?)>")
_VOTE = r"\d{1,2} / \d{1,2}"
_WORD_COUNT = r"Copy\d+ chars / \d+ words"
_PAGE = re.compile(
    rf"\s*(?:{_VOTE}\s*)?<(?:div|p|pre|h[1-6]|ol|ul|blockquote|table|span)\b.*</[a-z0-9]+>\s*(?:{_WORD_COUNT}\s*)?\Z",
    re.DOTALL,
)
_PAGE_CLASS = re.compile(
    r"""<[^<>]+\bclass=(?P<quote>["'])[^"'<>]*(?:\bmarkdown prose\b|whitespace-pre-wrap|break-words|\bhljs\b)"""
)
_WRITTEN = re.compile(r"^[ \t]+<|\b(?:style|id|on[a-z]+|className)=", re.MULTILINE | re.IGNORECASE)
_RENDERED = frozenset((
    "a", "b", "blockquote", "br", "code", "del", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i",
    "img", "li", "ol", "p", "pre", "s", "span", "strong", "sub", "sup", "table", "tbody", "td", "th",
    "thead", "tr", "ul",
))  # fmt: skip
_VOID = frozenset(("br", "hr", "img"))
_BLOCKS = ("p", "pre", "ol", "ul", "table", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6")


def is_page(text: str) -> bool:
    """Return whether a message is HTML as ShareGPT saved it, rather than a person's text with tags in it.

    It is HTML from its first to its last character and either carries a class of ChatGPT's page or
    consists of rendered Markdown alone: a paragraph at least, every tag closed, none indented, no style, id
    or handler. A whole message like `<p>One</p>` could be somebody's code, and is taken for a page.

    Ours: the authors convert every message, and so delete the tags that people ask about.
    """
    if not _PAGE.match(text):
        return False
    if _PAGE_CLASS.search(text):
        return True
    if _WRITTEN.search(text) or "<p>" not in text:
        return False
    open_tags: list[str] = []
    for closing, name, _ in _TAG.findall(text):
        if name not in _RENDERED:
            return False
        if name in _VOID:
            continue
        if not closing:
            open_tags.append(name)
        elif not open_tags or open_tags.pop() != name:
            return False
    return not open_tags


def strip_html(text: str) -> str:
    """Return a message that is a page (`is_page`) as Markdown, entities decoded once; any other as it is.

    Code keeps its indent and its language. A tag that the page showed as text goes between backticks, and what would
    still look like a page into a fence, so stripping again changes nothing. Nothing is executed or looked up.

    Ours: as the authors do (markdownify), but only where a page was saved: "what does <div> do?", code
    pasted into a question and "AT&amp;T" stay byte for byte; and without backslashes before * and _.
    """
    if not is_page(text):
        return text
    from bs4 import BeautifulSoup, ParserRejectedMarkup

    try:
        soup = BeautifulSoup(text, "html.parser")
        _tidy(soup)
        if soup.find(_BLOCKS) is None:  # a person's message: its line breaks and blanks are its own
            stripped = soup.get_text().strip()
        else:
            _mark_tags(soup)
            stripped = _converter().convert_soup(soup).strip()
    except ParserRejectedMarkup:
        return text
    except RecursionError:  # thousands of tags inside one another
        stripped = soup.get_text("\n", strip=True)
    return _fenced(stripped, "html") if is_page(stripped) else stripped


def _tidy(soup: Any) -> None:
    """Take out of a parsed page what it shows around the text."""
    for furniture in soup(("button", "svg", "style", "script")):
        furniture.decompose()
    for pre in soup("pre"):  # the bar above the code names its language, and so does the code
        code = pre.find("code")
        if code is not None:
            pre.clear()
            pre.append(code)


def _mark_tags(soup: Any) -> None:
    """Put tags that are part of the text between backticks, where they are not code already."""
    for string in soup.find_all(string=_TAG):
        if string.find_parent(("pre", "code")) is None:
            string.replace_with(_TAG.sub(r"`\g<0>`", string))


def _fenced(code: str, language: str = "") -> str:
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def _language(pre: Any) -> str:
    classes = pre.code.get("class", []) if pre.code else []
    return next((name.removeprefix("language-") for name in classes if name.startswith("language-")), "")


@cache
def _converter() -> Any:
    """markdownify as wanted here; its import takes a while, and only pages need it."""
    from markdownify import ATX, MarkdownConverter

    class Converter(MarkdownConverter):
        def convert_pre(self, el: Any, text: str, parent_tags: set[str]) -> str:
            return f"\n\n{_fenced(text.strip(chr(10)), _language(el))}\n\n" if text.strip() else ""

    return Converter(heading_style=ATX, bullets="-", escape_asterisks=False, escape_underscores=False)


_VOTE_AT_START = re.compile(rf"\s*{_VOTE}(?=[^\W\d_]|[\"'(`]|[ \t]*(?:\n|\Z))\s*")
_COPY_CODE = re.compile(
    r"^(?P<fence>```+)[ \t]*\n?(?P<language>[\w+#.-]*?)(?:Copy code)+(?! [a-z])[ \t]*\n?(?P<empty>\s*(?P=fence)[ \t]*(?:\n|\Z))?",
    re.MULTILINE,
)


def strip_remains(text: str) -> str:
    r"""Return a message without what ShareGPT's page left in its text, tags or not.

    A leading "2 / 2" (which of several versions was shown) right before a letter or alone on its line,
    "Copy12 chars / 3 words", "Copy code" at the head of a fence ("```\npythonCopy code" is "```python").
    "1 / 2 cup of sugar" is not one of them.

    Ours: the authors' three patterns, the first of them only where it is glued to the text.
    """
    while (match := _VOTE_AT_START.match(text)) is not None:
        text = text[match.end() :]
    text = re.sub(_WORD_COUNT, "", text)
    return _COPY_CODE.sub(lambda m: "" if m["empty"] else f"{m['fence']}{m['language']}\n", text)
