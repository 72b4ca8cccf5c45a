"""Content-compliance tasks: texts of a platform that may stay, or break its rules.

cold("data/cold", "race")            data/cold/race/{train,val,test}.tsv
tencent3("data/tencent3", "video")   data/tencent3/video/{train,validation,test}.jsonl

The MoE-CL paper (arXiv 2509.18133) shows its method on Tencent3, three such tasks of Tencent,
whose data are not public. `tencent3` reads files of that form; `cold` is a public stand-in.
"""

from pathlib import Path

from moecl_jax.data.task import Task
from moecl_jax.errors import UserError

LANGUAGES = ("zh", "en")
"""Languages of the templates and labels: Chinese, English."""

LABELS: dict[str, tuple[str, str]] = {
    "zh": ("合规", "违规"),
    "en": ("compliant", "violating"),
}
"""What class 0 (the text may stay) and class 1 (it breaks the rules) are called."""

TENCENT3: dict[str, tuple[str, ...]] = {
    "video": ("title", "parent_comment", "reply"),
    "social": ("post_title", "parent_comment", "reply"),
    "official_account": ("article_title", "comment"),
}
"""The fields of a record of each task, in the order in which the model reads them."""

_FIELDS: dict[str, dict[str, str]] = {
    "zh": {
        "title": "视频标题",
        "post_title": "帖子标题",
        "article_title": "文章标题",
        "parent_comment": "上级评论",
        "reply": "回复",
        "comment": "评论",
    },
    "en": {
        "title": "Title of the video",
        "post_title": "Title of the post",
        "article_title": "Title of the article",
        "parent_comment": "Comment replied to",
        "reply": "Reply",
        "comment": "Comment",
    },
}

_QUESTIONS: dict[str, dict[str, str]] = {
    "zh": {
        "video": "{text}\n视频审核结论：",
        "social": "{text}\n社区审核结论：",
        "official_account": "{text}\n公众号审核结论：",
        "gender": "关于性别的评论：{text}\n审核结论：",
        "race": "关于种族的评论：{text}\n审核意见：",
        "region": "关于地域的评论：{text}\n审核判断：",
    },
    "en": {
        "video": "{text}\nDecision on the video's comment:",
        "social": "{text}\nDecision on the reply to the post:",
        "official_account": "{text}\nDecision on the comment on the article:",
        "gender": "Comment about gender: {text}\nOffensive or compliant:",
        "race": "Comment about race: {text}\nVerdict of the moderator:",
        "region": "Comment about a region: {text}\nDecision on the content:",
    },
}

COLD = ("gender", "race", "region")
"""Tasks of COLDataset (Deng et al. 2022, arXiv 2201.06025) by what a comment is about."""


def tencent3(folder: str | Path, name: str, language: str = "zh") -> Task:
    """A task of the form of Tencent3 in local files: folder/name/{train,validation,test}.jsonl.

    A line is an object with the fields that `TENCENT3` names, an empty text where there is none
    (a comment that replies to no other), and "label": 1 if the text breaks the rules, else 0.

    Args:
        folder: holds a folder for each task.
        name: a key of `TENCENT3`.
        language: language of the template and the labels, "zh" or "en".

    Raises:
        UserError: there is no such task or language.
    """
    _check(name, tuple(TENCENT3), "Tencent3", language)
    titles = _FIELDS[language]
    colon = "：" if language == "zh" else ": "
    return Task(
        name=name,
        source="jsonl",
        path=str(Path(folder) / name),
        train="train.jsonl",
        validation="validation.jsonl",
        test="test.jsonl",
        text_fields=TENCENT3[name],
        text_format="\n".join(f"{titles[field]}{colon}{{{field}}}" for field in TENCENT3[name]),
        labels=LABELS[language],
        raw_labels=(0, 1),
        template=_QUESTIONS[language][name],
    )


def cold(folder: str | Path, name: str, language: str = "en") -> Task:
    """A task of COLDataset in local files: folder/name/{train,val,test}.tsv.

    Chinese comments in a column "comment"; "label" is 1 (offensive) or 0 (compliant).

    Args:
        folder: holds a folder for each task.
        name: "gender", "race" or "region".
        language: language of the template and the labels, "zh" or "en".

    Raises:
        UserError: there is no such task or language.
    """
    _check(name, COLD, "COLD", language)
    return Task(
        name=name,
        source="tsv",
        path=str(Path(folder) / name),
        train="train.tsv",
        validation="val.tsv",
        test="test.tsv",
        text_fields=("comment",),
        labels=("compliant", "offensive") if language == "en" else LABELS["zh"],
        raw_labels=(0, 1),
        template=_QUESTIONS[language][name],
    )


def _check(name: str, names: tuple[str, ...], source: str, language: str) -> None:
    if name not in names:
        raise UserError(f"no {source} task '{name}'; there are {', '.join(names)}.")
    if language not in LANGUAGES:
        raise UserError(f"no template in '{language}'; there are {' and '.join(LANGUAGES)}.")
