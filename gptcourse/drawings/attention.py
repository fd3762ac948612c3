"""The drawings of notebook 02: attention, step by step, from the numbers of its one example.

Every function takes tensors or nested lists, and the words of the sentence. T tokens, C numbers each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptcourse.drawings.diagram import BLUE, CELL_HEIGHT, CELL_WIDTH, GREEN, ORANGE, PURPLE, Box, Diagram

HEAD_COLORS = (BLUE, GREEN, PURPLE, ORANGE)


def _rows(numbers) -> list:
    return np.asarray(numbers, dtype=float).tolist()


def _said(numbers, digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in np.asarray(numbers, dtype=float).ravel())


def lookup(words: Sequence[str], ids, vocabulary: Sequence[str], table) -> Diagram:
    """Draw how each token fetches its row of the table: words (T) with ids (T), table (V, C)."""
    ids, table = np.asarray(ids).tolist(), _rows(table)
    vectors = "; ".join(f"{word} ({_said(table[i], 1)})" for word, i in zip(words, ids, strict=True))
    drawing = Diagram(680, 240, f"Each token's number picks a row of the table: {vectors}.")
    drawing.text(48, 22, "token", bold=True, size=12)
    drawing.text(108, 22, "number", bold=True, size=12)
    top = 50
    held = drawing.matrix(
        290,
        top + 13,
        table,
        row_labels=[f"{i} {word}" for i, word in enumerate(vocabulary)],
        title=f"the table: {len(table)} rows, {len(table[0])} columns",
    )
    drawing.text(590, 22, "the token's vector", bold=True, size=12)
    for place, (word, i) in enumerate(zip(words, ids, strict=True)):
        y, row = 36 + 38 * place, held.y + CELL_HEIGHT * (i + 0.5)
        drawing.token(16, y, word)
        drawing.text(108, y + 18, i, mono=True)
        drawing.arrow((122, y + 13), (205, row), color=BLUE)
        vector = drawing.vector(524, y, table[i], largest=1.5)
        drawing.arrow((held.x + held.width + 4, row), (vector.x - 4, y + 13), color=BLUE)
    return drawing


def one_query(words: Sequence[str], place: int, query, keys, values, scores, weights) -> Diagram:
    """Draw all steps for one query: scores, softmax, weighted sum. query (D), keys and values (S, D), the rest (S)."""
    query, keys, values, scores, weights = map(_rows, (query, keys, values, scores, weights))
    output, n = (np.asarray(weights) @ np.asarray(values)).tolist(), len(keys)
    steps = f"scores {_said(scores)}; weights {_said(weights)}; output {_said(output)}"
    drawing = Diagram(680, 134 + 32 * n, f"The query of {words[place]} ({_said(query)}) meets every key: {steps}.")
    drawing.text(10, 25, f"query of “{words[place]}”", anchor="start", bold=True, color=BLUE)
    asked = drawing.vector(150, 8, query, digits=2, color=BLUE)
    drawing.arrow(asked.bottom, (216, 54), color=BLUE)
    headings = (
        (216, "key", GREEN),
        (340, "score q · k", "currentColor"),
        (440, "weight", BLUE),
        (600, "value", PURPLE),
    )
    for x, name, color in headings:
        drawing.text(x, 70, name, bold=True, size=12, color=color)
    largest = {"keys": np.abs(keys).max(), "scores": np.abs(scores).max(), "values": np.abs(values).max()}
    for s, word in enumerate(words[:n]):
        y = 80 + 32 * s
        drawing.token(16, y, word, color=ORANGE if s == place else "currentColor")
        key = drawing.vector(150, y, keys[s], digits=2, color=GREEN, largest=largest["keys"])
        score = drawing.vector(318, y, [scores[s]], digits=2, largest=largest["scores"])
        weight = drawing.vector(418, y, [weights[s]], digits=2, color=BLUE, largest=1)
        drawing.vector(534, y, values[s], digits=2, color=PURPLE, largest=largest["values"])
        drawing.arrow(key.right, score.left)
        drawing.arrow(score.right, weight.left)
        drawing.text(498, y + 18, "×", size=15)
    bottom = 80 + 32 * n
    drawing.text(370, bottom + 10, "softmax →", size=11, faint=True)
    drawing.text(440, bottom + 10, f"sum {sum(weights):.2f}", size=11, faint=True)
    drawing.text(522, bottom + 38, "added up: the output", anchor="end", bold=True, color=PURPLE)
    drawing.vector(534, bottom + 20, output, digits=2, color=PURPLE, largest=largest["values"])
    drawing.arrow((600, bottom - 4), (600, bottom + 18), color=PURPLE)
    return drawing


def all_queries(words: Sequence[str], q, k, v, scores, weights) -> Diagram:
    """Draw the two matrix products: q kᵀ = scores, weights v = outputs. q, k, v (T, D), the other two (T, T)."""
    q, k, v, scores, weights = map(_rows, (q, k, v, scores, weights))
    outputs, n, size = (np.asarray(weights) @ np.asarray(v)).tolist(), len(words), len(q[0])
    described = f"Scores, row by row: {_said(scores)}. Weights: {_said(weights)}. Outputs: {_said(outputs)}."
    top, low = 44, 44 + CELL_HEIGHT * n + 66
    drawing = Diagram(724, low + CELL_HEIGHT * n + 12, described)
    apart, shares_style = 38, {"digits": 2, "row_labels": words, "color": BLUE, "largest": 1}
    left = drawing.matrix(64, top, q, row_labels=words, color=BLUE, title=f"queries ({n}, {size})")
    transposed = np.transpose(k).tolist()
    keys = drawing.matrix(left.right[0] + apart, top, transposed, column_labels=words, color=GREEN)
    drawing.text(keys.bottom[0], keys.bottom[1] + 18, f"keys, transposed ({size}, {n})", bold=True, size=12)
    title = f"scores ({n}, {n})"
    table = drawing.matrix(keys.right[0] + apart, top, scores, digits=2, column_labels=words, title=title)
    shares = drawing.matrix(64, low, weights, title=f"weights ({n}, {n})", **shares_style)
    handed = drawing.matrix(shares.right[0] + apart, low, v, color=PURPLE, title=f"values ({n}, {size})")
    title = f"outputs ({n}, {size})"
    result = drawing.matrix(handed.right[0] + apart, low, outputs, digits=2, color=PURPLE, title=title)
    for first, second, sign in ((left, keys, "@"), (keys, table, "="), (shares, handed, "@"), (handed, result, "=")):
        drawing.text((first.right[0] + second.x) / 2, first.y + 45, sign, bold=True, size=17)
    turn = table.y + table.height
    drawing.arrow((table.x + 40, turn + 4), (shares.right[0] - 30, low - 6))
    drawing.text(table.x + 50, turn + 26, "softmax of each row", anchor="start", size=12)
    return drawing


def projections(word: str, x, matrices, vectors) -> Diagram:
    """Draw how one token's vector x (C) becomes query, key and value; matrices and vectors are three of each."""
    names = {
        "query": (BLUE, "what I look for"),
        "key": (GREEN, "how I am found"),
        "value": (PURPLE, "what I hand over"),
    }
    said = "; ".join(f"{name} {_said(vector, 1)}" for name, vector in zip(names, vectors, strict=True))
    drawing = Diagram(680, 340, f"The vector of {word}, {_said(x, 1)}, times three matrices gives {said}.")
    drawing.token(16, 124, word)
    start = drawing.vector(16, 158, _rows(x), largest=1.5)
    rows = zip(names.items(), matrices, vectors, strict=True)
    for y, ((name, (color, role)), matrix, vector) in zip((24, 136, 248), rows, strict=True):
        box = drawing.matrix(270, y, _rows(matrix), color=color, largest=3, title=f"W_{name[0]}")
        drawing.arrow(start.right, box.left, color=color)
        result = drawing.vector(470, y + CELL_HEIGHT, _rows(vector), color=color, largest=3)
        drawing.arrow(box.right, result.left, color=color)
        drawing.text(result.x + 66, y + 18, name, bold=True, color=color)
        drawing.text(result.x + 66, y + 70, role, size=11, faint=True)
    return drawing


