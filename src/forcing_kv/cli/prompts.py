"""`forcing-kv prompts`: what can be said to the embedded model."""

import click


@click.command("prompts")
@click.option("-n", "--num", default=8, show_default=True, type=click.IntRange(min=1), help="How many prompts.")
@click.option("--seed", default=0, show_default=True, help="Which ones.")
def command(num: int, seed: int) -> None:
    """Print valid prompts for the embedded model 'tiny', one per line, and its grammar.

    The grammar goes to stderr, so that the prompts alone can be piped into a prompt file.
    """
    from forcing_kv.tiny.prompts import grammar, random_prompts

    for prompt in random_prompts(num, seed):
        click.echo(prompt)
    click.echo(f"\nThe grammar:\n\n{grammar()}", err=True)
