"""What a run of mutmut came to: the table of docs/mutants.md, and what survived.

python -m tests.mutation.report         the table into the page; exit 1 below the bar
python -m tests.mutation.report --show  also each survivor, as a change of the source
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "mutants.md"
_BEGIN = "<!-- counted: rewritten by `make mutants` -->"
_END = "<!-- end of what is counted -->"
_BAR = 0.9

_MEANINGS = {0: "survived", 1: "killed", 3: "killed", 33: "no test"}
# Sent by mutmut to what has used up its time.
_TIMED_OUT = {-24, 24, 36, 152}


class UnfinishedError(RuntimeError):
    """Some mutants were not run, or their tests could not be."""


def _meaning(exit_code: int | None) -> str:
    if exit_code in _TIMED_OUT:
        return "timed out"
    return _MEANINGS.get(exit_code, "not run") if exit_code is not None else "not run"


def _counted(run: Path) -> dict[str, dict[str, str]]:
    """What became of each mutant, by module."""
    modules: dict[str, dict[str, str]] = {}
    for path in sorted(run.glob("langchain_retryrouter/_*/*.py.meta")):
        codes: Mapping[str, int | None] = json.loads(path.read_text())[
            "exit_code_by_key"
        ]
        if codes:
            name = f"{path.parent.name}/{path.name.removesuffix('.meta')}"
            modules[name] = {mutant: _meaning(code) for mutant, code in codes.items()}
    return modules


def _row(name: str, ends: Counter[str]) -> str:
    found = ends["killed"] + ends["timed out"]
    missed = ends["survived"] + ends["no test"]
    numbers = [found + missed, ends["killed"], ends["timed out"], missed]
    cells = [name, *map(str, numbers), f"{100 * found / (found + missed):.1f} %"]
    return f"| {' | '.join(cells)} |"


def _table(modules: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    yield "| module | mutants | killed | timed out | survived | found |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for room in ("_core", "_drive"):
        total: Counter[str] = Counter()
        for name, mutants in modules.items():
            if name.startswith(room):
                total.update(mutants.values())
                yield _row(f"`{name}`", Counter(mutants.values()))
        yield _row(f"**all of `{room}`**", total)
    everything = Counter(end for ends in modules.values() for end in ends.values())
    yield _row("**together**", everything)
    yield ""
    yield (
        f"Counted by mutmut {version('mutmut')} with pytest {version('pytest')} and"
        f" hypothesis {version('hypothesis')} on Python {platform.python_version()}."
    )


def _share(modules: Mapping[str, Mapping[str, str]]) -> float:
    ends = Counter(end for mutants in modules.values() for end in mutants.values())
    if not ends or ends["not run"]:
        msg = f"{ends['not run']} mutants were not run: call `make mutants`"
        raise UnfinishedError(msg)
    return (ends["killed"] + ends["timed out"]) / ends.total()


def _show(mutant: str) -> None:
    mutmut = Path(sys.executable).with_name("mutmut")
    subprocess.run([mutmut, "show", mutant], check=True, cwd=_ROOT)


def main() -> int:
    """Write the table, and say whether enough was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", action="store_true", help="print the survivors")
    arguments = parser.parse_args()
    modules = _counted(_ROOT / "mutants")
    share = _share(modules)
    head, _, rest = _PAGE.read_text().partition(_BEGIN)
    _, _, foot = rest.partition(_END)
    table = "\n".join(_table(modules))
    _PAGE.write_text(f"{head}{_BEGIN}\n\n{table}\n\n{_END}{foot}")
    if arguments.show:
        for mutants in modules.values():
            for mutant, end in mutants.items():
                if end in {"survived", "no test"}:
                    _show(mutant)
    sys.stdout.write(f"{100 * share:.1f} % of the mutants were found\n")
    return 0 if share >= _BAR else 1


if __name__ == "__main__":
    sys.exit(main())
