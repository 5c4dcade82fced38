"""The quantization that a sweep chooses, and its reason.

pytest tests/report/test_choice.py
"""

from edge.report.choice import Candidate, choose

MB = 10**6


def candidate(
    quant: str, megabytes: float, loss: float, reach: float | None = 1.0, kl: float | None = None
) -> Candidate:
    low, high = (None, None) if reach is None else (loss - reach, loss + reach)
    return Candidate(quant, int(megabytes * MB), 50.0 - loss, loss, low, high, kl)


FOUR = [
    candidate("Q8_0", 80, 0.1, 0.2, 0.0001),
    candidate("Q6_K", 60, -0.3, 0.4, 0.0004),
    candidate("Q4_K_M", 45, 0.6, 0.9, 0.004),
    candidate("Q2_K", 30, 4.4, 3.0, 0.2),
]


def test_a_budget_alone_takes_the_nearest_to_the_base_that_fits() -> None:
    choice = choose(FOUR, budget=61 * MB)
    assert choice.quant == "Q6_K"
    assert "60.0 MB" in choice.why and "0.0004 nats" in choice.why and "61.0 MB" in choice.why
    # The score of Q6_K is better than that of Q8_0, but by chance: KL decides.
    assert choose(FOUR, budget=100 * MB).quant == "Q8_0"


def test_without_kl_the_score_decides() -> None:
    plain = [Candidate(**{**vars(each), "kl_mean": None}) for each in FOUR]
    assert choose(plain, budget=100 * MB).quant == "Q6_K"
    assert "best score" in choose(plain, budget=100 * MB).why


def test_a_budget_that_nothing_fits_names_the_smallest() -> None:
    choice = choose(FOUR, budget=10 * MB)
    assert choice.quant is None
    assert "Q2_K" in choice.why and "30.0 MB" in choice.why


def test_a_largest_loss_takes_the_smallest_file_whose_bound_keeps_it() -> None:
    assert choose(FOUR, max_loss=1.5).quant == "Q4_K_M"
    why = choose(FOUR, max_loss=1.5).why
    assert "95 % sure to lose at most 1.5 points" in why and "-0.60 points" in why
    assert "(95 %: -1.50 to +0.30)" in why
    assert choose(FOUR, max_loss=1.0).quant == "Q6_K"  # Q4_K_M lost 0.6, but perhaps 1.5
    assert choose(FOUR, max_loss=10.0).quant == "Q2_K"


def test_a_measured_loss_alone_chooses_nothing() -> None:
    """Q6_K gained, and Q8_0 lost 0.1; but no bound is below 0.05."""
    choice = choose(FOUR, max_loss=0.05)
    assert choice.quant is None
    assert "No file is 95 % sure to lose at most 0.05 points" in choice.why
    assert "lowest bound is that of Q6_K: a loss of up to 0.10 points" in choice.why
    assert "--budget" in choice.why


def test_a_file_whose_rows_agree_by_chance_is_never_sure() -> None:
    """On four rows all answers of a ruined file can equal the base's: no loss was seen, and there is no interval."""
    ruined = candidate("IQ1_S", 20, 0.0, None, 2.5)
    for limit in (0.5, 5.0, 100.0):
        choice = choose([ruined], max_loss=limit)
        assert choice.quant is None
        assert "Too few tasks differ for a bound of: IQ1_S." in choice.why
    assert choose([*FOUR, ruined], max_loss=10.0).quant == "Q2_K"
    assert choose([*FOUR, ruined], budget=100 * MB).quant == "Q8_0"


def test_budget_and_loss_together() -> None:
    assert choose(FOUR, budget=50 * MB, max_loss=1.5).quant == "Q4_K_M"
    assert choose(FOUR, budget=35 * MB, max_loss=1.5).quant is None


def test_a_budget_says_where_there_is_no_interval() -> None:
    choice = choose([candidate("Q8_0", 80, 0.0, None, 0.001)], budget=100 * MB)
    assert choice.quant == "Q8_0"
    assert "+0.00 points from the base's; too few tasks differ for an interval" in choice.why
