"""Studies drawn from a known truth, as runs that `claims.evaluate` can judge. Pure.

A run has the log-odds

    log-odds of the base + effect + noise

where the effect is the logarithm of an odds ratio and the noise is made of four parts, see `SHARES`: one is
shared by every student and control of a training seed, one by every student or control that learned from a
data set, one by all contexts a training is asked in, one is the run's own. `Noise` says how the sum is
distributed and on which scale it is added. On every scale the mean of a run's log-odds is the stated one.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri, stdtrit

from sublim_cli.report.tables.localisation import LocatedRun
from sublim_cli.report.tables.runs import AskedModel, Run

Values = NDArray[np.float64]

BASE = 0.1
"""P(target) of the untouched base where nothing else is known. No test on log-odds depends on it."""

SPREAD = 0.3
"""The standard deviation of log-odds between seeds that a plan assumes until a study has measured its own.

Measured: 0.27 between the LoRA students of a condition in study-micro, 0.39 between fully fine-tuned SmolLM2
(docs/results; pooled over conditions).
"""

SHARES = {"seed": 0.25, "data": 0.15, "training": 0.25, "run": 0.35}
"""What each source adds to the variance of a run; they sum to 1."""

RANDOM_SETS, SET_SPREAD = 5, 0.1
"""Random sets of each kind for each gate, and the standard deviation of their shares."""

SET_KINDS = ("scattered", "window")

GATE_SPREAD = 1 / 3
"""The standard deviation of a gated student around its set's share, in spreads between runs."""

LEAST, MOST = 1e-9, 1 - 1e-9
"""Noise on P or log P stays between these."""

Scale = Literal["log-odds", "log P", "P"]
Shape = Literal["normal", "right-skewed", "left-skewed", "heavy-tailed"]
SetShares = tuple[float, float, float]
"""Of a student's effect: kept by the named set alone, lost without it, and either of random sets."""

_SHARED = {
    "seed": ("target", "train_seed"),
    "data": ("target", "role", "data_seed"),
    "training": (
        *("target", "role", "method", "rank", "learning_rate", "precision", "settings", "train_context"),
        *("train_seed", "data_seed"),
    ),
}
"""Runs that agree in these columns share that part."""

# The runs of a study are made once and each draw overwrites these columns: a frozen class with slots refuses
# assignment, but not by its slots' own descriptors.
_set_p_target, _set_loss, _set_broken = (
    vars(Run)[column].__set__ for column in ("p_target", "number_loss", "broken")
)


@dataclass(frozen=True)
class Noise:
    """How a run strays from its truth: on which scale, by which distribution, and how far.

    `right-skewed` is a lognormal distribution with a log standard deviation of `skew`, `left-skewed` its
    mirror image, `heavy-tailed` Student's t with three degrees of freedom; all have mean 0 and the `spread`.
    """

    scale: Scale = "log-odds"
    shape: Shape = "normal"
    spread: float = SPREAD
    skew: float = 0.2
    """A skewness of 0.61: (exp(s²) + 2) · sqrt(exp(s²) - 1). In standard deviations of five runs it is a mean
    cube of 0.11; in study-micro the effects of full fine-tuning have 0.10 and those of LoRA 0.02."""

    def standard(self, normal: Values) -> Values:
        """Standard normal values turned into the shape, with mean 0 and standard deviation 1."""
        match self.shape:
            case "normal":
                return normal
            case "heavy-tailed":
                values: Values = stdtrit(3, ndtr(normal)) / math.sqrt(3)
                return values
        sign, square = (1 if self.shape == "right-skewed" else -1), self.skew**2
        skewed = np.exp(self.skew * sign * normal) - math.exp(square / 2)
        skewed *= sign / math.sqrt(math.expm1(square) * math.exp(square))
        return skewed

    def p_target(self, location: Values, normal: Values, spread: Values) -> Values:
        """P(target) of runs with these locations on the scale and these standard normal values."""
        values = location + spread * self.standard(normal)
        if self.scale == "log-odds":
            p_target: Values = expit(values)
            return p_target
        return np.clip(np.exp(values) if self.scale == "log P" else values, LEAST, MOST)

    def locations(self, log_odds: Values, spread: Values) -> Values:
        """The locations on the scale at which the mean log-odds of runs are these.

        Found by bisection; the means are taken over 2,000 quantiles.
        """
        if self.scale == "log-odds":
            return log_odds
        normal = ndtri((np.arange(2000) + 0.5) / 2000)
        pairs, which = np.unique(np.stack([log_odds, spread]), axis=1, return_inverse=True)
        wanted, spreads = pairs[0], pairs[1][:, None]
        low = np.full(len(wanted), math.log(LEAST) if self.scale == "log P" else 0.0)
        high = np.full(len(wanted), 0.0 if self.scale == "log P" else 1.0)
        for _ in range(50):
            middle = (low + high) / 2
            below = logit(self.p_target(middle[:, None], normal, spreads)).mean(axis=1) < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        locations: Values = ((low + high) / 2)[which.reshape(-1)]
        return locations


@dataclass(frozen=True)
class Loss:
    """Held-out number losses: what a run's is without noise, and how runs and data sets stray from it."""

    of: Callable[[Run], float]
    run_spread: float = 3e-4
    data_spread: float = 0.01


def shared_by(runs: Sequence[Run], *columns: str) -> NDArray[np.int64]:
    """For each run the number of its group: runs of one group agree in these columns."""
    keys = [tuple(getattr(run, column) for column in columns) for run in runs]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def _set_columns(run: Run, columns: Iterable[Field[Any]]) -> dict[str, Any]:
    """The columns that differ from their defaults: the fewer are passed, the faster a row is made."""
    return {f.name: value for f in columns if (value := getattr(run, f.name)) != f.default}


