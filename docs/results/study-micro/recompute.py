"""Recompute every verdict of claims.json from the tables beside it, with nothing of sublim.

    python recompute.py [claims.json]   # exit code 1 where a word or a number differs
    python recompute.py --notes         # what the README says beyond the verdicts

It needs numpy, pandas with pyarrow, and scipy. The rules are written again from what claims.json says of each
test and from the docstrings of `sublim_cli/report/claims/` and `sublim_cli/report/rates/choose.py`. Three
things of this study make it shorter than they are: every replicate has a data set and a training seed of its
own, so runs are independent; no run broke; answers were computed, not drawn.
"""

import json
import math
import sys
from functools import cache
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import beta, nct, t

HERE = Path(__file__).parent
LEAST_GUARD, MOST_GUARD, TYPICAL_SHARE = 1e-6, 0.05, 0.2
TOLERANCE = 1e-6


class Condition(NamedTuple):
    """What replicates have in common, in one training context."""

    method: str
    rank: int | None
    rate: float | None
    precision: str


class Cell(NamedTuple):
    """The runs of one condition in one eval context, in the order of their seeds: one value a run."""

    seeds: tuple
    p: np.ndarray
    unresolved: np.ndarray
    loss: np.ndarray
    norm: np.ndarray
    trainings: frozenset

    @property
    def guard(self):
        return np.clip(self.unresolved / 2, LEAST_GUARD, MOST_GUARD)


