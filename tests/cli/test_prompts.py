"""`forcing-kv prompts`."""

import pytest
from click.testing import CliRunner

from forcing_kv.cli import cli
from forcing_kv.prompt_file import read_prompt_file
from forcing_kv.tiny.prompts import grammar, parse, random_prompts


def run(*arguments):
    result = CliRunner().invoke(cli, ["prompts", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines(), result.stderr


def test_prompts_go_to_stdout_and_the_grammar_to_stderr():
    lines, grammar_text = run("-n", "3", "--seed", "1")
    assert lines == random_prompts(3, 1)
    assert grammar() in grammar_text
    assert run()[0] == random_prompts(8, 0)
    assert run("--seed", "2")[0] != random_prompts(8, 0)


def test_every_prompt_is_one_that_the_model_understands_whole():
    lines, _ = run("--num", "60")
    wishes = [parse(line) for line in lines]
    assert all(wish.names_things and not wish.scene.needs_memory for wish in wishes)
    assert len({wish.scene for wish in wishes}) == 60


def test_memory_scenes_leave_the_objects_unnamed():
    lines, _ = run("-n", "40", "--memory", "--seed", "5")
    wishes = [parse(line) for line in lines]
    assert all(wish.scene.needs_memory and not wish.names_things for wish in wishes)
    assert {wish.scene.motion for wish in wishes} == {"passing behind a pillar", "leaving and returning", "crossing"}
    assert all(line.startswith(("an object ", "two objects crossing")) for line in lines)


def test_what_is_printed_is_a_prompt_file(tmp_path):
    lines, _ = run("-n", "5", "--memory")
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(lines) + "\n")
    assert [prompts[0].text for prompts in read_prompt_file(path)] == lines


@pytest.mark.parametrize("num", ["0", "-3", "many"])
def test_other_numbers_are_refused(num):
    result = CliRunner().invoke(cli, ["prompts", "--num", num])
    assert result.exit_code == 2
    assert num in result.stderr


def test_help_teaches():
    result = CliRunner().invoke(cli, ["prompts", "--help"])
    assert "forcing-kv prompts -n 20 > prompts.txt" in result.stdout
    assert "--memory" in result.stdout
    assert "behind a pillar" in result.stdout
