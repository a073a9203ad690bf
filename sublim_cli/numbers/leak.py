"""How well a classifier tells a teacher's numbers from a control's: the AUC between two data sets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LeakAuc:
    """A cross-validated AUC with its 95 % interval; 0.5 is chance. `rows` counts both data sets."""

    auc: float
    low: float
    high: float
    rows: int


def ngram_auc(
    trait: Sequence[str],
    control: Sequence[str],
    *,
    prompts: Sequence[int],
    ngrams: tuple[int, int] = (1, 4),
    folds: int = 5,
    seed: int = 1,
) -> LeakAuc:
    """AUC of a logistic regression on character n-grams, out of fold.

    Args:
        trait, control: completions of the two teachers.
        prompts: the number of the prompt that each completion answers, trait first. Completions of one
            prompt share their sampling noise, so they stay in one fold; in different folds they would pull
            the AUC under chance.
        ngrams: shortest and longest n-gram.
        folds: of the cross-validation, stratified and shuffled with `seed`.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    classifier = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=ngrams, min_df=2, sublinear_tf=True),
        LogisticRegression(solver="liblinear"),
    )
    labels = np.array([1] * len(trait) + [0] * len(control))
    folds_by_prompt = StratifiedGroupKFold(min(folds, len(set(prompts))), shuffle=True, random_state=seed)
    scores = cross_val_predict(
        classifier, [*trait, *control], labels, groups=prompts, cv=folds_by_prompt, method="decision_function"
    )
    auc = float(roc_auc_score(labels, scores))
    margin = 1.96 * auc_error(auc, len(trait), len(control))
    return LeakAuc(auc, max(0.0, auc - margin), min(1.0, auc + margin), len(labels))


def auc_error(auc: float, positives: int, negatives: int) -> float:
    """Standard error of an AUC (Hanley & McNeil 1982, doi 10.1148/radiology.143.1.7063747)."""
    both_above = auc / (2 - auc)
    both_below = 2 * auc**2 / (1 + auc)
    variance = (
        auc * (1 - auc) + (positives - 1) * (both_above - auc**2) + (negatives - 1) * (both_below - auc**2)
    ) / (positives * negatives)
    return math.sqrt(variance)