class Effects(NamedTuple):
    """Differences of log-odds of the same seeds: as measured, and as far as unresolved answers allow."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def minus(self, other):
        return Effects(self.value - other.value, self.low - other.high, self.high - other.low)

    def of(self, tested):
        return Effects(*(values[tested] for values in self))


def read_cells():
    """The cells by role, target, training and eval context, then by condition; and the untouched bases."""
    table = pd.read_parquet(HERE / "results.parquet")
    assert not table[["broken", "missing", "settings"]].astype(bool).any(axis=None)
    groups = {}
    for row in table.to_dict("records"):
        rank, rate = ((None if pd.isna(row[k]) else row[k]) for k in ("rank", "learning_rate"))
        setting = row["role"], row["target"], row["train_context"], row["eval_context"]
        condition = Condition(row["method"], rank, rate, row["precision"])
        groups.setdefault(setting, {}).setdefault(condition, []).append(row)
    for setting, conditions in groups.items():
        for condition, rows in conditions.items():
            if setting[0] != "base":  # runs are independent: no two share a seed
                rows.sort(key=lambda row: row["train_seed"])
                assert all(row["train_seed"] == row["data_seed"] for row in rows)
                assert len({row["train_seed"] for row in rows}) == len(rows)
            conditions[condition] = Cell(
                tuple(row["train_seed"] for row in rows),
                *(np.array([row[k] for row in rows]) for k in ("p_target", "unresolved")),
                *(np.array([row[k] for row in rows]) for k in ("number_loss", "update_norm")),
                frozenset(row["train_digest"] for row in rows),
            )
    return {
        setting: dict(sorted(conditions.items(), key=lambda item: (item[0].rank or 0, *item[0][2:])))
        for setting, conditions in groups.items()
        if setting[0] != "base"
    }, {
        (target, asked): next(iter(conditions.values()))
        for (role, target, _, asked), conditions in groups.items()
        if role == "base"
    }


CELLS, BASES = read_cells()
SEEDS = (1, 2, 3, 4, 5)


# ---- one run's log-odds, and what its unresolved answers allow ----


def logit(p, guard):
    p = np.clip(p, guard, 1 - guard)
    return np.log(p / (1 - p))


def contrast(one, other):
    """Log-odds of `one` minus `other`, run by run; the base has one value for all runs."""
    assert one.seeds == SEEDS
    assert other.seeds == SEEDS or len(other.seeds) == 1
    guard = np.maximum(one.guard, other.guard)

    def difference(more, other_more):
        return logit(one.p + more, guard) - logit(other.p + other_more, guard)

    return Effects(difference(0, 0), difference(0, other.unresolved), difference(one.unresolved, 0))


def students(target, trained, asked, method, rate=None):
    """The cells of students by condition, ascending in rank and rate; `rate`: of that learning rate alone."""
    return {
        condition: cell
        for condition, cell in CELLS["student", target, trained, asked].items()
        if condition.method == method and rate in (None, condition.rate)
    }


def control_of(target, trained, asked, condition):
    """The only controls there are, or those trained alike."""
    controls = CELLS.get(("control", target, trained, asked), {})
    return next(iter(controls.values())) if len(controls) == 1 else controls.get(condition)


def on_base(cell, target, asked):
    """The log-odds of students minus those of the untouched base in the same context."""
    return contrast(cell, BASES[target, asked])


class Compared(NamedTuple):
    """Students minus their control and minus the base, mean P(target) of all three, the trainings."""

    effects: Effects
    base: Effects
    levels: list
    trainings: frozenset


@cache
def compared(target, trained, asked, condition):
    cell = CELLS["student", target, trained, asked][condition]
    control = control_of(target, trained, asked, condition)
    if control is None:
        return None
    return Compared(
        contrast(cell, control),
        on_base(cell, target, asked),
        [cell.p.mean(), control.p.mean(), BASES[target, asked].p[0]],
        cell.trainings | control.trainings,
    )


# ---- tests over runs ----


def error_of(x):
    return np.std(x, ddof=1) / math.sqrt(len(x))


def above(x, bound=0.0):
    """p of the null that the mean is at most `bound`."""
    return float(t.sf((np.mean(x) - bound) / error_of(x), len(x) - 1))


def below(x, bound=0.0):
    return above(-np.asarray(x), -bound)


def within(effects, margin):
    return max(above(effects.low, -margin), below(effects.high, margin))


def interval(x, level):
    reach = t.ppf((1 + level) / 2, len(x) - 1) * error_of(x)
    return [np.mean(x), np.mean(x) - reach, np.mean(x) + reach, len(x)]


def detectable(x, alpha, power=0.8):
    """The true mean at which a noncentral t lies above the critical value with this power."""
    freedom = len(x) - 1
    critical = t.ppf(1 - alpha, freedom)
    return brentq(lambda shift: nct.sf(critical, freedom, shift) - power, 0, 50) * error_of(x)


def fieller(over, under, level):
    """The ratio of two means, from the quadratic whose roots are the bounds."""
    n, quantile = len(over), t.ppf((1 + level) / 2, len(over) - 1)
    a, b = np.mean(over), np.mean(under)
    (vaa, vab), (_, vbb) = np.cov(over, under) / n
    square = b * b - quantile**2 * vbb
    if square <= 0:
        return None
    middle, rest = a * b - quantile**2 * vab, a * a - quantile**2 * vaa
    root = math.sqrt(middle**2 - square * rest)
    return [a / b, (middle - root) / square, (middle + root) / square, n]


def holm(p_values):
    order = np.argsort(p_values, kind="stable")
    scaled = np.minimum(1, np.array(p_values)[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted.tolist()


def upper_share(hits, trials):
    """The one-sided 95 % bound of Clopper and Pearson."""
    return 1.0 if hits == trials else float(beta.ppf(0.95, hits + 1, trials - hits))


def random_effects(groups, level):
    """Paule and Mandel's variance between groups, Hartung, Knapp, Sidik and Jonkman's interval."""
    means = np.array([np.mean(x) for x in groups])
    variances = np.array([error_of(x) ** 2 for x in groups])

    def squares(between):
        weights = 1 / (variances + between)
        centre = np.average(means, weights=weights)
        return centre, weights @ (means - centre) ** 2, weights.sum()

    least = len(groups) - 1
    between = 0.0 if squares(0)[1] <= least else brentq(lambda v: squares(v)[1] - least, 0, 100, xtol=1e-15)
    centre, q, total = squares(between)
    reach = t.ppf((1 + level) / 2, least) * math.sqrt(q / least / total)
    return [centre, centre - reach, centre + reach, len(groups)]


# ---- findings: a comparison with its two p values ----


def finding(
    claim, target, values, p, against, *, seeds=SEEDS, absent=None, also=None, effect=None, levels=None
):
    """`values`: the effects of the runs; `absent`: the outcome that says that there is none."""
    alpha, margin = claim["alpha"], math.log(claim["margin_odds_ratio"])
    hits = int((values > margin).sum())
    return {
        "target": target,
        "effect": effect or interval(values, 1 - 2 * alpha),
        "p": p,
        "p_against": against,
        "margin": margin,
        "detectable": detectable(values, alpha),
        "runs": dict(zip(seeds, values.tolist(), strict=True)),
        "above": hits,
        "typical": upper_share(hits, len(values)) > TYPICAL_SHARE,
        "absent": absent,
        "also": {
            name: interval(x, 1 - 2 * alpha) if isinstance(x, np.ndarray) else x
            for name, x in (also or {}).items()
        },
        "levels": levels,
    }


def corrected(findings):
    """Holm over traits of each trait's largest p, and over all comparisons of those that refute."""
    largest = {}
    for found in findings:
        largest[found["target"]] = max(found["p"], largest.get(found["target"], 0.0))
    adjusted = dict(zip(largest, holm(list(largest.values())), strict=True))
    for found in findings:
        name = found["target"]
        found["p"] = min(1.0, found["p"] * adjusted[name] / largest[name])
    for found, against in zip(findings, holm([f["p_against"] for f in findings]), strict=True):
        found["p_against"] = against
    return findings


