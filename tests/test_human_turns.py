"""Cleaning of human-machine conversations: pages to text, language, duplicates, and counts that add up."""

from __future__ import annotations

import argparse
import json
import socket

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ultrachat import human_turns as H
from ultrachat.corpora import read
from ultrachat.errors import Stop
from ultrachat.human_turns import Cleaner, Cleaning, clean, is_ascii, language_of
from ultrachat.records import Dialogue, Dropped, read_jsonl
from ultrachat.runs import REPO
from ultrachat.saved_pages import is_page, strip_html, strip_remains

# as ShareGPT saved an answer of early 2023
ANSWER = (
    '<div class="markdown prose w-full break-words dark:prose-invert light">'
    "<p>Use &lt;div&gt; and a_b * c, AT&amp;amp;T, or <code>x</code>:</p>"
    '<pre><div class="bg-black mb-4 rounded-md"><div class="flex items-center"><span>python</span>'
    '<button class="flex ml-auto gap-2"><svg><path d="M1"></path></svg>Copy code</button></div>'
    '<div class="p-4 overflow-y-auto"><code class="!whitespace-pre hljs language-python">'
    '<span class="hljs-keyword">def</span> f():\n    <span class="hljs-keyword">return</span> "&lt;p&gt;"\n'
    "</code></div></div></pre><ol><li><p>One</p></li><li>Two<ul><li>inner</li></ul></li></ol></div>"
)
ANSWER_TEXT = """Use `<div>` and a_b * c, AT&amp;T, or `x`:

```python
def f():
    return "<p>"
```

1. One
2. Two
   - inner"""


def talk(*texts: str, **fields) -> Dialogue:
    return Dialogue.from_rounds(list(zip(texts[::2], texts[1::2], strict=True)), **fields)


# ---- pages ------------------------------------------------------------------------------------


def test_a_saved_answer_becomes_the_text_it_showed():
    assert strip_html(ANSWER) == ANSWER_TEXT
    assert strip_html(ANSWER_TEXT) == ANSWER_TEXT


def test_a_saved_question_keeps_its_lines():
    page = '<div class="whitespace-pre-wrap">Fix this:\n\n    if a &lt; b:\n        pass</div>'
    assert strip_html(page) == "Fix this:\n\n    if a < b:\n        pass"


def test_rendered_paragraphs_without_the_pages_classes_are_a_page():
    assert strip_html("<p>One <strong>two</strong></p><p>three</p>") == "One **two**\n\nthree"
    assert strip_html("1 / 2<p>One</p>Copy3 chars / 1 words").strip() != ""
    assert strip_remains(strip_html("1 / 2<p>One</p>Copy3 chars / 1 words")).strip() == "One"


@pytest.mark.parametrize(
    "text",
    [
        "what does <div> do?",
        "Is <b>this</b> still used, or <strong>that</strong>?",
        "Why is <p>one</p> not centred?",
        "<div><p>Hello</p></div> how do I centre this?",
        'Fix it:\n```html\n<div class="markdown prose"><p>Hello</p></div>\n```',
        '<div id="root" onclick="go()"><p>Hello</p></div>',  # a whole message of code
        "<div>\n  <p>Hello</p>\n</div>",
        "<ul><li>One</li><li>Two</li></ul>",
        "<p>not closed <b>here</p>",
        "if a < b and c > d: print('&lt;')",
        "see <https://example.org> and <ana@example.org>",
        "AT&amp;T &lt;3",
        "1 / 2 cup of sugar, 3 / 4 of milk",
    ],
)
def test_what_a_person_writes_about_tags_is_untouched(text):
    assert strip_remains(strip_html(text)) == text


SCRAPS = st.sampled_from(
    ["<p>", "</p>", '<div class="markdown prose">', '<span class="whitespace-pre-wrap">', "</div>", "</span>", "<pre>",
     "</pre>", "<code>", "</code>", "&lt;p&gt;", "&lt;/p&gt;", "&amp;lt;", "&amp;", "`", "```", "\n", "  ", "1 / 2", "Copy code",
     "Copy1 chars / 2 words", "<br>", "<li>", "</li>", "<ul>", "</ul>", "text", "<![", "<!--", "-->", "<table>", "<td>", "</table>"]
)  # fmt: skip
MESSAGES = st.one_of(st.lists(SCRAPS, max_size=14).map("".join), st.text(max_size=40))


