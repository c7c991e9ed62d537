"""`relay completion`: what a shell completes, made of the parsers themselves, so that it never lags behind them.

A word is completed by where it stands: after `relay key`, the actions of `key`; after `relay serve --`, the flags of
`serve`. What a flag takes is the shell's own to complete, files for the two that name one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SHELLS = ("bash", "zsh", "fish")
ADVICE = {
    "bash": 'eval "$(relay completion bash)"         # in ~/.bashrc',
    "zsh": 'eval "$(relay completion zsh)"          # in ~/.zshrc, after compinit',
    "fish": "relay completion fish | source          # in ~/.config/fish/config.fish",
}
_FILES = ("--config", "--data-dir")

_BASH = """\
# Made by: relay completion {name}
{ahead}_relay() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} at=relay word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$at $word" in
            {commands}) at="$at $word" ;;
        esac
    done
    case "$prev" in
        {files}) COMPREPLY=($(compgen -f -- "$cur")); return ;;
    esac
    case "$at" in
{cases}
    esac
}}
complete -o filenames -F _relay relay
"""


def script(shell: str, words: Mapping[str, Sequence[str]]) -> str:
    """What the shell is to read. `words` are what may follow each command: flags and commands after `relay key`."""
    return _fish(words) if shell == "fish" else _bash(shell, words)


def _bash(shell: str, words: Mapping[str, Sequence[str]]) -> str:
    cases = "\n".join(
        f'        "{at}") COMPREPLY=($(compgen -W "{" ".join(follow)}" -- "$cur")) ;;' for at, follow in words.items()
    )
    return _BASH.format(
        name=shell,
        ahead="autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "",
        commands="|".join(f'"{at}"' for at in words if at != "relay"),
        files="|".join(_FILES),
        cases=cases,
    )


def _fish(words: Mapping[str, Sequence[str]]) -> str:
    """fish has no place in a command of its own: a condition names the words before, and those that have not come."""
    lines = ["# Made by: relay completion fish", "complete -c relay -f"]
    for at, follow in words.items():
        before = at.split()[1:]
        commands = [word for word in follow if not word.startswith("-")]
        condition = "; and ".join(
            [*(f"__fish_seen_subcommand_from {word}" for word in before)]
            + ([f"not __fish_seen_subcommand_from {' '.join(commands)}"] if commands else [])
        )
        for word in follow:
            what = f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c relay -n '{condition or 'true'}' {what}{' -r -F' if word in _FILES else ''}")
    return "\n".join(lines) + "\n"