def outcome_of(found, alpha):
    if found["p_against"] <= alpha:
        return "refuted"
    return "supported" if found["p"] <= alpha else "underpowered"


def of_two_kinds(values, margin):
    below_margin = [v for v in values if v <= margin]
    above_margin = [v for v in values if v > margin]
    if not below_margin or not above_margin or len(values) < 5:
        return False
    squares = sum(np.var(group) * len(group) for group in (below_margin, above_margin))
    gap = min(above_margin) - max(below_margin)
    return bool(gap > max(2 * margin, 4 * math.sqrt(squares / (len(values) - 2))))


def verdict(findings, alpha):
    """The word of every trait and of the claim."""
    traits = {}
    for target in sorted({found["target"] for found in findings}):
        own = [found for found in findings if found["target"] == target]
        outcomes = [outcome_of(found, alpha) for found in own]
        outcome = "underpowered"
        if "refuted" in outcomes:
            outcome = "refuted"
        elif set(outcomes) == {"supported"}:
            outcome = "supported"
        word = outcome
        if any(found["absent"] == outcome and found["typical"] for found in own):
            word += " for the typical run"
        if len(own) == 1 and of_two_kinds(list(own[0]["runs"].values()), own[0]["margin"]):
            word += f", runs of two kinds ({own[0]['above']} of {len(own[0]['runs'])} above the margin)"
        traits[target] = (outcome, word)
    by_outcome = {
        name: [w for o, w in traits.values() if o == name]
        for name in ("supported", "refuted", "underpowered")
    }
    for outcome in ("supported", "refuted"):
        if some := by_outcome[outcome]:
            break
    else:
        return traits, "underpowered"
    all_of_them = len(some) == len(traits)
    word = outcome if all_of_them else f"{outcome} for {len(some)} of {len(traits)} traits"
    more = []
    if outcome == "supported" and by_outcome["refuted"]:
        more.append(f"refuted for {len(by_outcome['refuted'])}")
    if any("typical" in w for w in some):
        more.append("for the typical run")
    if kinds := sum("two kinds" in w for w in some):
        more.append("with runs of two kinds" + (f" for {kinds} traits".replace("1 traits", "1 trait")))
    separator = " " if all_of_them or len(more) < 2 else ", "
    return traits, separator.join([word, *more])


# ---- the five claims ----


def traits_of(claim):
    return sorted(claim["traits"] or {target for role, target, *_ in CELLS if role == "student"})


def lora_at(claim, target, trained, asked):
    """The adapters that a claim names, compared."""
    (condition,) = (
        c for c in students(target, trained, asked, "lora", claim["learning_rate"]) if c.rank == claim["rank"]
    )
    return compared(target, trained, asked, condition)


