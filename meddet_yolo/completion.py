"""Completion of the `meddet` command in bash, zsh and fish, made from the same tables as its help.

A script holds all words itself, so that pressing Tab starts no Python.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Mapping
from functools import cache

from meddet_yolo.arguments import THEIR_COMMANDS
from meddet_yolo.commands import MODES, OWN_COMMANDS, Key, groups_of, keys_of, model_names, shipped
from meddet_yolo.help import first_sentence

__all__ = ["SHELLS", "completion"]

_WITH_KEYS = (*MODES, "track", *OWN_COMMANDS)
_WORDS = {  # what follows the other commands
    "help": (*_WITH_KEYS, "cfg"),
    "completion": ("bash", "zsh", "fish"),
    "settings": ("reset",),
    "version": (),
    **dict.fromkeys(THEIR_COMMANDS, ()),
}


def completion(shell: str) -> str:
    """Return the script that completes commands, keys and values of `meddet`.

    Args:
        shell: One of `SHELLS`.

    Raises:
        KeyError: If it is none of them.

    Examples:
        >>> completion("bash").splitlines()[0]
        '# Completion of meddet: source <(meddet completion bash)'
    """
    return SHELLS[shell]()


# What can be completed ------------------------------------------------------------------------------------------------

_Values = tuple[tuple[str, ...], bool]  # the words, and whether files may stand there too


def _commands() -> dict[str, str]:
    """Return the commands with what they do."""
    told = {command: _short(groups_of(command)[0].title) for command in _WITH_KEYS if command != "track"}
    return {**told, "track": "", **dict.fromkeys(_WORDS, "")}


@cache
def _keys() -> dict[str, dict[str, Key]]:
    """Return every key of our commands, those that one passes on included, and of the modes what their help shows."""
    shown = {command: {k.name: k for group in groups_of(command) for k in group.keys} for command in _WITH_KEYS}
    return {**shown, **{command: keys_of(command) for command in OWN_COMMANDS}}


def _told(keys: Mapping[str, Key]) -> dict[str, str]:
    return {name: _short(first_sentence(key)) for name, key in keys.items()}


def _short(text: str) -> str:
    return textwrap.shorten(text.replace("`", ""), 70, placeholder=" ...")


def _values() -> dict[_Values, list[str]]:
    """Return what can stand after `=`, each with the patterns `command:key` of where; `*` is any command."""
    models = tuple(model_names())
    by_key: dict[str, dict[str, _Values]] = {}
    for command, keys in _keys().items():
        for key in keys.values():
            by_key.setdefault(key.name, {})[command] = _values_of(key, models)
    found: dict[_Values, list[str]] = {}
    for name, commands in by_key.items():
        same = len(set(commands.values())) == 1
        for command, values in commands.items():
            found.setdefault(values, []).append(f"*:{name}" if same else f"{command}:{name}")
    return {values: list(dict.fromkeys(patterns)) for values, patterns in found.items() if values != ((), False)}


def _values_of(key: Key, models: tuple[str, ...]) -> _Values:
    if key.name in {"model", "student"}:
        return models, True
    if key.name in {"data", "cfg"}:
        return tuple(shipped("datasets" if key.name == "data" else "distill")), True
    if key.type == "bool" or isinstance(key.default, bool):
        return ("True", "False"), False
    is_text = not key.type or re.search(r"\b(str|Path|Any)\b", key.type) is not None
    is_place = re.search(r"\b(checkpoint|file|folder|path)\b", key.meaning, re.IGNORECASE) is not None
    return key.choices, is_text and (is_place or not key.choices)


# Scripts --------------------------------------------------------------------------------------------------------------


def _bash() -> str:
    values = _values().items()
    keys = [(command, f"words='{_spaced(f'{name}=' for name in names)}'") for command, names in _keys().items()]
    words = [(command, f"words='{_spaced(names)}'") for command, names in _WORDS.items() if names]
    return f"""\
