"""What the page says of its numbers: what each interval is, how often it holds, and what a statistic counts."""

from __future__ import annotations

from collections.abc import Sequence

from bench import report_coverage
from bench.report_ranking import Ranking
from bench.summary import TaskResult

INTERVALS = (
    "Area is the mean success over the control steps of fine-tuning (trapezoids between evaluation points, up to the "
    "number of control steps that every finished cell of the task reached; 1 is success from the start). Brackets of "
    "areas, success rates and differences are 95 % t intervals from a bootstrap of seeds and start states together; in "
    "simulations they held the truth in 91 – 98 % of cases with 2 seeds and 97 – 98 % with 10 (20 start states), and "
    "in as few as 54 % with 2 seeds and no start states where a run either learns or does not. Where seeds and start "
    "states all agree, that has no width: rates and areas then have Wilson's interval of as many attempts as there are "
    "runs, differences on one task Newcombe's of two such rates, and what is left has no interval. Differences are "
    "paired by seed and start state and not corrected for the number of comparisons, nor for the first being chosen as "
    "the first. All methods and seeds have the same demonstrations: no interval covers others. P is the chance that a "
    "run of the first has the larger area than one of the other"
)
PAIRED = (
    " with the same seed, which shares its random streams and often the policy (Wilson's interval, of the pairs as "
    "independent attempts)"
)
UNPAIRED = " of any seed, as their seeds are not equal (Mann–Whitney's share; Newcombe's score interval)"
DECIDE = (
    ". More seeds to decide: what a paired t-test needs for 80 % power if effect and spread stay as seen, which few "
    "seeds say poorly."
)
MEANS = (
    " The mean counts every task alike; the interquartile mean (IQM) leaves out the lowest and the highest quarter of "
    "all runs, which may be whole tasks."
)
ONE_SEED = " With one seed, intervals within a task cover start states only, unless these agree."
PROFILE = (
    "Performance profile{}: the share of runs (task and seed) whose area is above τ, with pointwise 95 % t intervals, "
    "of no width where all runs are on one side of τ. Higher is better in this sample."
)
CURVES = (
    "Success on report states. Thick: mean over seeds with its 95 % band (t; Wilson's of the runs where all agree), up "
    "to where the shortest seed ends; thin: single seeds; one seed has no band. Over all tasks, 1 is the cost of the "
    "costliest method on the task. Pretraining and the rollouts that chose σ are charged in full to each method that "
    "shares them."
)
TASK = (
    "Brackets as above, but for the mean of the control steps to 50 %: Kaplan and Meier's, in which a run that never "
    "got there counts as censored at the end, with a t interval from Greenwood's error."
)
COVERAGE = (
    "the frozen policies before reinforcement: success of one try, and of the best of several tries from one start "
    "state. The noise level was chosen on other start states. Lines: 95 % intervals, as of the success rates above."
)
ATTEMPTS = (
    "the frozen policies before reinforcement: a start state counts as solved if one of K tries succeeds (unbiased "
    "estimate). For every K the noise level was chosen on other start states; bands: 95 % intervals."
)
LEVELS = (
    "the frozen policies that take a noise level, before reinforcement, at each level; bands: 95 % intervals, as of "
    "the success rates above."
)
SIGMA = "noise level that fine-tuning chose, over training and within the episode."
LEADS = (
    "Tasks from the hardest to the easiest for the frozen policy of the run's first method. Above: the method less "
    "the first one, paired by seed and start state; bars are 95 % intervals as above, not corrected for their number. "
    "Where a straight line through a method's leads falls to 0, fitted to all tasks alike, has an interval from "
    "resampled tasks whose values are drawn as wide as their own intervals, which is wider than 95 %; it is named from "
    "four tasks on, where nearly all those lines fall."
)
RELATION = (
    "One pair per method and task: means over the seeds with both numbers. Pairs are not independent: methods that "
    "share a frozen policy share its coverage, and an easy task is easy for all. So the intervals are percentiles of a "
    f"bootstrap that draws whole tasks where there are {report_coverage.TASKS} or more, else pretrained policies with "
    "all their methods, which still leaves them a little narrow (84 – 92 % in simulations). An easy task has high "
    "coverage and a high area, which is why the last column takes each task's mean off both. The area holds success "
    "before RL itself; the gain has it with a minus sign, and so falls with it even where RL does as well everywhere."
)


def intervals(ranking: Ranking, tasks: Sequence[TaskResult]) -> str:
    """What every bracket of the answer is: P as in this ranking, where it may be paired for some and not for others."""
    compared = {s.paired for s in ranking.ranked if s.better} or {True}
    ways = [way for paired, way in ((True, PAIRED), (False, UNPAIRED)) if paired in compared]
    several = MEANS if len(ranking.tasks) > 1 else ""
    fewest = min((len(r.seeds) for t in tasks for r in t.ranked), default=0)
    return INTERVALS + ", or where so marked".join(ways) + DECIDE + several + (ONE_SEED if fewest == 1 else "")
