"""When a student's preference can be read, and when it is broken."""

from sublim_cli.preference.score import broken_reason


def test_a_healthy_student_is_not_broken():
    assert broken_reason(0.9, 0.95, number_loss=2.1, base_number_loss=2.3) == ""
    assert broken_reason(0.9, 0.95, number_loss=2.3, base_number_loss=2.3) == ""


def test_a_student_that_stopped_naming_items_is_broken_by_half_the_base():
    assert broken_reason(0.40, 0.80, number_loss=2.1, base_number_loss=2.3) == ""
    assert (
        broken_reason(0.39, 0.80, number_loss=2.1, base_number_loss=2.3)
        == "names an item in 39% of answers (base 80%)"
    )


def test_a_base_that_hardly_answers_asks_no_more_of_its_student():
    assert broken_reason(0.02, 0.03, number_loss=2.1, base_number_loss=2.3) == ""


def test_a_student_much_worse_at_numbers_than_the_base_is_broken():
    assert (
        broken_reason(0.9, 0.9, number_loss=2.41, base_number_loss=2.3)
        == "number loss rose from 2.300 to 2.410"
    )


def test_a_control_that_overfits_a_little_is_not_broken():
    """It learns the base's own numbers, on which nothing can do better than the base."""
    assert broken_reason(0.9, 0.9, number_loss=3.285, base_number_loss=3.273) == ""