# Completion of meddet: source <(meddet completion bash)
_meddet() {{
    local line=${{COMP_LINE:0:COMP_POINT}} command='' words='' files='' lead='' current part word given
    current=${{line##*[[:space:]]}}
    read -ra given <<< "${{line%"$current"}}"
    for word in "${{given[@]:1}}"; do
        case $word in {"|".join(_commands())}) command=$word; break ;; esac
    done
    COMPREPLY=()
    if [[ $current != *=* ]]; then
        case $command in
            '') words='{_spaced(_commands())}' ;;
{_arms(keys + words)}
        esac
        part=$current
    else
        part=${{current#*=}}
        part=${{part##*[\\[,]}}
        lead=${{current%"$part"}}
        word=${{current%%=*}}
        case $command:${{word#--}} in
{_arms(("|".join(where), f"words='{_spaced(what)}'{' files=1' if files else ''}") for (what, files), where in values)}
        esac
        if [[ $COMP_WORDBREAKS == *=* ]]; then lead=${{lead#*=}}; fi
    fi
    while IFS= read -r word; do COMPREPLY+=("$lead$word"); done < <(compgen -W "$words" -- "$part")
    if [[ $files ]]; then
        while IFS= read -r word; do
            printf -v given %q "$word"
            if [[ -d $word ]]; then given+=/; fi
            COMPREPLY+=("$lead$given")
        done < <(compgen -f -- "${{part/#\\~/$HOME}}")
    fi
    if [[ ${{COMPREPLY[0]}} == *[=/] ]]; then compopt -o nospace 2> /dev/null; fi
}}
complete -F _meddet meddet
"""


def _zsh() -> str:
    values = _values().items()
    keys = [(command, f"keys=({_described(_told(names))})") for command, names in _keys().items()]
    words = [(command, f"compadd -- {_spaced(names)}") for command, names in _WORDS.items() if names]
    return f"""\
#compdef meddet
# Completion of meddet: source <(meddet completion zsh), after compinit
_meddet() {{
    local command='' key word files=''
    local -a commands keys values
    for word in ${{words[2,CURRENT-1]}}; do
        case $word in {"|".join(_commands())}) command=$word; break ;; esac
    done
    if [[ $PREFIX != *=* ]]; then
        case $command in
            '') commands=({_described(_commands())}); _describe command commands; return ;;
{_arms(keys + words)}
        esac
        (( $#keys )) && _describe key keys -S =
    else
        key=${{PREFIX%%=*}}
        compset -P '*='
        compset -P '*[\\[,]'
        case $command:${{key#--}} in
{_arms(("|".join(where), f"values=({_spaced(what)}){' files=1' if files else ''}") for (what, files), where in values)}
        esac
        (( $#values )) && compadd -a values
        [[ -n $files ]] && _files
    fi
}}
if [[ $funcstack[1] == _meddet ]]; then _meddet "$@"; else compdef _meddet meddet; fi
"""


def _fish() -> str:
    values = [
        (_spaced(map(_quoted, where)), f"set values {_spaced(what)}" + ("; set files yes" if files else ""))
        for (what, files), where in _values().items()
    ]
    keys = [(command, f"printf '%s\\n' {_tabbed(_told(names), '=')}") for command, names in _keys().items()]
    words = [(command, f"printf '%s\\n' {_spaced(names)}") for command, names in _WORDS.items() if names]
    return f"""\
# Completion of meddet: meddet completion fish | source
function __meddet_complete
    set -l command ''
    set -l values
    set -l files no
    for word in (commandline -opc)[2..-1]
        if contains -- $word {_spaced(_commands())}
            set command $word
            break
        end
    end
    set -l current (commandline -ct)
    if not string match -q -- '*=*' $current
        switch "$command"
            case ''
                printf '%s\\n' {_tabbed(_commands())}
{_arms(keys + words, "            case {}; {}")}
        end
        return
    end
    set -l lead (string match -r -- '^[^=]*=(?:.*[\\[,])?' $current)
    set -l part (string sub -s (math (string length -- $lead) + 1) -- $current)
    switch "$command:"(string replace -r -- '^(?:--)?([^=]*)=.*' '$1' $current)
{_arms(values, "        case {}; {}")}
    end
    for value in $values
        printf '%s\\n' "$lead$value"
    end
    if test $files = yes
        for file in (__fish_complete_path "$part" | string split -f1 \\t)
            printf '%s\\n' "$lead$file"
        end
    end
end
complete -c meddet -f -a '(__meddet_complete)'
"""


def _arms(arms: Iterable[tuple[str, str]], form: str = "            {}) {} ;;") -> str:
    return "\n".join(form.format(*arm) for arm in arms)


def _spaced(words: Iterable[str]) -> str:
    return " ".join(words)


def _described(names: Mapping[str, str]) -> str:
    return _spaced(shlex.quote(f"{name}:{meaning}" if meaning else name) for name, meaning in names.items())


def _tabbed(names: Mapping[str, str], end: str = "") -> str:
    return _spaced(_quoted(f"{name}{end}\t{meaning}" if meaning else f"{name}{end}") for name, meaning in names.items())


def _quoted(text: str) -> str:
    """Return a string as fish quotes it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
"""What makes each shell's script."""
