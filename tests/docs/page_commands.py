"""What a test does with each command of the README and the tutorials."""

import dataclasses
import re

# Appended to a training: few examples and one epoch.
SMALL = (
    "--config.data.train_examples=8 --config.data.validation_examples=4 "
    "--config.data.test_examples=4 --config.epochs=1"
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is done with commands that match.

    Attributes:
      pattern: a regular expression that a whole command matches.
      replacement: what is run in its place, as of `re.sub`; None where it is not run here.
      elsewhere: for a command that is not run here, the test ("FILE::TEST") or script that does.
    """

    pattern: str
    replacement: str | None = None
    elsewhere: str = ""


# The first rule that matches holds.
RULES = (
    Rule(r"bash launch/demo\.sh", elsewhere="tests/training/test_quickstart_stream.py::"),
    Rule(r"bash launch/test\.sh", elsewhere=".ci/run"),
    Rule(r"pip install .*", elsewhere="launch/setup.sh"),
    Rule(r"moecl .*\bcomments\b.*", elsewhere="tests/config/test_new.py::"),
    Rule(
        r"(moecl train --config=configs/quickstart\.py .*)",
        rf"""\1 {SMALL} --config.tasks="('sms_spam', 'trec')" """,
    ),
    Rule(
        r"(moecl train --config=configs/free_form\.py .*)",
        rf"""\1 {SMALL} --config.tasks="('slang',)" """,
    ),
    Rule(
        r"(moecl sweep --config=configs/quickstart\.py .*)",
        rf"""\1 {SMALL} --config.tasks="('sms_spam', 'trec')" --seeds=0 """
        r"--methods=sequential_lora,moe_cl",
    ),
    Rule(r"(moecl train --config=runs/.*)", r"\1 --config.epochs=1"),
    # The other format of the original needs torch.
    Rule(r"(moecl export .*)--format=official(.*)", r"\1--format=safetensors\2"),
    Rule(r"(moecl (?:evaluate|predict|generate|report|advise|convert|export) .*)", r"\1"),
    Rule(r"(export PYTHONPATH=.*)", r"\1:$PYTHONPATH"),
    Rule(r"((?:echo|cat) .*)", r"\1"),
)


def rule_of(command: str) -> Rule | None:
    """The rule that holds for a command; None where there is none."""
    return next((rule for rule in RULES if re.fullmatch(rule.pattern, command)), None)


def shrink(command: str) -> str | None:
    """What is run in place of a command; None where it is run elsewhere."""
    rule = rule_of(command)
    assert rule is not None, f"no rule in {__file__} says what is done with: {command}"
    if rule.replacement is None:
        return None
    return re.fullmatch(rule.pattern, command).expand(rule.replacement)


def shrink_python(code: str) -> str:
    """A block with one epoch for several."""
    return re.sub(r"""(epochs=|"epochs": )\d+""", r"\g<1>1", code)
