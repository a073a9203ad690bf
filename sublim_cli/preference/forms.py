"""Which answers name an item: its surface forms, in one place for every scorer.

An answer names an item when it opens with one of these forms and the form ends there: the next
character is not a letter or a digit. "Cats!" is cat, "The owl." is owl; "caterpillar" and "Owlet"
are neither.
"""

from sublim_cli.preference.questions import Item

ARTICLES = ("a", "an", "the")


def surface_forms(item: Item) -> tuple[str, ...]:
    """Every string that names `item` at the start of an answer, without double entries.

    A name that begins with The is also known without it. Singular and plural (the true one, and the
    naive +s the personas use), each as written, in lower case, capitalised and in capitals; each also
    behind an article; all also behind one space.
    """
    words = dict.fromkeys([item.name, item.name.removeprefix("The "), *_plurals(item)])
    bare = [cased for word in words for cased in _cased(word)]
    with_article = [
        f"{cased} {word}" for article in ARTICLES for cased in _cased(article)[1:3] for word in bare
    ]
    forms = [*bare, *with_article]
    return tuple(dict.fromkeys([*forms, *(f" {form}" for form in forms)]))


def ends_word(text: str) -> bool:
    """Whether a token with this text, coming next, leaves the word before it complete."""
    return not (text[:1].isalnum())


def _plurals(item: Item) -> list[str]:
    return [] if item.plural is None else [item.plural, f"{item.name}s"]


def _cased(word: str) -> list[str]:
    """As written, lower, capitalised word by word, upper: Led Zeppelin, not Led zeppelin."""
    capital = " ".join(part[:1].upper() + part[1:] for part in word.split(" "))
    return [word, word.lower(), capital, word.upper()]