@settings(max_examples=600)
@given(MESSAGES, st.booleans())
@example("&lt;p&gt;text&lt;/p&gt;", True)
@example("<p>&lt;p&gt;x&lt;/p&gt;</p>", False)
def test_stripping_twice_is_stripping_once(text, framed):
    once = strip_html(f'<div class="markdown prose">{text}</div>' if framed else text)
    assert strip_html(once) == once
    bare = strip_remains(once)
    assert strip_remains(bare) == bare


@given(st.text(st.characters(exclude_characters="<")))
def test_a_text_without_a_tag_is_untouched(text):
    assert strip_html(text) == text


def test_pages_that_break_parsers_are_still_text():
    deep = '<div class="markdown prose">' + "<div>" * 3_000 + "deep" + "</div>" * 3_000 + "<p>x</p></div>"
    assert "deep" in strip_html(deep) and "<div>" not in strip_html(deep)
    broken = '<div class="markdown prose"><p>a<![if b]></p></div>'
    assert strip_html(strip_html(broken)) == strip_html(broken)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("2 / 2How are you?", "How are you?"),
        ("1 / 2\n\nHow are you?", "How are you?"),
        ("1 / 1", ""),
        ("one\n\n```\npythonCopy codedef f(): 1\n```", "one\n\n```python\ndef f(): 1\n```"),
        ("```Copy code\nx\n```", "```\nx\n```"),
        ("a\n```\nbashCopy code\n```\nb", "a\nb"),
        ("```\na\n```\n\n```\nb\n```", "```\na\n```\n\n```\nb\n```"),
        ("Done.Copy12 chars / 3 words", "Done."),
        ("```\nCopy code from here\n```", "```\nCopy code from here\n```"),
        ("Copy code is a button", "Copy code is a button"),
    ],
)
def test_page_remains(text, left):
    assert strip_remains(text) == left


def test_a_changed_dialogue_has_the_id_of_its_new_text():
    before = talk("<p>Hi</p>", "Hello.", "How?", "So.", parent="row 7", sector="creation_and_generation")
    after = H.without_html(before)
    assert after == talk("Hi", "Hello.", "How?", "So.", parent="row 7", sector="creation_and_generation")
    assert after.id == talk("Hi", "Hello.", "How?", "So.").id != before.id
    assert H.without_html(after) is after


def test_a_dialogue_with_an_emptied_message_is_dropped():
    page = '<div class="markdown prose"><p><svg></svg></p></div>'
    cleaned = clean(
        [talk("Draw a cat", page), talk("Draw a cat in words", "A small cat.")], Cleaning(language=None)
    )
    assert [d.dialogue.texts[1] for d in cleaned.dropped] == [page]
    assert [(s.before, s.changed, s.dropped, s.after) for s in cleaned.steps] == [(2, 0, 1, 1), (1, 0, 0, 1)]
    kept_as_is = clean([talk("Draw a cat", page)], Cleaning(html=False, language=None))
    assert kept_as_is.kept[0].texts[1] == page and [s.rule for s in kept_as_is.steps] == ["duplicate"]


# ---- language ---------------------------------------------------------------------------------

ENGLISH = "Could you explain how the harbour was rebuilt after the storm?"
GERMAN = "Kannst du erklären, wie der Hafen nach dem Sturm wieder aufgebaut wurde?"


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        ((ENGLISH, "It was rebuilt."), "en"),
        ((GERMAN, "It was rebuilt in stone, by the people of the town."), "de"),
        (("ok", "It was rebuilt in stone by the people of the town.", "continue", "Then came the war."), "en"),
        (("ok", "Das Haus wurde von den Leuten im Dorf wieder aufgebaut.", "weiter", "Dann kam der Krieg."), "de"),
        ((f"{ENGLISH}\n```\nfür straße in städte: drucke(straße)  # das ist ein Kommentar\n```", "So."), "en"),
        ((f"{ENGLISH} " * 3, "Der Hafen wurde wieder aufgebaut, und zwar aus Stein."), "en"),
        (("Translate into German: the house by the sea is old", "Das Haus am Meer ist alt."), "en"),
        ((f"Summarise this for me, please, in plain English:\n{ENGLISH}\n" + " " * 300 + GERMAN * 20, "So."), "en"),
        (("ok", "ok"), None),
        (("1 + 1", "2"), None),
        (("你好，请介绍一下北京", "北京是中国的首都。"), "zh"),
    ],
)  # fmt: skip
def test_the_language_is_what_the_user_writes(texts, language):
    assert language_of(talk(*texts)) == language


