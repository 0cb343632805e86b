"""``mpesa-gateway completion``: lets a shell complete commands and options."""

import rich_click as click
from click.shell_completion import get_completion_class

from mpesa_gateway.commands.session import CommandFailed

VARIABLE = "_MPESA_GATEWAY_COMPLETE"
"""What a shell sets to ask for words; click answers before any command runs."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete `mpesa-gateway`: put it where your shell reads it at its start.

    bash: `eval "$(mpesa-gateway completion bash)"` in ~/.bashrc; zsh likewise in ~/.zshrc; fish: into
    ~/.config/fish/completions/mpesa-gateway.fish.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise CommandFailed(f"nothing is known of {shell}")
    click.echo(kind(context.find_root().command, {}, "mpesa-gateway", VARIABLE).source())
