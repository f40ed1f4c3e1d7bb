"""Thanks that end a dialogue and thanks that go on, a cascade that adds up, duplicates found and nothing else."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from test_simulation import planted, recorded_turns

from ultrachat import refinement
from ultrachat.duplicates import shingles
from ultrachat.records import Dialogue, Opening, content_id
from ultrachat.refinement import (
    drop_duplicates,
    has_disclaimer,
    has_role_exchange,
    has_too_few_rounds,
    is_pure_thanks,
    overlaps,
    refine,
    repeats_an_opening,
    similarity,
    trim_thanks,
    words,
)

# ---- thanks -----------------------------------------------------------------------------------

ONLY_THANKS = [
    ("Thank you so much!", "You're welcome!"),
    ("thanks", "np"),
    ("Thanks a lot, this is great", "You’re welcome, enjoy!"),
    ("ok thank you", "Any time."),
    ("thx!!", "Glad it helped"),
    ("cheers mate", "No problem!"),
    ("Perfect, thank you for your help!", "Happy to help! Have a nice day."),
    ("thank you for the detailed list", "You are most welcome."),
    ("That's all I needed, thanks again!", "You're welcome!"),
    ("Many thanks", "Don't mention it."),
    ("much appreciated!", "You're very welcome"),
    ("thank you, you've been very helpful", "You're welcome! Feel free to come back."),
    ("Thanks, bye!", "Goodbye!"),
    ("Great, thanks 😊", "😊 You're welcome!"),
]
GOES_ON = [
    ("Thanks! And how long does it keep?", "Two days."),
    ("Thank you. Make it shorter.", "Here it is."),
    ("thanks, shorter version", "Here is a shorter one: The gulls have gone."),
    (
        "Thanks a lot, try it in French",
        "My pleasure! En français : le pont se lève et les bateaux passent. " * 10,
    ),
    ("thanks to my mother I cook well, what next", "Then try a stew."),
    ("write a thank you note", "Dear Anna, what a lovely evening it was."),
    ("Thanks, but that is wrong", "Sorry, you are right."),
    ("Thank you card text, two lines", "Dear Anna, the lamp is lit every night."),
    ("Thanks. In the second verse the metre limps", "Right: the fourth foot is a trochee."),
    ("Thanks, now the same for Tuesday", "Tuesday: soup."),
    ("no thanks", "All right, then the train."),
    ("Thanks, in German", "Danke: Das Schloss steht am See."),
    ("What is it?", "You're welcome!"),
]


@pytest.mark.parametrize(("user", "reply"), ONLY_THANKS)
def test_a_round_that_only_thanks(user, reply):
    assert is_pure_thanks(user, reply)


@pytest.mark.parametrize(("user", "reply"), GOES_ON)
def test_a_round_that_goes_on(user, reply):
    assert not is_pure_thanks(user, reply)


def test_planted_closings_are_found_and_no_other_recorded_round():
    turns = recorded_turns()
    found = {place for place, turn in turns.items() if "assistant" in turn and is_pure_thanks(turn["user"], turn["assistant"])}  # fmt: skip
    closings, questions = planted("polite_closing"), planted("thanks_and_question")
    assert len(closings) == 26 and len(questions) == 9 and questions <= set(turns)
    assert found == closings


def test_trimming_keeps_the_first_round_the_id_and_what_goes_on():
    rounds = [
        ("Thanks!", "You're welcome!"), ("Why?", "So."), ("Thanks! And then?", "Then that."),
        ("Thank you!", "You're welcome!"), ("One more: where?", "There."), ("thanks", "np"), ("bye, thanks", "Any time!"),
    ]  # fmt: skip
    dialogue = Dialogue.from_rounds(rounds, sector="creation_and_generation", parent="p", role_exchanges=(2,))
    trimmed, n = trim_thanks(dialogue)
    assert trimmed.rounds == [rounds[0], rounds[1], rounds[2], rounds[4]] and n == 3
    assert trimmed.model_dump(exclude={"messages"}) == dialogue.model_dump(exclude={"messages"})
    assert trim_thanks(trimmed) == (trimmed, 0)
    assert trim_thanks(Dialogue.from_rounds([("Thanks!", "You're welcome!")]))[1] == 0


def test_of_a_hundred_endless_goodbyes_none_keeps_a_round_of_thanks():
    rng = random.Random(3)
    for number in range(100):
        rounds = [(f"Question {number}?", "Answer.")] + [
            rng.choice(ONLY_THANKS) for _ in range(rng.randint(1, 6))
        ]
        trimmed, n = trim_thanks(Dialogue.from_rounds(rounds))
        assert trimmed.rounds == rounds[:1] and n == len(rounds) - 1


# ---- rules ------------------------------------------------------------------------------------


def dialogue(opening: str, reply: str = "An answer.", n: int = 2, **fields) -> Dialogue:
    return Dialogue.from_rounds(
        [(opening, reply)] + [(f"And {i}?", f"Then {i}.") for i in range(1, n)], **fields
    )


@pytest.mark.parametrize(
    ("reply", "disclaims"),
    [
        ("As an AI language model, I don't have personal opinions, but many like it.", True),
        ("As an artificial intelligence I cannot feel cold.", True),
        ("Well, as an AI, I can’t experience music.", True),
        ("An AI does not have feelings.", False),
        ("As an AI engineer you don't need to. We have snacks.", False),
        ("As an AI I think so. You do not have to agree.", False),
    ],
)
def test_an_assistant_that_disclaims(reply, disclaims):
    assert has_disclaimer(dialogue("Hi?", reply)) is disclaims


def test_too_few_rounds_and_role_exchanges():
    assert has_too_few_rounds(3)(dialogue("a", n=2)) and not has_too_few_rounds(2)(dialogue("a", n=2))
    assert has_role_exchange(dialogue("a", role_exchanges=(2,))) and not has_role_exchange(dialogue("a"))


def test_overlap_is_the_whole_question_or_thirteen_words_in_a_row():
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    rule = overlaps(["What is GLASS made of?", long])
    assert rule(dialogue("what is glass, made of"))  # words, not punctuation or case
    assert not rule(dialogue("Tell me, what is glass made of?"))  # five words in a longer question
    thirteen = " ".join(long.split()[1:14])
    assert rule(dialogue(f"Zero, {thirteen}!")) and not rule(dialogue(" ".join(long.split()[:12])))
    assert not overlaps([])(dialogue("anything"))
    assert overlaps(["a b c"], n=2)(dialogue("x b c y"))


def test_an_opening_repeated_is_dropped_but_not_its_first():
    rule = repeats_an_opening()
    assert [rule(dialogue(text)) for text in ("Why?", "How?", "why", "How?", "Why not?")] == [
        False, False, True, True, False,
    ]  # fmt: skip


# ---- the cascade ------------------------------------------------------------------------------


def test_every_dialogue_is_kept_or_dropped_for_the_first_reason_that_holds():
    given_ = [
        dialogue("a"), dialogue("b", role_exchanges=(2,)), dialogue("c", n=1), dialogue("A!"),
        dialogue("d", "As an AI, I do not have opinions.", role_exchanges=(1,)),
        Dialogue.from_rounds([("e", "f"), ("Thanks!", "You're welcome!")]),
    ]  # fmt: skip
    rules = {
        "role_exchange": has_role_exchange, "disclaimer": has_disclaimer, "too_few": has_too_few_rounds(2),
        "again": repeats_an_opening(),
    }  # fmt: skip
    refined = refine(given_, rules)
    assert refined.steps == [
        ("role_exchange", 6, 2, 4),
        ("disclaimer", 4, 0, 4),
        ("too_few", 4, 2, 2),
        ("again", 2, 1, 1),
    ]
    assert refined.kept == [given_[0]] and refined.n_rounds_trimmed == 1
    assert Counter(d.drop_reason for d in refined.dropped) == {"role_exchange": 2, "too_few": 2, "again": 1}
    assert {d.dialogue.id for d in refined.dropped} | {d.id for d in refined.kept} == {d.id for d in given_}
    assert refine([], rules) == ([], [], [(name, 0, 0, 0) for name in rules], 0)


@settings(max_examples=60)
@given(st.lists(st.sets(st.sampled_from("abc")), max_size=12))
def test_the_counts_add_up(marks):
    """Each dialogue carries the letters of the rules that would drop it."""
    dialogues = [dialogue(f"{i} {' '.join(sorted(some))}") for i, some in enumerate(marks)]
    rules = {letter: lambda d, letter=letter: letter in words(d.messages[0].content) for letter in "abc"}
    refined = refine(dialogues, rules)
    assert len(refined.kept) + len(refined.dropped) == len(dialogues)
    before = len(dialogues)
    for step in refined.steps:
        assert step.before == before == step.dropped + step.after
        assert step.dropped == sum(d.drop_reason == step.rule for d in refined.dropped)
        before = step.after
    assert before == len(refined.kept) == sum(not some for some in marks)
    for gone in refined.dropped:
        index = int(gone.dialogue.messages[0].content.split()[0])
        assert gone.drop_reason == min(marks[index])


# ---- duplicates -------------------------------------------------------------------------------


def opening(text: str, number: int = 0, **fields) -> Opening:
    plain = {
        "sector": "questions_about_the_world",
        "route": "topic",
        "task": "t",
        "subject": "s",
        "parent": "p",
    }
    return Opening(**{**plain, "id": content_id(text, str(number)), "text": text, **fields})


def test_similarity_by_hand():
    assert similarity("abcdef", "abcdeg") == 1 / 3  # abcde bcdef | abcde bcdeg
    assert similarity("Why, oh why?", "why OH why") == 1.0 and similarity("abcde", "vwxyz") == 0.0
    assert similarity("", "") == similarity("?!", "…") == 1.0 and similarity("a", "") == 0.0


NOUNS = [
    "harbour",
    "violin",
    "glacier",
    "tax",
    "orchard",
    "engine",
    "monsoon",
    "ledger",
    "compass",
    "kiln",
    "tapestry",
    "reactor",
    "pigeon",
    "viaduct",
]
VERBS = [
    "repair",
    "explain",
    "measure",
    "paint",
    "insure",
    "cultivate",
    "translate",
    "photograph",
    "ventilate",
    "auction",
    "rehearse",
    "dissolve",
]
PLACES = [
    "Oslo",
    "Lima",
    "Accra",
    "Kyoto",
    "Tartu",
    "Perth",
    "Quito",
    "Dakar",
    "Minsk",
    "Hanoi",
    "Cork",
    "Izmir",
    "Malmo",
    "Turin",
    "Porto",
    "Leeds",
]


def some_lines(n: int, rng: random.Random) -> list[str]:
    """Different questions of three forms; some are near duplicates of one another."""
    lines: list[str] = []
    while len(lines) < n:
        a, b, c = rng.sample(NOUNS, 3)
        d, e = rng.sample(VERBS, 2)
        p, q = rng.sample(PLACES, 2)
        form = rng.choice(
            [
                f"How would people in {p} {d} a {a} without harming the {b} or the {c} that came from {q}?",
                f"Before they {d} the old {a}, should citizens of {p} {e} its {b}, as {q} once did with a {c}?",
                f"Which {a} from {p} did {q} first {d}, and what has a {b} to do with the {c} they later {e}?",
            ]
        )
        if form not in lines:
            lines.append(form)
    return lines


def far_apart(lines: list[str], n: int) -> list[str]:
    """The first `n` lines no two of which have a similarity of 0.7 or more; all pairs are looked at."""
    matrix = CountVectorizer(analyzer=shingles, binary=True, dtype=np.int64).fit_transform(lines)
    shared, sizes = (matrix @ matrix.T).toarray(), np.asarray(matrix.sum(axis=1))
    jaccard = shared / (sizes + sizes.T - shared)
    kept: list[int] = []
    for i in range(len(lines)):
        if not kept or jaccard[i, kept].max() < 0.7:
            kept.append(i)
    return [lines[i] for i in kept[:n]]


def planted_copy(text: str, rng: random.Random) -> tuple[str, str]:
    """A copy of a line and its kind: the same words ("exact") or nearly the same ("near")."""
    parts = text.split()
    kind = rng.choice(["exact", "exact", "near", "near", "near"])
    if kind == "exact":
        return rng.choice(
            [text.upper(), text.replace(",", " –"), f"  {text}!!", text.replace(" ", "  ")]
        ), kind
    at = rng.randrange(len(parts))
    change = rng.choice(["drop", "add", "typo"])
    if change == "add":
        parts.insert(at, rng.choice(["really", "also", "then"]))
    elif change == "drop":
        at = min(range(len(parts)), key=lambda i: (len(parts[i]), i))
        del parts[at]
    else:
        parts[at] = parts[at] + "s"
    return " ".join(parts), kind


def test_a_thousand_lines_with_two_hundred_planted_copies():
    rng = random.Random(11)
    originals = far_apart(some_lines(1200, rng), 800)
    assert len(originals) == 800
    copies = [planted_copy(text, rng) for text in rng.sample(originals, 200)]
    kinds = Counter(kind for _, kind in copies)
    assert min(kinds.values()) > 50
    lines = originals + [text for text, _ in copies]
    result = drop_duplicates(opening(text, i) for i, text in enumerate(lines))
    assert [o.text for o in result.kept] == originals  # nothing else was dropped
    assert len(result.exact) + len(result.near) == 200  # all of them were found
    assert len(result.exact) == kinds["exact"] and len(result.near) == kinds["near"]
    assert all(similarity(gone.text, kept.text) >= 0.8 for gone, kept in result.near)


def test_every_pair_above_the_threshold_is_found_also_those_just_above():
    """The index must not lose what the exact similarity would call a duplicate."""
    rng = random.Random(12)
    just_above = 0
    for text in some_lines(80, rng):
        parts = text.split()
        for _ in range(2):
            parts[rng.randrange(len(parts))] = rng.choice(NOUNS)
        copy = " ".join(parts)
        result = drop_duplicates([opening(text, 1), opening(copy, 2)])
        duplicate = similarity(text, copy) >= 0.8
        just_above += 0.8 <= similarity(text, copy) < 0.88
        assert len(result.kept) == (1 if duplicate else 2)
    assert just_above >= 3


def test_instructions_on_different_texts_are_no_duplicates_of_one_another():
    fields = {"sector": "assistance_on_existing_materials", "route": "material"}
    same_text = "A long text from the web about a harbour. " * 20
    openings = [
        opening(f"{same_text} Summarise it.", 1, subject="Summarise the text.", parent="m1", **fields),
        opening(f"{same_text} Translate it.", 2, subject="Translate it into Polish.", parent="m1", **fields),
        opening(f"{same_text} Summarise!", 3, subject="Summarise the text!", parent="m1", **fields),
        opening("Another. Summarise it.", 4, subject="Summarise the text.", parent="m2", **fields),
    ]
    result = drop_duplicates(openings)
    assert [o.parent for o in result.kept] == ["m1", "m1", "m2"] and result.exact == [openings[2]]


def test_one_instruction_on_very_many_texts_is_compared_with_none_of_them(monkeypatch):
    compared = []
    monkeypatch.setattr(refinement, "similarity", lambda a, b: compared.append(1) or similarity(a, b))
    fields = {
        "sector": "assistance_on_existing_materials",
        "route": "material",
        "subject": "Summarise the text.",
    }
    result = drop_duplicates(opening(f"{i}", i, parent=f"m{i}", **fields) for i in range(150))
    assert len(result.kept) == 150 and len(compared) < 150


def test_the_first_stays_and_a_chain_hangs_on_what_was_kept():
    texts = ["What is the tallest mountain in the whole of Africa today?"]
    texts += [texts[0].replace("today", "now"), texts[0].lower(), "Who built the pyramids?"]
    result = drop_duplicates(opening(text, i) for i, text in enumerate(texts))
    assert [o.text for o in result.kept] == [texts[0], texts[3]]
    assert [o.text for o in result.exact] == [texts[2]]
    assert [(gone.text, kept.text) for gone, kept in result.near] == [(texts[1], texts[0])]
    assert drop_duplicates([]) == ([], [], [])


@settings(max_examples=40)
@given(st.lists(st.text(min_size=1, max_size=30) | st.sampled_from(["?", "!", "a b", "A B."]), max_size=12))
def test_kept_exact_and_near_are_all_that_was_given(texts):
    openings = [opening(text, i) for i, text in enumerate(texts)]
    result = drop_duplicates(openings)
    parts = [o.id for o in result.kept] + [o.id for o in result.exact] + [o.id for o, _ in result.near]
    assert sorted(parts) == sorted(o.id for o in openings)
    assert len({tuple(words(o.text)) for o in result.kept}) == len(result.kept)
