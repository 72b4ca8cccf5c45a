"""The mechanism that runs a page's blocks, on pages of a few lines."""

from fenced import Block, blocks, commands, run

PAGE = """\
# A page

```python
first = 1
```

````text
```python
not_run()
```
````

```bash
echo one \\
    two   # a remark
# a comment
echo "# three" > file
```

```python
second = first + 1
print(open("file").read(), second)
```
"""


def test_blocks_are_found_with_their_lines():
    found = blocks(PAGE)
    assert [(block.language, block.line) for block in found] == [
        ("python", 3),
        ("text", 7),
        ("bash", 13),
        ("python", 20),
    ]
    assert found[0].text == "first = 1"


def test_commands_are_joined_and_without_comments():
    block = next(block for block in blocks(PAGE) if block.language == "bash")
    assert commands(block)[0] == "echo one two"
    assert len(commands(block)) == 2


def test_a_console_block_has_commands_and_what_they_print():
    block = Block("console", "$ moecl train \\\n    --seed=1\nacc 90\n$ ls", 1)
    assert commands(block) == ["moecl train --seed=1", "ls"]


def test_python_blocks_share_a_namespace_and_commands_run_between_them(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace("# three", "three"))
    done = run(page, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["one", "two", "three", "2"]


def test_an_error_is_reported_with_the_line_of_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nvalue = 1\nvalue / 0\n```\n")
    done = run(page, tmp_path)
    assert done.returncode == 1
    assert f'File "{page}", line 5' in done.stderr


def test_a_failed_command_is_named_and_ends_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nfalse\necho later\n```\n\n```bash\necho last\n```\n")
    done = run(page, tmp_path)
    assert done.returncode == 1
    assert "block after line 1: a command failed" in done.stderr
    assert done.stdout == ""


def test_blocks_are_made_small_before_they_run(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1000)\n```\n\n```bash\nsleep 1000\necho done\n```\n")
    done = run(
        page,
        tmp_path,
        shrink_python=lambda code: code.replace("1000", "1"),
        shrink_command=lambda command: None if command.startswith("sleep") else command,
    )
    assert done.stdout.split() == ["1", "done"], done.stderr