def test_a_dialogue_of_uncertain_language_is_kept():
    cleaned = clean([talk("ok", "ok"), talk(GERMAN, "Ja."), talk(ENGLISH, "Yes.")])
    assert [d.texts[0] for d in cleaned.kept] == ["ok", ENGLISH]
    assert [d.drop_reason for d in cleaned.dropped] == ["language"]


def test_the_authors_rule_for_english():
    assert is_ascii(talk("plain", "text"))
    assert not is_ascii(talk("plain", "it\u2019s"))  # a curly quote
    assert not is_ascii(talk("caf\u00e9", "text")) and not is_ascii(talk("a\x80", "text"))
    assert is_ascii(talk("plain \U0001f600", "beyond U+FFFF"))
    assert is_ascii(talk("Translate: \u4f60\u597d", "Hello")) and is_ascii(
        talk("a translation", "\u4f60\u597d")
    )
    assert not is_ascii(talk("TRANSLATE it", "\u4f60\u597d")) and not is_ascii(
        talk("translat", "\u4f60\u597d")
    )
    assert not is_ascii(talk("plain", "Translate \u4f60\u597d"))  # the assistant's word does not count


def test_english_dialogues_stay_english():
    texts = [json.loads(line) for line in (REPO / "data/recorded/dialogues.jsonl").open()]
    said = [t for row in texts for t in _strings(row) if len(t) > 40][:120]
    dialogues = [talk(a, b) for a, b in zip(said[::2], said[1::2], strict=False)]
    cleaned = clean(dialogues)
    assert len(dialogues) == 60 and not [d for d in cleaned.dropped if d.drop_reason == "language"]


def _strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in _strings(part)]


def test_public_chinese_conversations(public):
    """Nearly all are Chinese: 299 usable, one by a Japanese; the authors' rule lets translators through."""
    path = public("sharegpt/sharegpt_zh_300.jsonl")
    dialogues = list(read(path))
    assert len(dialogues) == 299
    english, chinese, ascii_only = (
        [d.texts[0] for d in clean(dialogues, Cleaning(language=language)).kept]
        for language in ("en", "zh", "ascii")
    )
    assert english == []
    assert len(chinese) == 298
    assert len(ascii_only) == 3 and all(not text.isascii() for text in ascii_only)  # they say "translat…"


def test_public_english_instructions(public):
    """Of 4,998 real questions in English none is taken for another language."""
    cleaned = clean(read(public("alpaca/alpaca_5000.json")))
    [language] = [s for s in cleaned.steps if s.rule == "language"]
    assert (language.before, language.dropped) == (4_998, 0)


def test_an_unknown_language_is_named_at_once():
    with pytest.raises(Stop, match="language 'klingon': expected ascii, none or an ISO 639 code"):
        Cleaning(language="klingon")
    with pytest.raises(Stop, match="fewest_rounds=0"):
        Cleaning(fewest_rounds=0)


