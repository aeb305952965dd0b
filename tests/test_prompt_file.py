"""Good files give one schedule per line; bad lines are named by number."""

import pytest

from forcing_kv.errors import PromptError
from forcing_kv.prompt_file import read_prompt_file, read_single_prompts
from forcing_kv.prompt_schedule import ScheduledPrompt


def write(tmp_path, text: str | bytes):
    path = tmp_path / "prompts.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_plain_and_json_lines(tmp_path):
    schedule = '{"prompts": [{"at_seconds": 0, "text": "a circle"}, {"at_seconds": 2.5, "text": "a square"}]}'
    path = write(tmp_path, f"a red circle\n  ein grüner Fuchs  \r\n{schedule}\n\n")
    assert read_prompt_file(path) == [
        (ScheduledPrompt(text="a red circle"),),
        (ScheduledPrompt(text="ein grüner Fuchs"),),
        (ScheduledPrompt(at_seconds=0, text="a circle"), ScheduledPrompt(at_seconds=2.5, text="a square")),
    ]


def test_byte_order_mark_is_no_part_of_the_prompt(tmp_path):
    assert read_prompt_file(write(tmp_path, b"\xef\xbb\xbfa circle\n"))[0][0].text == "a circle"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line is empty"),
        ("   ", "line is empty"),
        ('{"prompts": [', "no valid JSON: .* at column"),
        ('{"prompts": []}', "JSON must be"),
        ('{"prompt": "a circle"}', "JSON must be"),
        ('{"prompts": ["a circle"]}', '"a circle" is no prompt'),
        ('{"prompts": [{"text": "a", "at": 3}]}', "is no prompt"),
        ('{"prompts": [{"at_seconds": "soon", "text": "a"}]}', 'at_seconds is "soon"'),
        ('{"prompts": [{"at_seconds": true, "text": "a"}]}', "at_seconds is true"),
        ('{"prompts": [{"at_seconds": 0, "text": 7}]}', "text is 7"),
        ('{"prompts": [{"at_seconds": 0, "text": " "}]}', "prompt is empty"),
        ('{"prompts": [{"at_seconds": 0}]}', "prompt is empty"),
        ('{"prompts": [{"at_seconds": -1, "text": "a"}]}', "cannot begin at -1"),
        ('{"prompts": [{"at_seconds": NaN, "text": "a"}]}', "cannot begin at nan"),
        ('{"prompts": [{"at_seconds": 1, "text": "a"}]}', "begin with a prompt at 0 seconds"),
        ('{"prompts": [{"text": "a"}, {"text": "b"}]}', "same time"),
    ],
)
def test_bad_line_is_named_by_its_number(tmp_path, line, message):
    path = write(tmp_path, f"a circle\n{line}\na square\n")
    with pytest.raises(PromptError, match=rf"prompts\.txt, line 2: .*{message}"):
        read_prompt_file(path)


def test_bad_files(tmp_path):
    with pytest.raises(PromptError, match="cannot be read: No such file"):
        read_prompt_file(tmp_path / "missing.txt")
    with pytest.raises(PromptError, match="is empty: write one prompt per line"):
        read_prompt_file(write(tmp_path, "\n \n"))
    with pytest.raises(PromptError, match="not UTF-8 text"):
        read_prompt_file(write(tmp_path, b"a circle\n\xff\xfe"))


def test_single_prompts_do_not_change(tmp_path):
    path = write(tmp_path, 'a circle\n{"prompts": [{"text": "a circle"}, {"at_seconds": 1, "text": "a square"}]}\n')
    with pytest.raises(PromptError, match=r"prompts\.txt, line 2: a comparison takes one prompt per line"):
        read_single_prompts(path, what="a comparison")
    path = write(tmp_path, "a circle\n" + "very " * 1000 + "long\n")
    with pytest.raises(PromptError, match=r"line 2: a prompt of 5,004 characters is too long: write at most 4,000"):
        read_single_prompts(path, what="a comparison")
    path = write(tmp_path, 'a circle\n{"prompts": [{"text": "a square"}]}\n')
    assert read_single_prompts(path, what="a comparison") == ["a circle", "a square"]
