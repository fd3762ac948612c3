"""Attention heads: patterns, scores and ablations against truths of their own, and the explorer as strings to read."""

import math
import re
from xml.etree import ElementTree

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from gptcourse.explorers import attention_explorer, heads, svg
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import BPETokenizer, CharTokenizer

transformers = pytest.importorskip("transformers")

TEXT = "To be, or not to be: that is the question.\n<script>alert('&amp;')</script>"
ATTACK = "<b>&amp;</b>"


@pytest.fixture(scope="module")
def tokenizer():
    return CharTokenizer(TEXT)


def opinionated(model):
    """Make the queries, keys and values of a fresh model larger, so that its heads differ from one another."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attn" in name and parameter.dim() == 2:
                parameter.mul_(12)
    return model


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return opinionated(GPT(GPTConfig(tokenizer.vocab_size, n_positions=40, n_embd=24, n_layer=2, n_head=3)))


def gpt2(seed=0, **changes):
    """Return a transformers GPT-2 with random weights and sizes that nobody would choose."""
    settings = {"vocab_size": 37, "n_positions": 29, "n_embd": 35, "n_layer": 3, "n_head": 5}
    torch.manual_seed(seed)
    config = transformers.GPT2Config(**settings | {"bos_token_id": None, "eos_token_id": None} | changes)
    return opinionated(transformers.GPT2LMHeadModel(config))


def ids_for(model, n=20, seed=1):
    return torch.randint(model.config.vocab_size, (n,), generator=torch.Generator().manual_seed(seed))


# --- patterns


@pytest.mark.parametrize("settings", [{}, {"n_embd": 12, "n_head": 1, "n_layer": 1}, {"n_inner": 17}])
def test_patterns_of_a_transformers_model_are_those_that_it_gives_itself(settings):
    model = gpt2(**settings).train()  # with dropout, which must not be on while we look
    ids = ids_for(model)
    patterns = heads.attention_patterns(model, ids)
    assert model.training and model.transformer.h[0].attn.training
    model.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = torch.cat(model.eval()(ids[None], output_attentions=True).attentions)
    assert_close(patterns, theirs)
    assert patterns.shape == (model.config.n_layer, model.config.n_head, 20, 20)
    assert not model.transformer.h[0].attn.c_attn._forward_hooks


def test_patterns_of_our_model_are_those_of_its_transformers_twin(model):
    ids = ids_for(model)
    assert_close(heads.attention_patterns(model, ids), heads.attention_patterns(model.to_transformers(), ids))


def test_patterns_know_rotary_positions():
    torch.manual_seed(0)
    config = GPTConfig(9, n_positions=16, n_embd=8, n_layer=1, n_head=2, position_embedding="rotary", qk_norm=True)
    model, ids = opinionated(GPT(config)), torch.arange(9)
    with torch.no_grad():
        (expected,) = model(ids[None], output_attentions=True).attentions
    assert_close(heads.attention_patterns(model, ids.tolist()), expected)


@pytest.mark.parametrize(
    "ids, sentence",
    [
        ([3], "at least two"),
        ([], "at least two"),
        ([[1, 2]], "one row"),
        ([0.5, 1.5], "ids from 0 to"),
        ([0, -1], "ids from 0 to"),
        ([0, 10_000], "ids from 0 to"),
        ([0] * 41, "41 tokens and the model reads 40"),
    ],
)
def test_ids_that_cannot_be_read_are_refused(model, ids, sentence):
    with pytest.raises(ValueError, match=sentence):
        heads.attention_patterns(model, ids)


def test_the_last_id_of_the_vocabulary_can_be_read_and_no_more(model):
    last = model.config.vocab_size - 1
    assert heads.attention_patterns(model, [0, last]).shape == (2, 3, 2, 2)
    with pytest.raises(ValueError, match=f"from 0 to {last}:"):
        heads.attention_patterns(model, [0, last + 1])


@pytest.mark.parametrize("function", [heads.attention_patterns, heads.head_scores, heads.text_loss])
def test_other_architectures_are_refused_with_one_sentence(function, tokenizer):
    config = transformers.LlamaConfig(
        vocab_size=37, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    llama = transformers.LlamaForCausalLM(config)
    with pytest.raises(ValueError, match="LlamaForCausalLM is not shaped like GPT-2"):
        function(llama, [1, 2, 3])
    with pytest.raises(ValueError, match="not shaped like GPT-2"):
        attention_explorer(llama, tokenizer, "To be")


@pytest.mark.parametrize("setting", [{"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}])
def test_scores_that_are_scaled_otherwise_are_refused(setting):
    with pytest.raises(ValueError, match="√D"):
        heads.attention_patterns(gpt2(**setting), [1, 2, 3])


def test_a_gpt2_without_a_read_out_is_refused():
    with pytest.raises(ValueError, match="GPT2Model is not shaped"):
        heads.text_loss(gpt2().transformer, [1, 2, 3])


# --- scores


def test_scores_of_weights_that_are_known():
    previous = torch.eye(10)[[0, *range(9)]]  # row i looks at i - 1, and the first at itself
    first = torch.zeros(10, 10)
    first[:, 0] = 1
    half = (previous + first) / 2
    weights = torch.stack([previous, first, half])
    # Row 1's previous token is the first one: one row of nine.
    assert_close(heads.previous_token_score(weights), torch.tensor([1.0, 1 / 9, 5 / 9]))
    # Rows 4 to 9 count, and none of them has the first token just before it.
    assert_close(heads.first_token_score(weights), torch.tensor([0.0, 1.0, 0.5]))


def test_the_first_few_queries_do_not_count_for_the_first_token():
    weights = torch.eye(8)
    weights[:4] = torch.eye(8)[0]  # the first four look at the first token, which says nothing about the head
    assert heads.first_token_score(weights).item() == 0
    assert heads.first_token_score(torch.tensor([[1.0, 0.0], [0.25, 0.75]])).item() == 0.25  # all there is


@pytest.mark.parametrize("twin", [False, True], ids=["ours", "transformers"])
def test_the_handmade_heads_are_found_for_what_they_are(twin):
    model = heads.handmade_model(40)
    model = model.to_transformers() if twin else model
    ids = ids_for(model, 30)
    patterns = heads.attention_patterns(model, ids)
    before = torch.eye(30)[[0, *range(29)]]
    assert_close(patterns[0, 0], before, atol=1e-5, rtol=0)
    assert_close(patterns[0, 1], torch.eye(30)[[0] * 30], atol=1e-5, rtol=0)
    alike = torch.ones(30, 30).tril()
    assert_close(patterns[1, 1], alike / alike.sum(-1, keepdim=True))
    scores = heads.head_scores(model, ids)
    assert_close(scores.previous_token[0, 0], torch.tensor(1.0), atol=1e-5, rtol=0)
    assert_close(scores.first_token[0, 1], torch.tensor(1.0), atol=1e-5, rtol=0)
    assert_close(scores.induction[1, 0], torch.tensor(1.0), atol=1e-5, rtol=0)
    for score in scores:
        assert score.shape == (2, 2) and score.flatten().sort().values[-2] < 0.2


def test_the_induction_head_copies_and_needs_the_previous_token_head():
    model = heads.handmade_model(30)
    once = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:26]
    ids = torch.cat((once, once[1:]))
    with torch.no_grad():
        assert torch.equal(model(ids[None, :-1]).logits[0, 26:].argmax(-1), ids[27:])
    with heads.ablate_head(model, 0, 0):
        assert heads.induction_scores(model)[1, 0] < 0.1
    without = heads.head_ablation(model, ids) - heads.text_loss(model, ids)
    assert (without[0, 0] > 1) and (without[1, 0] > 1)
    assert_close(without[:, 1], torch.zeros(2), atol=1e-5, rtol=0)


def always_so_far_back(distance, vocab_size=64):
    """Return a model whose head looks `distance` places back, whatever stands there."""
    model = heads.handmade_model(vocab_size)
    layer, n = model.h[0].attn, 2 * vocab_size
    rows = heads._rows(layer, "key", 0)
    with torch.no_grad():
        layer.c_attn.weight[rows] = 0
        layer.c_attn.weight[rows[distance:], range(n - distance)] = heads.SHARP
    return model


def test_a_head_that_counts_places_does_not_pass_for_an_induction_head():
    model = always_so_far_back(49)
    pattern = heads.attention_patterns(model, torch.arange(60))[0, 0]
    assert_close(pattern.diagonal(-49), torch.ones(11), atol=1e-5, rtol=0)
    # It looks one sequence back, to what followed, in the longest sequences alone: one of four.
    assert heads.induction_scores(model)[0, 0] == pytest.approx(0.25, abs=0.02)


def test_a_head_that_looks_at_everything_alike_scores_what_we_say():
    model = heads.handmade_model(40)
    even, scores = heads.even_scores(model, 30), heads.head_scores(model, ids_for(model, 30))
    for alike, found in zip(even, scores, strict=True):
        assert_close(alike, found[1, 1])
    assert even.previous_token.item() == pytest.approx(sum(1 / n for n in range(2, 31)) / 29)  # row i has i + 1 keys


def test_induction_scores_are_the_same_again_and_change_with_the_seed(model):
    assert torch.equal(heads.induction_scores(model), heads.induction_scores(model))
    assert not torch.equal(heads.induction_scores(model), heads.induction_scores(model, seed=1))


def test_a_context_too_short_to_repeat_anything_is_refused():
    with pytest.raises(ValueError, match="so short"):
        heads.induction_scores(GPT(GPTConfig(9, n_positions=4, n_embd=4, n_layer=1, n_head=1)))


def test_a_long_text_is_read_in_pieces(model):
    ids = ids_for(model, 100)
    rows = [heads.attention_patterns(model, ids[start : start + 40]) for start in (0, 40)]
    expected = sum(heads.previous_token_score(row) for row in rows) / 2
    assert_close(heads.head_scores(model, ids).previous_token, expected)


# --- ablation


def without_rows(model, layer, head):
    """Return a copy of a model in which c_proj reads nothing from one head, by its weights."""
    ours = isinstance(model, GPT)
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    size = model.config.n_embd // model.config.n_head
    weight = (copy if ours else copy.transformer).h[layer].attn.c_proj.weight
    with torch.no_grad():
        (weight.T if ours else weight)[head * size : (head + 1) * size] = 0  # transformers stores (in, out)
    return copy.eval()


@pytest.mark.parametrize("twin", [False, True], ids=["ours", "transformers"])
def test_a_head_switched_off_is_a_head_whose_output_is_read_by_nobody(model, twin):
    model = gpt2(7) if twin else model
    ids = ids_for(model)
    model.eval()
    with torch.no_grad():
        everything = model(ids[None]).logits
        for layer in range(model.config.n_layer):
            for head in range(model.config.n_head):
                with heads.ablate_head(model, layer, head):
                    logits = model(ids[None]).logits
                assert_close(logits, without_rows(model, layer, head)(ids[None]).logits)
                assert not torch.allclose(logits, everything, atol=1e-3)
        assert torch.equal(model(ids[None]).logits, everything)


def test_nothing_is_left_behind_also_after_an_exception(model):
    hooks = model.h[1].attn.c_proj._forward_pre_hooks
    with pytest.raises(KeyboardInterrupt), heads.ablate_head(model, 1, 2):
        assert len(hooks) == 1
        raise KeyboardInterrupt
    assert len(hooks) == 0


def test_a_model_can_learn_with_a_head_off(model):
    ids = ids_for(model)[None]
    with heads.ablate_head(model, 1, 2):
        model(ids, ids).loss.backward()
    gradient = model.h[1].attn.c_proj.weight.grad  # (out, in): the head's inputs are the last 8 of 24
    model.zero_grad(set_to_none=True)
    assert (gradient[:, 16:] == 0).all() and (gradient[:, :16] != 0).all()


def test_two_heads_can_be_off_at_once(model):
    ids = ids_for(model)
    with heads.ablate_head(model, 0, 1), heads.ablate_head(model, 0, 2):
        both = heads.text_loss(model, ids)
    assert both == pytest.approx(heads.text_loss(without_rows(without_rows(model, 0, 1), 0, 2), ids))


@pytest.mark.parametrize("layer, head", [(2, 0), (0, 3), (-1, 0), (0, -1)])
def test_a_head_that_is_not_there_cannot_be_switched_off(model, layer, head):
    with pytest.raises(ValueError, match="layers go from 0 to 1, heads to 2"), heads.ablate_head(model, layer, head):
        pass


def test_the_loss_is_the_models_own_in_nats_per_token(model):
    ids = ids_for(model, 100)
    windows = ids[:80].view(2, 40)
    with torch.no_grad():
        logits = model(windows).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())
    assert heads.text_loss(model, ids) == pytest.approx(expected.item())
    alike = GPT(GPTConfig(50, n_positions=64, n_embd=4, n_layer=1, n_head=1))
    with torch.no_grad():
        alike.wte.weight.zero_()
    assert heads.text_loss(alike, ids_for(alike)) == pytest.approx(math.log(50))


def test_losses_without_each_head_are_found_one_by_one(model):
    ids = ids_for(model, 30)
    losses = heads.head_ablation(model, ids)
    assert losses.shape == (2, 3)
    assert losses[1, 2].item() == pytest.approx(heads.text_loss(without_rows(model, 1, 2), ids))
    assert losses.unique().numel() == 6


# --- the explorer


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
    weights = heads.attention_patterns(model, tokenizer.encode("To be, or not to be"))[layer, head]
    shown = [opacity for _, opacity in sorted(squares(pattern).items(), key=lambda square: square[0][::-1])]
    assert shown == pytest.approx([w for w in weights.flatten().tolist() if w >= 0.01], abs=0.011)  # row by row
    numbers = [word for word in words(pattern) if re.fullmatch(r"[\d.]*\.\d+", word)]
    assert numbers == [f"{w:.1f}".removeprefix("0") for w in weights.flatten().tolist() if w >= 0.1]
    assert f"layer {layer}, head {head}" in words(pattern)
    assert words(pattern).count("␣") == 2 * 5  # each token once as a row, once as a column


def test_a_row_of_the_heat_map_is_the_one_who_looks():
    model = heads.handmade_model(27)
    letters = CharTokenizer("abcdefghijklmnopqrstuvwxyz ")
    explorer = attention_explorer(model, letters, "abc")
    places = sorted((y, x) for x, y in squares(drawings(explorer)[1]))
    (top, left), (second, same_left), (third, next_left) = places
    assert left == same_left and next_left - left == second - top == third - second  # 0, 0 and 1: one step behind


def test_lines_go_from_the_key_on_the_left_to_the_query_on_the_right():
    letters = CharTokenizer("abcdefghijklmnopqrstuvwxyz ")
    explorer = attention_explorer(heads.handmade_model(27), letters, "abcd")
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
    weights = heads.attention_patterns(model, tokenizer.encode("To be, or not to be"))[0, 0]
    assert drawn == pytest.approx([w for w in weights.flatten().tolist() if w >= 0.01], abs=0.011)


def test_every_slider_and_switch_changes_the_picture_and_back_again(explorer):
    for name, value in {"layer": 1, "head": 2, "view": "lines", "off": True}.items():
        before, old = explorer.picture.value, explorer.controls[name].value
        explorer.controls[name].value = value
        assert explorer.picture.value != before, name
        explorer.controls[name].value = old
        assert explorer.picture.value == before, name


def test_a_slider_needs_no_forward_pass(explorer, monkeypatch):
    monkeypatch.setattr(GPT, "forward", lambda *_, **__: pytest.fail("a forward pass"))
    for layer in (0, 1):
        for head in (0, 1, 2):
            explorer.controls["layer"].value, explorer.controls["head"].value = layer, head
            assert f"layer {layer}, head {head}" in words(drawings(explorer)[1])


def test_the_switch_shows_the_loss_with_and_without(model, tokenizer):
    sentence, held_out = "To be, or not", TEXT * 3
    explorer = attention_explorer(model, tokenizer, sentence, held_out)
    before = [heads.text_loss(model, tokenizer.encode(text)) for text in (sentence, held_out)]
    assert f"this sentence {before[0]:.3f}" in explorer.picture.value and "→" not in explorer.picture.value
    assert f"held-out text {before[1]:.3f}" in explorer.picture.value
    explorer.controls["layer"].value, explorer.controls["head"].value = 1, 2
    explorer.controls["off"].value = True
    with heads.ablate_head(model, 1, 2):
        after = [heads.text_loss(model, tokenizer.encode(text)) for text in (sentence, held_out)]
    assert f"this sentence {before[0]:.3f} → {after[0]:.3f}" in explorer.picture.value
    assert f"held-out text {before[1]:.3f} → {after[1]:.3f}" in explorer.picture.value
    assert "layer 1, head 2 off" in explorer.picture.value
    assert not model.h[1].attn.c_proj._forward_pre_hooks


def test_of_a_long_held_out_text_the_first_512_tokens_count(model, tokenizer):
    held_out = TEXT * 20
    explorer = attention_explorer(model, tokenizer, "To be", held_out)
    expected = heads.text_loss(model, tokenizer.encode(held_out)[:512])
    assert f"held-out text {expected:.3f}" in explorer.picture.value
    assert f"{expected:.3f}" != f"{heads.text_loss(model, tokenizer.encode(held_out)):.3f}"


def test_the_loss_belongs_to_the_sentence_that_is_shown(model, tokenizer):
    explorer = attention_explorer(model, tokenizer, "To be, or not", TEXT)
    explorer.controls["off"].value = True
    explorer.controls["text"].value = "that is the question"
    with heads.ablate_head(model, 0, 0):
        after = heads.text_loss(model, tokenizer.encode("that is the question"))
    assert f"→ {after:.3f}" in explorer.picture.value


def test_the_tables_show_the_scores_and_mark_the_strongest_and_the_chosen_head():
    model, letters = heads.handmade_model(27), CharTokenizer("abcdefghijklmnopqrstuvwxyz ")
    explorer = attention_explorer(model, letters, "abc abc", held_out="the quick brown fox jumps over the lazy dog")
    shown = words(drawings(explorer)[0])
    best = [word for word in shown if word.startswith("strongest")]
    assert best == [f"strongest 1.00: layer {n}, head {h}" for n, h in ((0, 0), (0, 1), (1, 0))]
    assert any("the first two on held-out text" in word for word in shown)
    even = heads.even_scores(model, 43)  # as long as the held-out text
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
        expected = heads.head_scores(model, tokenizer.encode(sentence))
        for got, wanted in zip(explorer.scores, expected, strict=True):
            assert_close(got, wanted)
        assert f"this head {expected.previous_token[0, 0]:.2f}" in words(drawings(explorer)[0])


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
    assert len(explorer.labels) == 24
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
    with heads.ablate_head(model, 0, 0):
        assert f"→ {heads.text_loss(model, [1, 2, 3, 4, 1, 2]):.3f}" in explorer.picture.value
    explorer.controls["text"].value = "<i> be"
    assert "<i>" not in explorer.picture.value and "&lt;i&gt;" in explorer.picture.value


def test_a_model_with_many_heads_still_fits_the_width(tokenizer):
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=16, n_embd=50, n_layer=48, n_head=25))
    table = drawings(attention_explorer(model, tokenizer, "To be"))[0]
    edges = [float(r.get("x")) + float(r.get("width")) for r in table.iter("rect")]
    assert max(edges) <= svg.WIDTH


def test_output_never_grows(explorer):
    children = explorer.children
    for sentence in ("To be", "", "or not", TEXT):
        explorer.controls["text"].value = sentence
    assert explorer.children == children and explorer.picture.value.count("<svg") == 2