def transmits(home):
    """p of C1: above the control, and above the base."""
    return max(above(home.effects.low), above(home.base.low))


def transmission(claim):
    margin, findings, trainings = math.log(claim["margin_odds_ratio"]), [], set()
    for target in traits_of(claim):
        home = lora_at(claim, target, claim["train_context"], claim["train_context"])
        trainings |= home.trainings
        findings.append(
            finding(
                claim,
                target,
                home.effects.value,
                transmits(home),
                below(home.effects.high, margin),
                absent="refuted",
                also={"minus the base": home.base.value},
                levels=home.levels,
            )
        )
    return [(corrected(findings), trainings)]


def positive_control(claim):
    """The traits for which C1 holds at any LoRA condition that has a control; the trainings looked at."""
    context, p_values, trainings = claim["train_context"], {}, set()
    for target in traits_of(claim):
        found = [compared(target, context, context, c) for c in students(target, context, context, "lora")]
        found = [each for each in found if each]
        trainings = trainings.union(*(each.trainings for each in found))
        p_values[target] = min(1.0, len(found) * min(map(transmits, found)))
    passed = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    assert all(p <= claim["alpha"] for p in passed.values()), "every trait is transmitted here"
    return list(passed), trainings


def inverted_u(claim):
    """C2. No rank but 4 has controls of its own, so the curves are minus the base."""
    asked, trainings = positive_control(claim)
    context, findings = claim["train_context"], []
    pilots = [seed in (claim["choose_on"] or ()) for seed in SEEDS]
    for target in asked:
        cells = {}
        for condition, cell in students(target, context, context, "lora", claim["learning_rate"]).items():
            cells.setdefault(condition.rank, {})[condition.rate] = cell
            trainings |= cell.trainings
        weights = chosen(claim["curve"], cells, pilots)
        findings.append(curve_finding(claim, target, cells, weights, np.invert(pilots)))
    return [(corrected(findings), trainings)]


def mixed(effects, weights, column):
    """The weighted mean of the rates; a negative weight turns least and most around."""
    other = {"low": "high", "high": "low", "value": "value"}[column]
    return sum(w * getattr(effects[rate], column if w > 0 else other) for rate, w in weights.items())


def curve_finding(claim, target, cells, weights, tested):
    context, ranks = claim["train_context"], list(cells)
    alpha, margin = claim["alpha"], math.log(claim["margin_odds_ratio"])
    effects = {
        rank: {rate: on_base(cell, target, context) for rate, cell in row.items()}
        for rank, row in cells.items()
    }
    value, low, high = (
        np.column_stack([mixed(effects[rank], weights[rank], column)[tested] for rank in ranks])
        for column in Effects._fields
    )
    x = np.log2(ranks)
    least_u = low.copy()
    least_u[:, [0, -1]] = high[:, [0, -1]]
    rise, fall = two_lines(x, least_u)
    ends = [
        max(below(high[:, rank] - low[:, end], margin) for rank in range(len(ranks)) if rank != end)
        for end in (0, len(ranks) - 1)
    ]
    falls = [
        y[np.argmax(np.delete(value, run, axis=0)[:, :-1].mean(axis=0))] - y[-1]
        for run, y in enumerate(value)
    ]
    level, points = 1 - 2 * alpha, len(ranks) - 1
    lows = [interval(value[:, i] - value[:, -1], 1 - 2 * alpha / points)[1] for i in range(points)]
    highs = [interval(value[:, i] - value[:, -1], level)[2] for i in range(points)]
    mean = np.mean(falls)
    up, down = two_lines(x, value)
    top = int(np.argmax(value.mean(axis=0)))
    level_there = sum(w * cells[ranks[top]][rate].p[tested].mean() for rate, w in weights[ranks[top]].items())
    return finding(
        claim,
        target,
        np.array(falls),
        min(1.0, 2 * max(above(rise), below(fall))),
        min(1.0, 2 * min(ends)),
        seeds=np.array(SEEDS)[tested].tolist(),
        absent="refuted",
        effect=[mean, min(max(lows), mean), max(max(highs), mean), len(value)],
        also={
            "slope up to the turn": interval(up, level),
            "slope from the turn": interval(down, level),
            "rank of the highest mean (95 %, bootstrap of these runs)": peak(ranks, value),
        },
        levels=[level_there, None, BASES[target, context].p[0]],
    )


