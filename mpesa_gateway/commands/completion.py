"""``mpesa-gateway completion``: shell completion."""

import rich_click as click
from click.shell_completion import get_completion_class

from mpesa_gateway.commands.session import CommandFailed

VARIABLE = "_MPESA_GATEWAY_COMPLETE"
"""Set by a shell that requests completions."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL, to be loaded when the shell starts.

    bash: `eval "$(mpesa-gateway completion bash)"` in ~/.bashrc; zsh: the same with zsh in ~/.zshrc; fish: write it to
    ~/.config/fish/completions/mpesa-gateway.fish.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise CommandFailed(f"no completion for {shell}")
    click.echo(kind(context.find_root().command, {}, "mpesa-gateway", VARIABLE).source())
