"""Chat templates that print the day, or anything else that changes."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import TEMPLATE_DAY, prompt_format
from moecl_jax.errors import UserError
from moecl_jax.testing import write_model

DAY = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
TASK = Task("toy", source="none", labels=("yes", "no"), chat=True, template="{text} :")


@pytest.fixture
def tokenizer(tmp_path: Any) -> Any:
    return AutoTokenizer.from_pretrained(write_model(tmp_path))


def test_the_day_of_a_template_is_always_the_same(tokenizer: Any) -> None:
    tokenizer.chat_template = DAY
    assert prompt_format(TASK, tokenizer).template == "01 Jan 2025 {text} :"


@pytest.mark.parametrize("directive", ["%Y-%m-%d", "%A, %B %d %H:%M:%S", "100%% %j", "%d/%m/%y"])
def test_all_directives_are_those_of_that_day(tokenizer: Any, directive: str) -> None:
    call = f"strftime_now({directive!r})"
    tokenizer.chat_template = (
        "{% if strftime_now is defined %}{% set day = " + call + " %}{% endif %}\n"
        "{% macro turn(text) %}{{ day }} {{ " + call + " }} {{ text }}{% endmacro %}"
        "{{ turn(messages[0].content) }}"
    )
    day = TEMPLATE_DAY.strftime(directive)
    assert prompt_format(TASK, tokenizer).template == f"{day} {day} {{text}} :"


def test_a_template_without_a_clock_is_as_it_was(tokenizer: Any) -> None:
    for begin in ("", "\n", "  {% set a = 1 %}", "x\n"):
        tokenizer.chat_template = begin + "{{ messages[0].content }}"
        turns = [{"role": "user", "content": "{text} :"}]
        expected = tokenizer.apply_chat_template(turns, tokenize=False)
        assert prompt_format(TASK, tokenizer).template == expected
        if begin:
            tokenizer.chat_template = begin + DAY
            expected = tokenizer.apply_chat_template(
                turns, tokenize=False, chat_template=begin + "01 Jan 2025 {{ messages[0].content }}"
            )
            assert prompt_format(TASK, tokenizer).template == expected


def test_a_template_that_changes_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ range(99999) | random }} {{ messages[0].content }}"
    with pytest.raises(UserError, match=r"task 'toy': .* writes another prompt each time: "):
        prompt_format(TASK, tokenizer)