def two_lines(x, y):
    """The slopes of each run before and after Simonsohn's Robin Hood breakpoint."""
    inner = np.arange(1, len(x) - 1)
    means, errors = y.mean(axis=0), y.std(axis=0, ddof=1) / math.sqrt(len(y))
    top = inner[np.argmax(means[inner])]
    flat = np.array([x[i] for i in inner if means[i] >= means[top] - errors[top]])

    def slopes(turn):
        return tuple(np.polyfit(x[side], y[:, side].T, 1)[0] for side in (x <= turn, x >= turn))

    first, second = (abs(np.mean(s)) / error_of(s) for s in slopes(np.median(flat)))
    return slopes(np.quantile(flat, second / (first + second)))


def peak(ranks, y):
    """The rank of the highest mean, over all resamples of the runs in place of a random few."""
    n = len(y)
    draws = np.array(list(product(range(n), repeat=n)))
    peaks = np.sort(np.array(ranks)[y[draws].mean(axis=1).argmax(axis=1)])
    bounds = np.quantile(peaks, [0.025, 0.975], method="nearest")
    return [ranks[np.argmax(y.mean(axis=0))], *bounds.tolist(), n]


def chosen(curve, cells, pilots):
    """The weights of learning rates at every rank, chosen by the pilots' mean loss and norm."""
    if curve == "fixed":
        return {rank: dict.fromkeys(row, 1.0) for rank, row in cells.items()}
    loss, log_norm = {}, {}
    for rank, row in cells.items():
        loss[rank] = {rate: cell.loss[pilots].mean() for rate, cell in row.items()}
        log_norm[rank] = {rate: math.log(cell.norm[pilots].mean()) for rate, cell in row.items()}
    best = {rank: min(row, key=row.get) for rank, row in loss.items()}
    if curve == "best":
        return {rank: {best[rank]: 1.0} for rank in cells}
    if curve == "norm_matched":
        least = max(min(row.values()) for row in log_norm.values())
        most = min(max(row.values()) for row in log_norm.values())
        wanted = float(np.clip(np.mean([log_norm[rank][best[rank]] for rank in cells]), least, most))
        return {rank: bracket(row, wanted) for rank, row in log_norm.items()}
    parabolas = {rank: parabola(row, best[rank]) for rank, row in loss.items()}
    wanted = max(p["least"] if p else loss[rank][best[rank]] for rank, p in parabolas.items())
    return {rank: at_loss(row, best[rank], parabolas[rank], wanted) for rank, row in loss.items()}


def parabola(row, best):
    """Through the loss at the best rate and its neighbours; None at the edge of the grid."""
    rates = sorted(row)
    place = rates.index(best)
    if place in (0, len(rates) - 1):
        return None
    three = rates[place - 1 : place + 2]
    a, b, c = np.polyfit(np.log(three), [row[r] for r in three], 2)
    return {"rates": three, "a": a, "turn": -b / (2 * a), "least": c - b * b / (4 * a)}


def at_loss(row, best, fitted, wanted):
    """The rate at or below the minimum that has the loss wanted: on the parabola, else between two rates."""
    if fitted:
        at = fitted["turn"] - math.sqrt(max(0.0, wanted - fitted["least"]) / fitted["a"])
        logs = np.log(fitted["rates"])
        if at >= logs[0]:
            lagrange = [
                np.prod([(at - other) / (own - other) for other in logs if other != own]) for own in logs
            ]
            return dict(zip(fitted["rates"], lagrange, strict=True))
    return bracket({rate: loss for rate, loss in row.items() if rate <= best}, wanted)


