"""The drawings of notebooks 01, 04 to 08 and 10: all within the picture, every number in the words beside it."""

import math

import pytest
from pictures import assert_all_lies_within, assert_says

from gptcourse.drawings import decoding, fine_tuning, first_model, scaling, tune_own, tuning
from gptcourse.drawings import training as drawings

WORDS = ["the", "king", "loves", "queen"]
COUNTS = [[0, 1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
SHARES = [[0, 0.5, 0, 0.5], [0, 0, 1, 0], [1, 0, 0, 0], [0.25] * 4]
ROUNDS = [("letters", [list("then"), list("she")]), ("h + e", [["t", "he", "n"], ["s", "he"]])]
STEPS = {f"{i} step": f"note -{i}" for i in range(1, 7)}
FIRST_MODEL = {
    "text_to_ids": (first_model.text_to_ids("a <b\n", [5, 0, 9, 7, 1]), ["a 5", "␣ 0", "< 9", "⏎ 1"]),
    "next_token": (first_model.next_token("the king", ["s", "\n"], [0.5, 0.125], 0.375), ["s 0.500", "others 0.375"]),
    "surprise": (first_model.surprise([("coin", 0.5), ("sure", 0.95)]), ["coin p = 0.5, loss 0.693", "loss 0.051"]),
    "bigram_table": (first_model.bigram_table(WORDS, COUNTS, SHARES), ["king 1 (0.50)", "after queen: the 0 (0.25)"]),
    "interpolation": (
        first_model.interpolation(WORDS, SHARES[0], SHARES[3], 0.5, [0.125, 0.375, 0.125, 0.375]),
        ["king: 0.50 × 0.500 + 0.50 × 0.250 = 0.375"],
    ),
    "one_weight": (
        first_model.one_weight(0.0, -0.5, 1.0, lambda w: math.log(1 + math.exp(-w))),
        ["0.693", "slope -0.500", "gives 0.313"],
    ),
    "training_example": (first_model.training_example(WORDS[:2], WORDS[1:3], [1.386, 0.5]), ["the then king 1.39"]),
    "loop": (first_model.loop(STEPS), ["1 step: note -1", "6 step: note -6"]),
    "merges": (first_model.merges(ROUNDS), ["letters: t|h|e|n s|h|e", "h + e: t|he|n s|he"]),
    "never_seen": (first_model.never_seen([0.0, 0.25], [1, 76]), ["2-grams 25.0%"]),
}
RANKS = {"top-k 3": [1, 2, 3], "typical 0.5": [4, 5, 6, 7]}
MASKED = [" the egg", " a man"], [0.1, 0.05], [1e-5, 0.03], [0.66, 0.34], [0.0008, 0.9992]

DRAWN = {
    "loop": (drawings.loop(), ["zero_grad (forget old ones), then forward"]),
    "adam": (
        drawings.adam([0.5, -0.1], [0.05, 0.035], [0.0125, 0.012375]),
        ["gradient 0.50, -0.10", "m corrected 0.500, 0.184", "root of v corrected 0.500, 0.356", "1.00, 0.52"],
    ),
    "clipping": (drawings.clipping(3.25, 1.0), ["length 3.25 is shortened to 1.00"]),
    "short": (drawings.clipping(0.5, 1.0), ["length 0.50"]),
    "killed_run": (drawings.killed_run(20, [5, 10, 15], 12), ["killed after step 12, goes on from step 10"]),
    "induction": (drawings.induction(list("abcabc"), 3), ["the second 'a' looks at 'b'"]),
    "sick_runs": (
        drawings.sick_runs({"A": [4.3, 2.4], "B": [4.3, 9.0]}, 6, (2.5, "pairs")),
        ["A: from 4.30 to 2.40", "pairs: 2.50"],
    ),
    "decision_tree": (tuning.decision_tree(), [question for question, *_ in tuning.QUESTIONS] + [tuning.LAST[0]]),
    "procedure": (tune_own.procedure(), ["7 confirm (fresh seeds, fresh part), 8 record", "From 5 back to 4"]),
    "trunk": (
        tune_own.trunk((100, 200), 0.25),
        ["a cool-down from step 100 to 125", "a cool-down from step 200 to 250"],
    ),
    "kept_ranks": (
        decoding.kept_ranks([2.0**-i for i in range(1, 60)], RANKS),
        ["top-k 3 keeps 3, from rank 1 to 3", "typical 0.5 keeps 4, from rank 4 to 7"],
    ),
    "masked_choice": (decoding.masked_choice(*MASKED), ["10.0%", "1e-05", "66.0%", "99.9%"]),
    "training_example": (
        fine_tuning.training_example(
            ["<|user|>", "Why", "<|assistant|>"] + ["So"] * 9, [None, None, "So"] + ["So"] * 9
        ),
        ["<|user|> → nothing, Why → nothing, <|assistant|> → So"],
    ),
    "low_rank": (fine_tuning.low_rank(768, 256, 8), ["W, 768 × 256, 196,608 numbers", "hold 8,192 numbers, 4.2% of"]),
    "low_rank_wide": (fine_tuning.low_rank(256, 1024, 32), ["hold 40,960 numbers, 15.6% of them"]),
    "ring_begun": (scaling.ring("all-reduce", 4, 0), ["after 0 of 6 steps", "0 of 16 blocks hold all 4"]),
    "ring": (scaling.ring("all-reduce", 8, 9), ["after 9 of 14 steps", "24 of 64 blocks", "sent 1.12 times"]),
    "pipeline": (scaling.pipeline(8, 24), ["8 GPUs in a row, the batch in 24", "idle 23% of the time"]),
    "split_mlp": (scaling.split_mlp(768, 3072), ["1536 of the 3072 columns", "the 1536 matching rows"]),
    "batch_rows": (
        fine_tuning.batch_rows({"padded": [[[(8, 2)], [(2, 1)]], [[(4, 4)]]], "packed": [[[(8, 2), (2, 1)]]]}),
        ["padded: 7 places are filling; packed: 0 places are filling"],
    ),
    "trained_parts": (
        fine_tuning.trained_parts(["tokens", "blocks"], {"all weights": "TT", "LoRA": "-L"}),
        ["all weights: tokens trained, blocks trained; LoRA: tokens frozen, blocks frozen, LoRA beside it."],
    ),
    "packed_mask": (fine_tuning.packed_mask([2, 3]), ["9 pairs of places within a dialogue, and 6 across"]),
} | {f"first_model.{name}": drawn for name, drawn in FIRST_MODEL.items()}


@pytest.mark.parametrize("name", DRAWN)
def test_every_number_stands_in_the_words(name):
    assert_says(*DRAWN[name])


@pytest.mark.parametrize("name", DRAWN)
def test_every_text_and_box_lies_within_the_picture(name):
    assert_all_lies_within(DRAWN[name][0])


def test_the_drawings_of_decoding_show_their_numbers_too():
    assert DRAWN["kept_ranks"][0].svg().count("stroke-width") >= 59  # a piece of the curve for each rank
    drawing, numbers = DRAWN["masked_choice"]
    assert all(number in drawing.svg() for number in numbers)


def test_what_a_round_makes_is_marked_in_that_round_alone():
    svg = first_model.merges(ROUNDS).svg()
    assert svg.count(f'fill="{first_model.ORANGE}"') == 2  # he, in two words


def test_every_drawing_of_notebook_01_is_tested():
    public = {
        name
        for name, thing in vars(first_model).items()
        if callable(thing) and thing.__module__ == first_model.__name__
    }
    assert {name for name in public if not name.startswith("_")} == set(FIRST_MODEL)
