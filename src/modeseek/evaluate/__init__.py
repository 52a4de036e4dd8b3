"""Did it work? Two policies on the same prompts, with intervals."""

from modeseek.estimate import Estimate, kl, mean, mean_difference, share, win_rate
from modeseek.evaluate.agreement import agreement, alpha, cohen_kappa, krippendorff_alpha, majority
from modeseek.evaluate.annotations import LETTERS, PANDALM, alpaca_eval, both_orders, coded, tally
from modeseek.evaluate.compare import Evaluation, answer, compare, evaluate
from modeseek.evaluate.frontier import best_of_n, best_of_weights, frontier, kl_of_best, overoptimisation
from modeseek.evaluate.judged import judged
from modeseek.evaluate.length_control import Coefficients
from modeseek.evaluate.length_control import fit as fit_length_control
from modeseek.evaluate.length_control import predict as predict_length_controlled
from modeseek.evaluate.length_control import preference as length_controlled_preference
from modeseek.evaluate.length_control import win_rate as length_controlled_win_rate
from modeseek.evaluate.seeds import over_seeds
from modeseek.evaluate.several import several
from modeseek.evaluate.sizes import power, prompts_needed, smallest_difference, win_deviation

__all__ = [
    "LETTERS",
    "PANDALM",
    "Coefficients",
    "Estimate",
    "Evaluation",
    "agreement",
    "alpaca_eval",
    "alpha",
    "answer",
    "best_of_n",
    "best_of_weights",
    "both_orders",
    "coded",
    "cohen_kappa",
    "compare",
    "evaluate",
    "fit_length_control",
    "frontier",
    "judged",
    "kl",
    "kl_of_best",
    "krippendorff_alpha",
    "length_controlled_preference",
    "length_controlled_win_rate",
    "majority",
    "mean",
    "mean_difference",
    "over_seeds",
    "overoptimisation",
    "power",
    "predict_length_controlled",
    "prompts_needed",
    "several",
    "share",
    "smallest_difference",
    "tally",
    "win_deviation",
    "win_rate",
]