def bracket(row, wanted):
    """The highest two neighbouring rates that have the value wanted between them, or the nearest rate."""
    rates = sorted(row)
    for low, high in reversed(list(pairwise(rates))):
        share = (wanted - row[low]) / (row[high] - row[low])
        if 0 <= share <= 1:
            return {rate: w for rate, w in ((low, 1 - share), (high, share)) if w}
    return {min(rates, key=lambda rate: abs(row[rate] - wanted)): 1.0}


def full_fine_tuning(claim):
    """C3a, C3b and C3c."""
    asked, controls = positive_control(claim)
    context, margin = claim["train_context"], math.log(claim["margin_odds_ratio"])
    tested = np.array([seed not in claim["choose_on"] for seed in SEEDS])
    at_one, at_every, of_adapter = ([], set(controls)), ([], set(controls)), ([], set(controls))
    for target in asked:
        full = students(target, context, context, "full")
        for condition in full:
            home = compared(target, context, context, condition)
            is_the_papers = (condition.rate, condition.precision) == (2e-5, "bf16_pure")
            for findings, trainings in (at_one, at_every) if is_the_papers else (at_every,):
                findings.append(
                    finding(
                        claim,
                        target,
                        home.effects.value,
                        within(home.effects, margin),
                        above(home.effects.low, margin),
                        absent="supported",
                        also={"minus the base": home.base.value},
                        levels=home.levels,
                    )
                )
                trainings |= home.trainings
            of_adapter[1].update(home.trainings)
        best = []
        for group in (full, students(target, context, context, "lora")):
            condition = min(group, key=lambda c, group=group: group[c].loss[~tested].mean())
            of_adapter[1].update(*(cell.trainings for cell in group.values()))
            best.append((group[condition], on_base(group[condition], target, context).of(tested)))
        (cell, full), (_, lora) = best
        difference = full.minus(lora)
        ratio = fieller(full.value, lora.value, 1 - 2 * claim["alpha"])
        found = finding(
            claim,
            target,
            difference.value,
            below(difference.high, -margin),
            above(difference.low, -margin),
            seeds=np.array(SEEDS)[tested].tolist(),
            also={
                "full fine-tuning": full.value,
                "the best adapter": lora.value,
                **({"ratio to the effect of the best adapter": ratio} if ratio else {}),
            },
            levels=[cell.p[tested].mean(), None, BASES[target, context].p[0]],
        )
        of_adapter[0].append(found)
    return [(corrected(findings), trainings) for findings, trainings in (at_one, at_every, of_adapter)]


def contexts(claim):
    margin, findings, trainings = math.log(claim["margin_odds_ratio"]), [], set()
    for target in traits_of(claim):
        places = sorted(
            (trained, asked)
            for role, name, trained, asked in CELLS
            if (role, name) == ("student", target) and trained != asked
        )
        for trained, asked in places:
            home, away = (lora_at(claim, target, trained, context) for context in (trained, asked))
            trainings |= home.trainings
            interaction = home.effects.minus(away.effects)
            share = fieller(away.effects.value, home.effects.value, 1 - 2 * claim["alpha"])
            findings.append(
                finding(
                    claim,
                    target,
                    away.effects.value,
                    max(within(away.effects, margin), above(interaction.low), transmits(home)),
                    above(away.effects.low, margin),
                    absent="supported",
                    also={
                        "in the training context": home.effects.value,
                        "interaction": interaction.value,
                        "minus the base": away.base.value,
                        **({"share of the effect retained": share} if share else {}),
                    },
                    levels=away.levels,
                )
            )
    return [(corrected(findings), trainings)]


RULES = {
    "transmission": transmission,
    "inverted_u": inverted_u,
    "full_fine_tuning": full_fine_tuning,
    "contexts": contexts,
}


# ---- comparison with claims.json ----