def mask(words: Sequence[str], scores, weights) -> Diagram:
    """Draw scores (T, T) with the future crossed out, and the weights (T, T) that softmax makes of the rest."""
    scores, weights, n = _rows(scores), _rows(weights), len(words)
    drawing = Diagram(680, 62 + CELL_HEIGHT * n + 28, f"Causal weights, row by row: {_said(weights)}.")
    style = {"digits": 2, "column_labels": words, "hidden": lambda i, j: j > i}
    left = drawing.matrix(70, 48, scores, row_labels=words, title="scores: the future becomes −∞", **style)
    right = drawing.matrix(400, 48, weights, color=BLUE, largest=1, title="weights: each row adds up to 1", **style)
    drawing.arrow(left.right, right.left)
    drawing.text((left.x + left.width + right.x) / 2, left.right[1] - 8, "softmax", size=12)
    explained = "row: who looks · column: who is looked at"
    drawing.text(70, left.bottom[1] + 20, explained, anchor="start", size=11, faint=True)
    return drawing


def positions(words: Sequence[str], x, table) -> Diagram:
    """Draw the sum of token vectors (T, C) and the position table's rows (T, C)."""
    x, table, n = _rows(x), _rows(table), len(words)
    total = (np.asarray(x) + np.asarray(table)).tolist()
    drawing = Diagram(680, 44 + CELL_HEIGHT * n, f"Token vectors plus position vectors give {_said(total, 1)}.")
    tokens = drawing.matrix(64, 30, x, row_labels=words, largest=1.5, title="token vectors")
    places = drawing.matrix(284, 30, table, row_labels=range(n), color=GREEN, largest=1.5, title="position vectors")
    sums = drawing.matrix(510, 30, total, row_labels=words, largest=1.5, title="what attention is given")
    drawing.plus((tokens.x + tokens.width + places.x) / 2 - 14, tokens.left[1])
    drawing.text((places.x + places.width + sums.x) / 2 - 22, tokens.left[1] + 6, "=", bold=True, size=17)
    return drawing


