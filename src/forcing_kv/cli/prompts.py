"""`forcing-kv prompts`: what can be said to the embedded model."""

import click


@click.command("prompts")
@click.option("-n", "--num", default=8, show_default=True, type=click.IntRange(min=1), help="How many prompts.")
@click.option("--seed", default=0, show_default=True, help="Which ones; the same seed prints the same prompts.")
@click.option(
    "--memory",
    is_flag=True,
    help="Scenes that need memory, their objects unnamed: only the frames from before tell what comes back.",
)
def command(num: int, seed: int, memory: bool) -> None:
    """Print valid prompts for the embedded model 'tiny', one per line, and its grammar.

    The grammar goes to stderr, so that the prompts alone can be piped into a prompt file:

    \b
      forcing-kv prompts -n 20 > prompts.txt
      forcing-kv generate --prompt-file prompts.txt -o videos
      forcing-kv prompts --memory    # an object passes behind a pillar, leaves and returns, or two cross
    """
    from forcing_kv.tiny.prompts import grammar, random_prompts

    for prompt in random_prompts(num, seed, memory=memory):
        click.echo(prompt)
    click.echo(f"\nThe grammar:\n\n{grammar()}", err=True)