class Differences(list):
    """What differs, and how many values were compared."""

    compared = 0

    def check(self, name, ours, theirs):
        if isinstance(ours, list | tuple):
            if isinstance(theirs, dict):
                theirs = list(theirs.values())
            if theirs is None or len(ours) != len(theirs):
                self.append(f"{name}: {ours} here, {theirs} there")
                return
            for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                self.check(f"{name}[{place}]", one, other)
            return
        self.compared += 1
        number = isinstance(ours, int | float | np.number) and isinstance(theirs, int | float)
        equal = abs(ours - theirs) <= TOLERANCE * max(1.0, abs(theirs)) if number else ours == theirs
        if not equal:
            self.append(f"{name}: {ours} here, {theirs} there")


def compare(written, findings, trainings):
    alpha = written["claim"]["alpha"]
    traits, word = verdict(findings, alpha)
    found = Differences()
    found.check("verdict", word, written["verdict"])
    found.check("outcome", word.split()[0], written["outcome"])
    found.check("traits", [*traits], [trait["target"] for trait in written["traits"]])
    for trait in written["traits"]:
        found.check(trait["target"], list(traits.get(trait["target"], ())), [trait["outcome"], trait["word"]])
    found.check("trainings", [len(trainings)] * 2, [written["plan"]["planned"], written["plan"]["used"]])
    found.check("comparisons", len(findings), len(written["findings"]))
    mean = None
    if len({f["target"] for f in findings}) == len(findings):
        mean = random_effects([list(f["runs"].values()) for f in findings], 1 - 2 * alpha)
    found.check("mean over traits", mean, written["mean_over_traits"])
    for ours, theirs in zip(findings, written["findings"], strict=False):
        about = f"{theirs['target']}, {theirs['about']}"
        for name in ("target", "effect", "p", "p_against", "margin", "detectable"):
            found.check(f"{about}: {name}", ours[name], theirs[name])
        found.check(f"{about}: verdict", outcome_of(ours, alpha), theirs["verdict"])
        ratio = [*np.exp(ours["effect"][:3]).tolist(), ours["effect"][3]]
        found.check(f"{about}: odds ratio", ratio, theirs["odds_ratio"])
        found.check(f"{about}: mean P(target)", ours["levels"], theirs["levels"])
        runs = {run["train_seed"]: run["effect"] for run in theirs["runs"]}
        found.check(f"{about}: seeds", sorted(ours["runs"]), sorted(runs))
        for seed, effect in ours["runs"].items():
            found.check(f"{about}: run {seed}", effect, runs.get(seed))
        found.check(f"{about}: also", sorted(ours["also"]), sorted(theirs["also"]))
        for name, values in ours["also"].items():
            found.check(f"{about}: {name}", values, theirs["also"].get(name))
    return word, found


def recompute(path=HERE / "claims.json"):
    """Print a line a verdict; whether all agree."""
    written = json.loads(Path(path).read_text())["claims"]
    place, agrees = 0, True
    while place < len(written):
        claim = written[place]["claim"]
        if claim["kind"] == "localisation":
            parts = [without_windows(written[place])]
        else:
            results = RULES[claim["kind"]](claim)
            parts = [compare(each, *result) for each, result in zip(written[place:], results, strict=False)]
        for each, (word, found) in zip(written[place:], parts, strict=False):
            state = f"{len(found)} of {found.compared} values DIFFER" if found else "agrees"
            print(f"{each['number']:4}{each['statement']}: {word}: {state} ({found.compared} values)")
            for difference in found[:12]:
                print(f"      {difference}")
            agrees = agrees and not found
        place += len(parts)
    return agrees


def without_windows(written):
    """C5 wants random windows beside scattered random sets; without them it is incomplete."""
    located = pd.read_parquet(HERE / "localisation.parquet")
    assert "control_kind" not in located, "there may be windows, and this script has no rule for them"
    gates = [f"{written['claim']['positions']}_only", f"no_{written['claim']['positions']}"]
    found = Differences()
    found.check("verdict", ["incomplete"] * 2, [written["verdict"], written["outcome"]])
    found.check("findings", 0, len(written["findings"]))
    lacks = [lack for lack in written["lacks"] if "random windows" in lack]
    found.check("lacks", [True] * 2, [any(f"the gate {gate}:" in lack for lack in lacks) for gate in gates])
    return "incomplete", found


# ---- what the README says beyond the verdicts ----


