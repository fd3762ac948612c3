"""The explorer of attention heads: its pictures are strings to read."""

import re
from xml.etree import ElementTree

import pytest
import torch
from handmade import handmade_model

from gptcourse import interpretability
from gptcourse.drawings import svg
from gptcourse.explorers import attention_explorer, heads
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import BPETokenizer, CharTokenizer
from tests.test_interpretability import TEXT, gpt2, opinionated

transformers = pytest.importorskip("transformers")

ATTACK = "<b>&amp;</b>"


@pytest.fixture(scope="module")
def tokenizer():
    return CharTokenizer(TEXT)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return opinionated(GPT(GPTConfig(tokenizer.vocab_size, n_positions=40, n_embd=24, n_layer=2, n_head=3)))


@pytest.fixture
def explorer(model, tokenizer):
    return attention_explorer(model, tokenizer, "To be, or not to be")


def drawings(explorer):
    """Return the pictures, parsed: what is not escaped or not closed fails here."""
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", explorer.picture.value, re.DOTALL)]


def words(element):
    return ["".join(text.itertext()) for text in element.iter("text")]


def squares(pattern):
    """Return {(left, top): opacity} of the blue squares of a heat map."""
    paths = [path for path in pattern.iter("path") if path.get("fill") == svg.BLUE]
    return {
        (float(x), float(y)): float(path.get("fill-opacity"))
        for path in paths
        for x, y in re.findall(r"M([\d.]+) ([\d.]+)h", path.get("d"))
    }


def lines(pattern):
    """Return [(x1, y1, x2, y2, opacity)] of the lines between tokens."""
    return [
        (*map(float, ends), float(path.get("stroke-opacity")))
        for path in pattern.iter("path")
        for ends in re.findall(r"M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)", path.get("d"))
    ]


@pytest.mark.parametrize("layer, head", [(0, 0), (0, 2), (1, 1)])
def test_the_picture_shows_the_weights_of_the_head_of_the_sliders(explorer, model, tokenizer, layer, head):
    explorer.controls["layer"].value, explorer.controls["head"].value = layer, head
    _, pattern = drawings(explorer)
    weights = interpretability.attention_patterns(model, tokenizer.encode("To be, or not to be"))[layer, head]
    shown = [opacity for _, opacity in sorted(squares(pattern).items(), key=lambda square: square[0][::-1])]
    assert shown == pytest.approx([w for w in weights.flatten().tolist() if w >= 0.01], abs=0.011)  # row by row
    numbers = [word for word in words(pattern) if re.fullmatch(r"[\d.]*\.\d+", word)]
    assert numbers == [f"{w:.1f}".removeprefix("0") for w in weights.flatten().tolist() if w >= 0.1]
    assert f"layer {layer}, head {head}" in words(pattern)
    assert words(pattern).count("␣") == 2 * 5  # each token once as a row, once as a column


def test_a_row_of_the_heat_map_is_the_one_who_looks():
    model = handmade_model(27)
    letters = CharTokenizer("abcdefghijklmnopqrstuvwxyz ")
    explorer = attention_explorer(model, letters, "abc")
    places = sorted((y, x) for x, y in squares(drawings(explorer)[1]))
    (top, left), (second, same_left), (third, next_left) = places
    assert left == same_left and next_left - left == second - top == third - second  # 0, 0 and 1: one step behind


def test_lines_go_from_the_key_on_the_left_to_the_query_on_the_right():
    letters = CharTokenizer("abcdefghijklmnopqrstuvwxyz ")
    explorer = attention_explorer(handmade_model(27), letters, "abcd")
    explorer.controls["view"].value = "lines"
    _, pattern = drawings(explorer)
    drawn = lines(pattern)
    assert all(x1 < x2 and opacity == 1 for x1, _, x2, _, opacity in drawn) and len(drawn) == 4
    looked_at = {query: key for _, key, _, query, _ in drawn}
    heights = sorted(looked_at)
    assert [looked_at[y] for y in heights] == [heights[0], *heights[:3]]  # the previous token; the first sees itself


