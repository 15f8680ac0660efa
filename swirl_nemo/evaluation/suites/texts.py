"""How a predicted text is scored: one by one, and BLEU and chrF over all that belong together. All lie in [0, 1]."""

from collections.abc import Sequence
from functools import cache

from ..metrics import exact_match, token_f1


def text_scores(prediction: str, target: str) -> dict[str, float]:
    """Exact match, token F1 (evaluation.metrics) and F-measures of ROUGE (Lin 2004) from rouge-score, not stemmed."""
    rouge = _rouge().score(target, prediction)
    return {
        "exact_match": float(exact_match(prediction, target)),
        "token_f1": token_f1(prediction, target),
        "rouge1": rouge["rouge1"].fmeasure,
        "rougeL": rouge["rougeL"].fmeasure,
    }


def corpus_scores(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015) of sacrebleu, with its defaults."""
    import sacrebleu

    bleu, chrf = (of(list(predictions), [list(targets)]) for of in (sacrebleu.corpus_bleu, sacrebleu.corpus_chrf))
    return {"bleu": bleu.score / 100, "chrf": chrf.score / 100}


@cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"])
