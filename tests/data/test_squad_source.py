# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Questions in the JSON of SQuAD."""

import json

import pytest

from tl_jax.config import Data
from tl_jax.core.errors import UserError
from tl_jax.data.sources import squad

OPTIONS = squad.Config()


def written(folder, *questions, context="The cat sat on the mat."):
    """A file of one paragraph."""
    file = folder / "questions.json"
    file.write_text(json.dumps({"data": [{"title": "Cats", "paragraphs": [{"context": context, "qas": questions}]}]}))
    return file


def question(name="q1", answer="cat", start=4, **fields):
    """A question with an answer, right unless told otherwise."""
    return {"id": name, "question": "Who?", "answers": [{"text": answer, "answer_start": start}], **fields}


def test_xquad_is_read_whole(shared_data):
    """As many questions as its facts say, each answer where it is said to be, articles as groups."""
    found = squad.read(Data(path=str(shared_data / "text" / "xquad_en"), group="title"), OPTIONS)
    assert {split: len(examples) for split, examples in found.items()} == {"train": 816, "validation": 374}
    examples = found["validation"]
    for i, (start, end) in enumerate(examples.labels.tolist()):
        assert examples[i]["context"][start:end] == examples[i]["answers"][0]
    assert len(set(examples.groups)) == 16 and not set(examples.groups) & set(found["train"].groups)


def test_a_question_may_have_no_answer(tmp_path):
    """As in SQuAD 2: its span is -1, -1."""
    file = written(tmp_path, question(), {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True})
    found = squad.read(Data(path=str(file)), OPTIONS)["all"]
    assert found.labels.tolist() == [[4, 7], [-1, -1]] and found[1]["answers"] == []


def test_questions_for_prediction_need_no_answers(tmp_path):
    """And bring none along."""
    found = squad.read_unlabelled(written(tmp_path, {"id": "q1", "question": "Who?"}), OPTIONS)
    assert found.labels is None and found[0]["context"].startswith("The cat") and "answers" not in found[0]


@pytest.mark.parametrize(
    "questions, what",
    [
        ([question(start=5)], "q1 has answer 'cat' at 5, where the text has 'at '"),
        ([question(answer="mat", start=900)], "q1 has answer 'mat' at 900, where the text has ''"),
        ([question(answer="cat", start=-19)], "q1 has answer 'cat' at -19"),
        ([question(answer="", start=0)], "q1 has answer '' at 0"),
        ([question(), question()], "has ids twice: q1"),
        ([], "holds no question"),
        ([{"id": "q1"}], "is no JSON of SQuAD .*question"),
    ],
)
def test_bad_files_are_refused(tmp_path, questions, what):
    """With the question's id."""
    with pytest.raises(UserError, match=what):
        squad.read(Data(path=str(written(tmp_path, *questions))), OPTIONS)


def test_wrong_places_are_refused(tmp_path):
    """No JSON, no train.json, a group that questions do not have."""
    (tmp_path / "dev.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON of SQuAD"):
        squad.read(Data(path=str(tmp_path / "dev.json")), OPTIONS)
    with pytest.raises(UserError, match="holds no train.json"):
        squad.read(Data(path=str(tmp_path)), OPTIONS)
    with pytest.raises(UserError, match="must be title"):
        squad.read(Data(path=str(tmp_path), group="speaker"), OPTIONS)