class SimulatedStudy:
    """The runs of a study, whose probabilities are drawn anew for every study."""

    def __init__(
        self,
        runs: Sequence[Run],
        effects: Sequence[float],
        *,
        base: float | Sequence[float] = BASE,
        noise: Noise = Noise(),
        spreads: Sequence[float] | None = None,
        data: bool = True,
        transmits: float = 1.0,
        collapses: Sequence[float] | None = None,
        loss: Loss | None = None,
    ) -> None:
        """Take the runs of a plan and the true effect of each.

        Args:
            effects: of each run, the logarithm of its odds ratio to the base.
            base: P(target) of the untouched base, of all runs or of each.
            spreads: the standard deviation of each run on the scale of the noise, where they differ.
            data: whether data sets differ. They do not in a study with one, which is judged for that one.
            transmits: the probability that a training has its effect; the others have none.
            collapses: the probability that a run collapses: it has lost the trait and is marked as broken.
            loss: the number losses; None leaves those of the plan.
        """
        count = len(runs)
        self._base = np.broadcast_to(np.asarray(base, dtype=float), count)
        self._runs = [
            replace(run, p_target_base=p, broken="", missing="")
            for run, p in zip(runs, self._base.tolist(), strict=True)
        ]
        self._noise, self._transmits = noise, transmits
        self._spreads = np.full(count, noise.spread) if spreads is None else np.asarray(spreads, dtype=float)
        base_log_odds = logit(self._base)
        self._with_effect = noise.locations(base_log_odds + np.asarray(effects, dtype=float), self._spreads)
        self._without = noise.locations(base_log_odds, self._spreads)
        parts = {name: shared_by(runs, *columns) for name, columns in _SHARED.items()}
        parts["run"] = np.arange(count)
        if not data:
            del parts["data"]
        self._training, self._data_set = parts["training"], shared_by(runs, *_SHARED["data"])
        # Where data sets do not differ, the other parts make up the whole spread.
        total = math.fsum(SHARES[name] for name in parts)
        self._parts = [(math.sqrt(SHARES[name] / total), groups) for name, groups in parts.items()]
        self._collapses = None if collapses is None else np.asarray(collapses, dtype=float)
        self._loss = loss
        self._losses = np.array([loss.of(run) for run in runs]) if loss else None

    def __len__(self) -> int:
        return len(self._runs)

    def draw(self, generator: np.random.Generator) -> list[Run]:
        """The runs of one study. They are the same objects each time, and hold the last study's values."""
        p_target = self._draw_p_target(generator).tolist()
        if self._collapses is None:
            for run, p in zip(self._runs, p_target, strict=True):
                _set_p_target(run, p)
        else:
            collapsed = generator.random(len(self)) < self._collapses
            for run, p, broken in zip(self._runs, p_target, collapsed.tolist(), strict=True):
                _set_p_target(run, 0.0 if broken else p)
                _set_broken(run, "collapsed" if broken else "")
        if self._loss is not None and self._losses is not None:
            strays = generator.normal(0, self._loss.data_spread, self._data_set.max() + 1)[self._data_set]
            losses = self._losses + strays + generator.normal(0, self._loss.run_spread, len(self))
            for run, loss in zip(self._runs, losses.tolist(), strict=True):
                _set_loss(run, loss)
        return self._runs

    def _draw_p_target(self, generator: np.random.Generator) -> Values:
        normal = np.zeros(len(self))
        for scale, groups in self._parts:
            normal += scale * generator.standard_normal(int(groups.max()) + 1)[groups]
        locations = self._with_effect
        if self._transmits < 1:
            passes = generator.random(int(self._training.max()) + 1) < self._transmits
            locations = np.where(passes[self._training], locations, self._without)
        return self._noise.p_target(locations, normal, self._spreads)

    def located(
        self,
        generator: np.random.Generator,
        runs: Sequence[Run],
        shares: Callable[[str], SetShares],
        parts: tuple[str, str],
    ) -> list[LocatedRun]:
        """The gated students of the drawn `runs`: each set has its share of a run's effect, and noise.

        Args:
            shares: returns those of a target's students, in log-odds.
            parts: the names of the gates, the set alone and all but it.
        """
        located = []
        for run, spread in zip(runs, self._spreads.tolist(), strict=True):
            p_student, p_base = run.p_target, run.p_target_base
            if run.role == "control" or run.broken or p_student is None or p_base is None:
                continue
            kept, lost, random = shares(run.target)
            model = _set_columns(run, fields(AskedModel))
            student, base = logit(p_student), logit(p_base)
            for part, measure, share in zip(parts, ("kept", "lost"), (kept, lost), strict=True):
                kinds = [kind for kind in SET_KINDS for _ in range(RANDOM_SETS)]
                set_shares = np.array([share, *generator.normal(random, SET_SPREAD, len(kinds))])
                amounts = set_shares * (student - base)
                amounts += generator.normal(0, GATE_SPREAD * spread, len(set_shares))
                gated = expit(base + amounts if measure == "kept" else student - amounts)
                located += [
                    LocatedRun(
                        **model,
                        part=part,
                        measure=measure,
                        control=number or None,
                        control_kind=kind,
                        p_target=p,
                        p_target_student=p_student,
                        p_target_base=p_base,
                        amount=p - p_base if measure == "kept" else p_student - p,
                        effect=p_student - p_base,
                    )
                    for number, (p, kind) in enumerate(zip(gated.tolist(), ["", *kinds], strict=True))
                ]
        return located