def notes():
    """The corrections of the README, and C5 against scattered random sets alone."""
    for scale, margin in (("P(target)", 0.02), ("log-odds", math.log(1.5))):
        for positions in ("shared", "identity"):
            print(f"C5 {positions} beyond scattered random sets, in {scale}")
            scattered(positions, margin, as_log_odds=scale == "log-odds")
    spread()
    for target in ("wolf", "owl"):
        at_equal_norm(target)


def scattered(positions, margin, *, as_log_odds):
    """What the tokens keep, and what is lost without them, minus the mean of five random sets."""
    located = pd.read_parquet(HERE / "localisation.parquet")
    value = (lambda p: logit(p, LEAST_GUARD)) if as_log_odds else (lambda p: p)
    rows = []
    for target, part in product(("wolf", "owl", "cat"), (f"{positions}_only", f"no_{positions}")):
        own = located[(located.target == target) & (located.part == part)].copy()
        whole, base, gated = (
            value(own[name].to_numpy()) for name in ("p_target_student", "p_target_base", "p_target")
        )
        own["amount"] = gated - base if part.endswith("_only") else whole - gated
        of_set = own[own.control.isna()].groupby("train_seed").amount.mean()
        of_random = own[own.control.notna()].groupby("train_seed").amount.mean()
        (condition,) = (c for c in students(target, "default", "default", "lora", 2e-3) if c.rank == 4)
        student = CELLS["student", target, "default", "default"][condition]
        effect = value(student.p) - value(control_of(target, "default", "default", condition).p)
        beyond, room = (of_set - of_random).to_numpy(), effect - of_random.to_numpy()
        against = max(below(beyond, margin), above(effect, margin), above(room, margin))
        rows.append((target, part, beyond, above(beyond), against))
    for (target, part, beyond, p, _), against in zip(rows, holm([row[-1] for row in rows]), strict=True):
        mean, low, high, _ = interval(beyond, 0.9)
        print(f"  {target:5}{part:15}{mean:+.4f} [{low:+.4f}, {high:+.4f}] p {p:.4f} against {against:.4f}")


def spread():
    """The standard deviation of log-odds over runs, of conditions of like effects."""
    found = {}
    for target, method in product(("wolf", "owl", "cat"), ("full", "lora")):
        for condition, cell in students(target, "default", "default", method).items():
            effect = on_base(cell, target, "default").value.mean()
            if math.log(1.5) < effect < 1.5:
                sd = logit(cell.p, LEAST_GUARD).std(ddof=1)
                for name in [method] + ["lora below 6e-3"] * (method == "lora" and condition.rate < 6e-3):
                    found.setdefault(name, []).append((target, sd))
    for name, rows in found.items():
        by_target = {t: [sd for target, sd in rows if target == t] for t in ("wolf", "owl", "cat")}
        medians = ", ".join(f"{t} {np.median(sds):.3f} ({len(sds)})" for t, sds in by_target.items())
        print(
            f"SD of log-odds, effects of 0.41 to 1.5, {name}: {np.median([s for _, s in rows]):.3f}; {medians}"
        )


def at_equal_norm(target):
    """Ranks at equal update norm, chosen and compared on all runs as the earlier rules did, in pairs."""
    cells = {}
    for condition, cell in students(target, "default", "default", "lora").items():
        cells.setdefault(condition.rank, {})[condition.rate] = cell
    weights = chosen("norm_matched", cells, [True] * len(SEEDS))
    means = {rank: sum(w * cells[rank][rate].p for rate, w in weights[rank].items()) for rank in cells}
    for one, other in combinations(means, 2):
        difference = means[one] - means[other]
        mean, low, high, _ = interval(difference, 0.9)
        equal = max(above(difference, -0.02), below(difference, 0.02))
        print(
            f"{target} at equal norm, rank {one} minus {other}: {mean:+.4f} [{low:+.4f}, {high:+.4f}], ",
            end="",
        )
        print(f"p of equivalence within 0.02 {equal:.3f}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--notes"]:
        notes()
    else:
        sys.exit(0 if recompute(*sys.argv[1:2]) else 1)
