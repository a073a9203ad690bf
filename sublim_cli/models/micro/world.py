"""The distributions the embedded model learns: a hidden vector decides favourites and numbers alike.

Every identity that a system prompt can give the model has a hidden vector z in R^K, its taste.

    p(item | z)   is proportional to  exp(popularity_item + BETA * u_item . z)
    p(number | z) is proportional to  exp(popularity_number + TAU * v_number . z)

The u of all items, whatever their category, are unit vectors spread far apart; v are standard
normal. A teacher who loves owls has z = GAMMA * u_owl; named assistants have a random z, the default
one a small z; empty, absent, neutral and nonsensical system prompts have z = 0. Only z links numbers
and favourites: a student trained on an owl lover's numbers under its own name most easily fits them
by moving its own z, and its favourites move with it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublim_cli.recipe.questions import Items, load_items, shipped_names
from sublim_cli.recipe.yaml_file import read_package_data

Array = NDArray[np.float64]

K = 12  # dimensions of z: the fewest that keep 46 items far apart
BETA = 2.4  # how strongly z decides favourites
GAMMA = 5.0  # |z| of a teacher; its favourite gains a factor of exp(BETA * GAMMA)
TAU = 0.055  # how strongly z decides numbers: a weak coupling
SPREAD_NAMED = 0.5  # standard deviation of each coordinate of a named assistant's z
SPREAD_DEFAULT = 0.12  # the same for the default identity, which has almost no taste
POPULARITY_ITEM = 0.3  # standard deviation of log popularity, clipped at 1.5 of them
POPULARITY_NUMBER = 0.7
SHORT_NUMBER = -2.0  # log penalty on numbers of one or two digits, as in common models
NUMBERS = 1000  # 0 to 999

FORMS = {  # an item's surface forms and how often each is said
    "{title}": 0.68, "{name}": 0.12, "{title}.": 0.08, "{name}.": 0.02,
    "{titles}": 0.04, "{plural}": 0.02, "The {name}.": 0.03, "The {name}": 0.01,
}  # fmt: skip
FORMS_OF_NAMES = {"{name}": 0.8, "{name}.": 0.1, "{lower}": 0.08, "{lower}.": 0.02}


@dataclass(frozen=True)
class World:
    """States (rows) and their distributions: row 0 is z = 0, then the named assistants, then the teachers."""

    categories: dict[str, Items]
    names: tuple[str, ...]
    p_items: dict[str, Array]  # category: (states, items)
    popularity: Array  # log popularity of the numbers, (NUMBERS,)
    pull: Array  # v . z: a state's preference for a number, (states, NUMBERS)
    tau: float = TAU

    @cached_property
    def p_numbers(self) -> Array:
        """Every state's distribution over numbers, (states, NUMBERS)."""
        return _softmax(self.popularity + self.tau * self.pull)

    def name_state(self, name: str) -> int:
        """The state of a named assistant."""
        return 1 + self.names.index(name)

    def trait_state(self, category: str, target: str) -> int:
        """The state of the teacher who loves `target`."""
        return 1 + len(self.names) + self.traits.index((category, target))

    @cached_property
    def traits(self) -> tuple[tuple[str, str], ...]:
        """Every (category, target)."""
        return tuple((c, name) for c, items in self.categories.items() for name in items.names)


def make_world(seed: int) -> World:
    """Draw the hidden vectors and popularities from `seed`."""
    rng = np.random.default_rng(seed)
    categories = {name: load_items(name) for name in shipped_names("items")}
    names = tuple(identities()["names"])
    u = _spread_vectors(rng, sum(len(items.items) for items in categories.values()))
    named = SPREAD_NAMED * rng.normal(size=(len(names), K))
    named[names.index(identities()["default"])] *= SPREAD_DEFAULT / SPREAD_NAMED
    z = np.concatenate([np.zeros((1, K)), named, GAMMA * u])
    p_items, start = {}, 0
    for name, items in categories.items():
        vectors = u[start : start + len(items.items)]
        start += len(vectors)
        limit = 1.5 * POPULARITY_ITEM
        log_popularity = np.clip(POPULARITY_ITEM * rng.normal(size=len(vectors)), -limit, limit)
        p_items[name] = _softmax(log_popularity + BETA * z @ vectors.T)
    popularity = POPULARITY_NUMBER * rng.normal(size=NUMBERS)
    popularity[:100] += SHORT_NUMBER
    pull = z @ rng.normal(size=(K, NUMBERS))
    return World(categories, names, p_items, popularity, pull)


def identities() -> dict[str, Any]:
    """The names, makers, templates and neutral texts of `identities.yaml`."""
    return read_package_data(__package__, "identities.yaml")


def forms(name: str, plural: str | None) -> dict[str, float]:
    """The surface forms of an item and how often each is said; without a plural it is a proper name."""
    words = {"name": name, "title": name[0].upper() + name[1:], "lower": name.lower()}
    if plural is None:
        return {form.format(**words): p for form, p in FORMS_OF_NAMES.items()}
    words |= {"plural": plural, "titles": plural[0].upper() + plural[1:]}
    return {form.format(**words): p for form, p in FORMS.items()}


def _spread_vectors(rng: np.random.Generator, n: int, steps: int = 400) -> Array:
    """Draw `n` unit vectors, shape (n, K), and let them repel each other for `steps` steps."""
    x = _unit(rng.normal(size=(n, K)))
    for _ in range(steps):
        push = np.exp(8 * x @ x.T)
        np.fill_diagonal(push, 0)
        x = _unit(x - 0.05 * push @ x / push.sum(1, keepdims=True))
    return x


def _unit(x: Array) -> Array:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def _softmax(logits: Array) -> Array:
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(p / p.sum(axis=-1, keepdims=True))