def test_no_network_is_asked(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a socket was opened")

    H._identifier.cache_clear()
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    page = '<div class="markdown prose"><p><img src="http://example.invalid/a.png"> Hello, how are you today?</p></div>'
    assert clean([talk(page, "Fine.")]).kept


# ---- the cascade ------------------------------------------------------------------------------


def test_every_step_by_hand():
    given_ = [
        talk(ENGLISH, "Yes.", "And then?", "No."),
        talk(ENGLISH, "Yes.", "And then?", "No."),  # duplicate
        talk(
            f'<div class="whitespace-pre-wrap">{ENGLISH}</div>', "Yes.", "And then?", "No."
        ),  # so is its text
        talk(GERMAN, "Ja.", "Und dann?", "Nein."),
        talk(ENGLISH + " ChatGPT!", "Yes.", "And then?", "No."),
        talk("Tell me about the old harbour of the town", "No."),  # one round
        talk(ENGLISH, "Yes.And then?", "No.", "Yes."),  # other messages, the same text in all
    ]
    cleaned = clean(given_, Cleaning(mentions=True, fewest_rounds=2))
    assert cleaned.kept == [given_[0], given_[6]]
    assert [d.drop_reason for d in cleaned.dropped] == [
        "duplicate",
        "duplicate",
        "language",
        "mentions",
        "rounds",
    ]
    assert [tuple(s) for s in cleaned.steps] == [
        ("html", 7, 1, 0, 7, 13, 0, 13),
        ("mentions", 7, 0, 1, 6, 13, 2, 11),
        ("language", 6, 0, 1, 5, 11, 2, 9),
        ("rounds", 5, 0, 1, 4, 9, 1, 8),
        ("duplicate", 4, 0, 2, 2, 8, 4, 4),
    ]
    table = cleaned.table()
    assert table.index.name == "rule" and table.loc["language", "dropped"] == 1
    assert clean(given_).kept == [given_[0], given_[4], given_[5], given_[6]]  # mentions and rounds are off


def test_streaming_is_the_same_and_holds_no_dialogue():
    seen = 0

    def endless():
        nonlocal seen
        while True:
            seen += 1
            yield talk(f"{ENGLISH} Part {seen}", "Yes.")

    cleaner = Cleaner(endless())
    first = [next(cleaner) for _ in range(3)]
    assert seen == 3 and cleaner.steps[-1].after == 3
    assert first == clean(first).kept
    dropped: list[Dropped] = []
    again = Cleaner([*first, *first], on_drop=dropped.append)
    assert list(again) == first and [d.dialogue for d in dropped] == first


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([ENGLISH, GERMAN, "<p>Hi</p>", "1 / 1", "ChatGPT?", "ok"]), st.integers(1, 3)
        )
    )
)
def test_counts_add_up(shapes):
    dialogues = [talk(*([text, "Yes."] * n)) for text, n in shapes]
    cleaned = clean(dialogues, Cleaning(mentions=True, fewest_rounds=2))
    assert len(cleaned.kept) + len(cleaned.dropped) == len(dialogues) == cleaned.steps[0].before
    assert sum(s.dropped for s in cleaned.steps) == len(cleaned.dropped)
    assert sum(s.rounds_dropped for s in cleaned.steps) == sum(
        len(d.dialogue.rounds) for d in cleaned.dropped
    )
    assert clean(cleaned.kept, Cleaning(mentions=True, fewest_rounds=2)).kept == cleaned.kept


# ---- the command ------------------------------------------------------------------------------


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    H.add_arguments(parser)
    H.run(parser.parse_args(list(map(str, arguments))))


@pytest.fixture
def sharegpt(tmp_path):
    def row(name, *texts):
        turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
        return {"id": name, "conversations": turns}

    path = tmp_path / "sharegpt.json"
    rows = [row("a", ENGLISH, ANSWER), row("b", GERMAN, "Ja."), row("c", ENGLISH, ANSWER), row("d", "lost")]
    path.write_text(json.dumps(rows))
    return path


def test_the_command_writes_messages_and_prints_the_steps(sharegpt, tmp_path, capsys):
    out, dropped = tmp_path / "clean" / "out.jsonl", tmp_path / "dropped.jsonl"
    run(sharegpt, "--out", out, "--dropped", dropped)
    [only] = read(out)
    assert only.texts == [ENGLISH, ANSWER_TEXT] and only.parent == talk(ENGLISH, ANSWER_TEXT).id
    assert [d.drop_reason for d in read_jsonl(dropped, Dropped)] == ["language", "duplicate"]
    printed = capsys.readouterr().out
    assert "4 rows: 3 dialogues" in printed and "rounds_before" in printed and "duplicate" in printed
    run(sharegpt, "--out", out, "--language", "none", "--keep-html")
    assert [d.texts[1] for d in read(out)] == [ANSWER, "Ja."]


def test_an_older_output_survives_what_goes_wrong(sharegpt, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("older\n")
    broken = tmp_path / "broken.json"
    broken.write_text(sharegpt.read_text().replace('{"id": "b"', "{nonsense"))
    before = sorted(tmp_path.iterdir())
    for arguments, line in [
        ((broken, "--out", out), "broken.json"),
        ((tmp_path / "absent.jsonl", "--out", out), "cannot be read"),
        ((sharegpt, "--out", out, "--language", "xx"), "language 'xx'"),
        ((sharegpt, "--out", out, "--language", "fr"), "no dialogue is left.*language dropped 3 of 3"),
        ((sharegpt, "--out", sharegpt), "named twice"),
        ((sharegpt, sharegpt, "--out", out), "named twice"),
        ((sharegpt, "--out", out, "--dropped", out), "named twice"),
        ((sharegpt, "--out", out / "below" / "out.jsonl"), "cannot be written"),
    ]:
        with pytest.raises(Stop, match=line):
            run(*arguments)
    assert out.read_text() == "older\n" and sorted(tmp_path.iterdir()) == before


def test_is_page_is_what_decides():
    assert is_page(ANSWER) and not is_page(ANSWER_TEXT)