def test_the_darker_line_is_the_larger_weight(explorer, model, tokenizer):
    explorer.controls["view"].value = "lines"
    drawn = [opacity for *_, opacity in sorted(lines(drawings(explorer)[1]), key=lambda line: (line[3], line[1]))]
    weights = interpretability.attention_patterns(model, tokenizer.encode("To be, or not to be"))[0, 0]
    assert drawn == pytest.approx([w for w in weights.flatten().tolist() if w >= 0.01], abs=0.011)


def test_a_head_that_is_off_is_drawn_pale_and_called_so(explorer):
    for view in heads.VIEWS:
        explorer.controls["view"].value, explorer.controls["off"].value = view, False
        on = explorer.picture.value
        explorer.controls["off"].value = True
        title = "layer 0, head 0, off: its output is zero"
        assert title in words(drawings(explorer)[1]) and title not in on
        assert '<g opacity="0.25">' in explorer.picture.value and '<g opacity="0.25">' not in on


def test_a_slider_needs_no_forward_pass(explorer, monkeypatch):
    monkeypatch.setattr(GPT, "forward", lambda *_, **__: pytest.fail("a forward pass"))
    for layer in (0, 1):
        for head in (0, 1, 2):
            explorer.controls["layer"].value, explorer.controls["head"].value = layer, head
            assert f"layer {layer}, head {head}" in words(drawings(explorer)[1])


def test_the_switch_shows_the_loss_with_and_without(model, tokenizer):
    sentence, held_out = "To be, or not", TEXT * 3
    explorer = attention_explorer(model, tokenizer, sentence, held_out)
    before = [interpretability.text_loss(model, tokenizer.encode(text)) for text in (sentence, held_out)]
    assert f"this sentence {before[0]:.3f}" in explorer.picture.value and "→" not in explorer.picture.value
    assert f"held-out text {before[1]:.3f}" in explorer.picture.value
    explorer.controls["layer"].value, explorer.controls["head"].value = 1, 2
    explorer.controls["off"].value = True
    without = interpretability.ablate_head(model, 1, 2)
    after = [interpretability.text_loss(without, tokenizer.encode(text)) for text in (sentence, held_out)]
    assert f"this sentence {before[0]:.3f} → {after[0]:.3f}" in explorer.picture.value
    assert f"held-out text {before[1]:.3f} → {after[1]:.3f}" in explorer.picture.value
    assert "layer 1, head 2 off" in explorer.picture.value


def test_of_a_long_held_out_text_the_first_512_tokens_count(model, tokenizer):
    held_out = TEXT * 20
    explorer = attention_explorer(model, tokenizer, "To be", held_out)
    expected = interpretability.text_loss(model, tokenizer.encode(held_out)[:512])
    assert f"held-out text {expected:.3f}" in explorer.picture.value
    assert f"{expected:.3f}" != f"{interpretability.text_loss(model, tokenizer.encode(held_out)):.3f}"


def test_the_loss_belongs_to_the_sentence_that_is_shown(model, tokenizer):
    explorer = attention_explorer(model, tokenizer, "To be, or not", TEXT)
    explorer.controls["off"].value = True
    explorer.controls["text"].value = "that is the question"
    without = interpretability.ablate_head(model, 0, 0)
    after = interpretability.text_loss(without, tokenizer.encode("that is the question"))
    assert f"→ {after:.3f}" in explorer.picture.value


def test_the_tables_show_the_scores_and_mark_the_strongest_and_the_chosen_head():
    model, letters = handmade_model(27), CharTokenizer("abcdefghijklmnopqrstuvwxyz ")
    explorer = attention_explorer(model, letters, "abc abc", held_out="the quick brown fox jumps over the lazy dog")
    shown = words(drawings(explorer)[0])
    best = [word for word in shown if word.startswith("strongest")]
    assert best == [f"strongest 1.00: layer {n}, head {h}" for n, h in ((0, 0), (0, 1), (1, 0))]
    assert any("the first two on held-out text" in word for word in shown)
    even = interpretability.even_scores(model, 43)  # as long as the held-out text
    assert [word for word in shown if word.startswith("all alike")] == [f"all alike: {score:.2f}" for score in even]
    explorer.controls["layer"].value = 1
    table = drawings(explorer)[0]
    assert [word for word in words(table) if word.startswith("this head")][2] == "this head 1.00"
    frames = [rect for rect in table.iter("rect") if rect.get("stroke") == svg.ORANGE]
    rings = list(table.iter("circle"))
    assert len(frames) == len(rings) == 3
    middle = [float(frames[2].get(side)) + float(frames[2].get("width")) / 2 for side in ("x", "y")]
    assert middle == pytest.approx([float(rings[2].get("cx")), float(rings[2].get("cy"))], abs=0.2)  # the same head