def heads(words: Sequence[str], place: int, q, k, v, weights, outputs) -> Diagram:
    """Draw one query cut into heads of one number each, each with weights of its own, and the heads joined again.

    q, k, v: (T, H). weights: (H, T), of the query at `place`. outputs: (H,).
    """
    q, k, v, weights, outputs = map(_rows, (q, k, v, weights, outputs))
    said = "; ".join(
        f"head {h} {_said(w)} gives {o:.2f}" for h, (w, o) in enumerate(zip(weights, outputs, strict=True))
    )
    n, n_head = len(words), len(weights)
    drawing = Diagram(724, 96 + 92 * n_head, f"Weights of the query of {words[place]}: {said}.")
    columns = (76, 150, 400, 660)
    for x, name in zip(columns, ("query", "keys", "weights", "out"), strict=True):
        wide = CELL_WIDTH if name in ("query", "out") else CELL_WIDTH * n
        drawing.text(x + wide / 2, 16, name, bold=True, size=12)
    ends = []
    for h, color in zip(range(n_head), HEAD_COLORS, strict=False):
        y = 48 + 92 * h
        drawing.text(12, y + 18, f"head {h}", anchor="start", bold=True, color=color)
        asked = drawing.vector(columns[0], y, [q[place][h]], digits=2, color=color, largest=3)
        met = drawing.matrix(columns[1], y, [[row[h] for row in k]], color=color, column_labels=words, largest=3)
        shares = drawing.matrix(columns[2], y, [weights[h]], digits=2, color=color, column_labels=words, largest=1)
        out = drawing.vector(columns[3], y, [outputs[h]], digits=2, color=color, largest=2)
        handed = drawing.matrix(columns[2], y + 30, [[row[h] for row in v]], color=PURPLE, largest=3)
        drawing.text(columns[2] - 8, y + 48, "values", anchor="end", size=11, faint=True)
        drawing.text((asked.x + asked.width + met.x) / 2, y + 18, "×", size=15)
        drawing.arrow(met.right, shares.left)
        drawing.arrow((handed.x + handed.width, y + 28), (out.x, y + 15), color=color)
        ends.append(out)
    low = 62 + 92 * n_head
    drawing.text(columns[2] + 74, low + 18, "joined: one vector again", anchor="end", bold=True)
    for h, color in zip(range(n_head), HEAD_COLORS, strict=False):
        drawing.vector(columns[2] + 84 + CELL_WIDTH * h, low, [outputs[h]], digits=2, color=color, largest=2)
    drawing.line((ends[-1].bottom[0], ends[-1].y + 30), (ends[-1].bottom[0], low + 13), opacity=0.4)
    drawing.arrow((ends[-1].bottom[0], low + 13), (columns[2] + 90 + CELL_WIDTH * n_head, low + 13))
    return drawing


