"""`forcing-kv models`."""

from click.testing import CliRunner

from forcing_kv.cli import cli


def test_the_embedded_model_is_there():
    result = CliRunner().invoke(cli, ["models"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("tiny  ")
    for part in ("on this machine", "Apache-2.0", "MB of weights", "96x64", "forcing-kv"):
        assert part in result.stdout