def test_scores_without_held_out_text_are_those_of_the_sentence(explorer, model, tokenizer):
    for sentence in ("To be, or not to be", "that is"):
        explorer.controls["text"].value = sentence
        expected = interpretability.head_scores(model, tokenizer.encode(sentence))
        found = [word for word in words(drawings(explorer)[0]) if word.startswith("this head")]
        assert found == [f"this head {score[0, 0]:.2f}" for score in expected]


def test_what_is_typed_is_shown_as_text(explorer):
    explorer.controls["text"].value = ATTACK
    for view in heads.VIEWS:
        explorer.controls["view"].value = view
        assert "<b>" not in explorer.picture.value
        assert {"<", "&", "b", ">"} <= set(words(drawings(explorer)[1]))
    explorer.controls["text"].value = "<zebra>"  # z is not in this vocabulary
    assert "<zebra>" not in explorer.picture.value and "&#x27;z&#x27;" in explorer.picture.value


@pytest.mark.parametrize("text", ["", "T"])
def test_a_sentence_with_nothing_to_look_back_at_is_answered_with_one(explorer, text):
    explorer.controls["text"].value = text
    assert "type a sentence of at least two tokens" in explorer.picture.value and "<svg" not in explorer.picture.value
    explorer.controls["layer"].value = 1  # and the sliders still move
    explorer.controls["text"].value = "To be"
    assert "layer 1, head 0" in words(drawings(explorer)[1])


def test_a_long_sentence_is_cut_and_says_so(explorer):
    explorer.controls["text"].value = TEXT * 50
    assert f"The first 24 of your {len(TEXT) * 50} tokens are read and shown." in explorer.picture.value
    assert words(drawings(explorer)[1]).count("t") == 2 * (TEXT * 50)[:24].count("t")
    explorer.controls["text"].value = "To be"
    assert "The first" not in explorer.picture.value


def test_a_context_shorter_than_the_picture_is_no_trouble(tokenizer):
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=9, n_embd=8, n_layer=1, n_head=1))
    explorer = attention_explorer(model, tokenizer, TEXT, held_out=TEXT)
    assert f"The first 9 of your {len(TEXT)} tokens" in explorer.picture.value
    assert len(drawings(explorer)) == 2


def test_tokens_of_a_byte_level_tokenizer_show_their_spaces_and_line_breaks():
    tokenizer = BPETokenizer.train(TEXT * 20, vocab_size=290)
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=40, n_embd=8, n_layer=1, n_head=2))
    explorer = attention_explorer(model, tokenizer, "that is\n\x07é")
    shown = words(drawings(explorer)[1])
    assert any(word.startswith("␣") and len(word) > 1 for word in shown)
    assert any("↵" in word for word in shown) and "\\x07" in shown
    assert not any(" " in word or "\n" in word for word in shown[2:])  # after the two lines of the title


def test_a_transformers_model_with_a_transformers_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: n for n, word in enumerate(["<unk>", "to", "be", "or", "not", "<i>"])}
    words_only = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words_only, unk_token="<unk>")
    model = gpt2()
    explorer = attention_explorer(model, tokenizer, "to be or not to be", held_out="to be <i> or not <i> to be")
    _, pattern = drawings(explorer)
    assert words(pattern).count("to") == 4
    explorer.controls["off"].value = True
    without = interpretability.ablate_head(model, 0, 0)
    assert f"→ {interpretability.text_loss(without, [1, 2, 3, 4, 1, 2]):.3f}" in explorer.picture.value
    explorer.controls["text"].value = "<i> be"
    assert "<i>" not in explorer.picture.value and "&lt;i&gt;" in explorer.picture.value


def test_a_model_with_many_heads_still_fits_the_width(tokenizer):
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=16, n_embd=50, n_layer=48, n_head=25))
    table = drawings(attention_explorer(model, tokenizer, "To be"))[0]
    edges = [float(r.get("x")) + float(r.get("width")) for r in table.iter("rect")]
    assert max(edges) <= svg.WIDTH