def cutting(words: Sequence[str], q, n_head: int) -> Diagram:
    """Draw which numbers of q (T, C) each head gets: by its columns, and wrongly by the order in memory."""
    q, n = _rows(q), len(words)
    n_embd = len(q[0])
    drawing = Diagram(
        680,
        66 + CELL_HEIGHT * n + 26,
        "A head should hold its columns of every token; by the order of "
        "memory it holds whole tokens, the first head those that come first.",
    )
    ways = (
        (76, "view, then transpose: right", lambda t, c: c * n_head // n_embd),
        (420, "view alone: wrong", lambda t, c: (t * n_embd + c) * n_head // (n * n_embd)),
    )
    for x, title, head_of in ways:
        drawing.text(x + CELL_WIDTH * n_embd / 2, 20, title, bold=True, size=12)
        for t, word in enumerate(words):
            y = 34 + CELL_HEIGHT * t
            drawing.text(x - 8, y + 18, word, anchor="end", mono=True)
            for c, value in enumerate(q[t]):
                cell = Box(x + CELL_WIDTH * c, y, CELL_WIDTH, CELL_HEIGHT)
                drawing.rectangle(cell, HEAD_COLORS[head_of(t, c)], fill=0.42, round=0)
                drawing.text(cell.bottom[0], y + 18, f"{value:.1f}".replace("-", "−"), size=12, mono=True)
    for h in range(n_head):
        key = Box(76 + 110 * h, 44 + CELL_HEIGHT * n, CELL_WIDTH, CELL_HEIGHT)
        drawing.rectangle(key, HEAD_COLORS[h], fill=0.42, round=2)
        drawing.text(key.x + key.width + 8, key.y + 18, f"head {h}", anchor="start", size=12)
    return drawing


def cache(words: Sequence[str], query, keys, values, weights) -> Diagram:
    """Draw one step with a cache: the keys and values kept, those of the last token, and its one query."""
    query, keys, values, weights = map(_rows, (query, keys, values, weights))
    n, size = len(words), len(keys[0])
    output = (np.asarray(weights) @ np.asarray(values)).tolist()
    said = f"weights {_said(weights)}, output {_said(output)}"
    drawing = Diagram(724, 100 + CELL_HEIGHT * n, f"{words[-1]} looks at {n - 1} kept keys and its own: {said}.")
    kept = CELL_HEIGHT * (n - 1)
    top = 40
    new = top + kept + 12
    for x, name, rows, color in ((176, "keys", keys, GREEN), (452, "values", values, PURPLE)):
        old = drawing.matrix(x, top, rows[:-1], color=color, largest=4, row_labels=words[:-1] if name == "keys" else ())
        drawing.rectangle(Box(old.x - 4, old.y - 4, old.width + 8, old.height + 8), dashed=True)
        drawing.text(x + CELL_WIDTH * size / 2, 22, f"{name}: kept", bold=True, size=12, color=color)
        drawing.vector(x, new, rows[-1], color=color, largest=4)
    drawing.token(8, new, words[-1], color=ORANGE)
    drawing.text(40, new + 44, "new token", size=11, faint=True)
    asked = drawing.vector(176, new + 34, query, color=BLUE, largest=4)
    drawing.text(166, asked.y + 18, "query", anchor="end", size=12, color=BLUE, bold=True)
    drawing.text(166, new + 18, "key", anchor="end", size=12, color=GREEN, bold=True)
    for s in range(n):
        y = top + CELL_HEIGHT * s if s < n - 1 else new
        share = drawing.vector(358, y, [weights[s]], digits=2, color=BLUE, largest=1)
    drawing.text(380, 22, "weights", bold=True, size=12, color=BLUE)
    drawing.arrow((asked.x + asked.width, asked.y + 13), (share.x + 22, new + CELL_HEIGHT + 2), color=BLUE)
    drawing.text(640, new + 18, "← new row", size=12, color=ORANGE)
    result = drawing.vector(452, new + 34, output, digits=2, color=PURPLE, largest=2)
    drawing.text(result.right[0] + 34, result.y + 18, "output", bold=True, size=12, color=PURPLE)
    return drawing


def one_layer(text: str, n_embd: int, n_head: int, vocab_size: int) -> Diagram:
    """Draw the model of the last section: embeddings, positions, one attention layer, LM head."""
    described = f"Characters of {text!r} become {n_embd} numbers each, positions are added, one attention layer"
    described += f" of {n_head} heads mixes them, and the LM head gives {vocab_size} logits for each."
    drawing = Diagram(680, 250, described)
    boxes = {"wte": f"{vocab_size} × {n_embd}", "attention": f"{n_head} heads", "LM head": f"{n_embd} × {vocab_size}"}
    y, width = 100, 116
    x = 108
    ends = []
    for name, note in boxes.items():
        ends.append(
            drawing.box(x, y, width, 46, name, color=BLUE if name == "attention" else "currentColor", note=note)
        )
        x += 196
    for t, character in enumerate(text):
        tile = drawing.token(12, 34 + 36 * t, character, width=40)
        drawing.arrow(tile.right, ends[0].left)
    sum_ = drawing.plus((ends[0].right[0] + ends[1].x) / 2, y + 23)
    drawing.arrow(ends[0].right, sum_.left)
    drawing.arrow(sum_.right, ends[1].left)
    places = drawing.box(sum_.x - 38, 190, 98, 42, "wpe", note="one row a place")
    drawing.arrow(places.top, sum_.bottom)
    drawing.arrow(ends[1].right, ends[2].left)
    drawing.text((ends[1].right[0] + ends[2].x) / 2, y + 12, "(B, T, C)", size=11, faint=True)
    drawing.arrow(ends[2].right, (660, y + 23))
    drawing.text(ends[2].bottom[0], y + 70, "logits of the next character,", size=12)
    drawing.text(ends[2].bottom[0], y + 86, "at every place at once", size=12)
    drawing.text(ends[1].bottom[0], y - 14, "here alone tokens meet", size=12, color=BLUE)
    return drawing
