"""Examples of the README, of docs/ and of docstrings do what they show.

The first line of a block says what is done with it:

- `python`: runs after the blocks above it. A whole program, which is one that calls
  `asyncio.run`, runs as its reader would run it, in a process of its own.
- `python NAME.py`: is saved under that name for the blocks below it, and runs if it is
  a whole program.
- `python shown`: a fragment that needs more than the page shows. It must be valid, and
  may use `await`.
- `pycon`, and `>>>` in a docstring: a doctest.
- `console`: each `$ command` runs in bash and must succeed; the lines below it, if any,
  are what it must print, where `...` stands for anything.
- `toml`: must be valid.
- Others (`sh`, `text`, ...) are shown only.

All of it runs in an empty directory beside `configs` and `examples`.
"""

from __future__ import annotations

import ast
import doctest
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.doctest import DocTestEvaluator
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.abstract.doctest import DocTestStringParser
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer
from sybil.parsers.rest import DocTestParser

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/**/*.md"))]
MODULES = [
    path
    for path in sorted(ROOT.glob("academy/**/*.py"))
    if re.search(r"^ *(>>>|```)", path.read_text(), flags=re.MULTILINE)
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


# --- what is done with a block


def is_program(source: str) -> bool:
    return "asyncio.run(" in source


def run_python(example: Example) -> None:
    PythonEvaluator()(example)


def run_program(example: Example, name: str = "program.py") -> None:
    Path(name).write_text(example.parsed)
    expect_success(sys.executable, name)


def save_python(example: Example, name: str) -> None:
    Path(name).write_text(example.parsed)


def compile_python(example: Example) -> None:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    compile(example.parsed, example.path, "exec", flags=flags, dont_inherit=True)


def check_toml(example: Example) -> None:
    tomllib.loads(example.parsed)


def run_console(example: Example) -> None:
    # A backslash continues a command on the next line.
    lines = example.parsed.replace("\\\n", "").splitlines(keepends=True)
    while lines:
        prompt, command = lines[0][:2], lines.pop(0)[2:].strip()
        assert prompt == "$ ", f"not a command: {prompt}{command}"
        wanted = ""
        while lines and not lines[0].startswith("$ "):
            wanted += lines.pop(0)
        printed = expect_success("bash", "-c", command)
        if wanted.strip() and not printed_as_shown(wanted, printed):
            pytest.fail(f"$ {command}\nprinted\n{printed}\ninstead of\n{wanted}")


def printed_as_shown(wanted: str, printed: str) -> bool:
    return doctest.OutputChecker().check_output(wanted, printed, FLAGS)


def expect_success(*command: str) -> str:
    process = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if process.returncode:
        pytest.fail(f"{command} failed:\n{process.stdout}\n{process.stderr}")
    return process.stdout


# --- blocks of a document


def evaluator(first_line: str, source: str) -> Callable[[Example], None] | None:
    match first_line.split():
        case ["python"]:
            return run_program if is_program(source) else run_python
        case ["python", "shown"]:
            return compile_python
        case ["python", name] if name.endswith(".py"):
            use = run_program if is_program(source) else save_python
            return lambda example: use(example, name)
        case ["console"]:
            return run_console
        case ["toml"]:
            return check_toml
        case ["python" | "pycon" | "console" | "toml", *_]:
            raise ValueError(f"No rule for a block that begins with {first_line!r}.")
    return None


def blocks(document: Document) -> Iterator[Region]:
    for region in FencedCodeBlockLexer(language="[^`\n]+")(document):
        first_line, source = region.lexemes["language"], region.lexemes["source"]
        if first_line.strip() == "pycon":
            parse = DocTestStringParser(DocTestEvaluator(FLAGS))
            for statement in parse(source, document.path):
                statement.adjust(region, source)
                yield statement
        else:
            region.parsed = source
            region.evaluator = evaluator(first_line, source)
            yield region


IN_PAGES = Sybil(parsers=[blocks])
IN_MODULES = Sybil(parsers=[DocTestParser(FLAGS), blocks])


def examples(path: Path) -> list[Example]:
    sybil = IN_MODULES if path.suffix == ".py" else IN_PAGES
    return list(sybil.parse(path))


# --- tests


@pytest.fixture(autouse=True)
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory where a reader tries things, with our commands on the path."""
    directory = tmp_path / "reader"
    directory.mkdir()
    for name in ("configs", "examples"):
        (directory / name).symlink_to(ROOT / name)
    monkeypatch.chdir(directory)
    commands = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    # What is printed must not depend on the terminal that the tests run in.
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    return directory


@pytest.mark.parametrize(
    "path", PAGES + MODULES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_examples_of(path: Path) -> None:
    for example in examples(path):
        example.evaluate()


def test_the_readme_shows_a_program_and_two_commands() -> None:
    shown = [str(example.parsed) for example in examples(README)]
    assert any(is_program(source) for source in shown)
    assert any("make demo" in source for source in shown)
    assert any("make test" in source for source in shown)


GOOD_PAGE = '''
```python
answer = 42
```

```pycon
>>> answer + 1
43
```

```python shown
await handle.add(1)
```

```python answer.py
def answer():
    """The answer."""
    return 42
```

```python
import asyncio
from answer import answer

async def main():
    print(answer())

asyncio.run(main())
```

```console
$ python -c "import answer; \\
print(answer.answer())"
42
$ echo one; echo two; echo three
one
...
three
$ test -d examples
```

```toml
[exchange]
port = 0
```

```sh
make demo
```
'''


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```python\n1 / 0\n```\n", "division by zero"),
        ("```python\nimport asyncio\nasyncio.run(main())\n```\n", "NameError"),
        ("```python shown\nawait handle.\n```\n", "invalid syntax"),
        ("```pycon\n>>> 1 + 1\n3\n```\n", "Expected:\n    3\nGot:\n    2"),
        ("```console\n$ false\n```\n", "failed"),
        ("```console\n$ echo 1\n2\n```\n", "printed\n1\n\ninstead of\n2"),
        ("```console\nls\n```\n", "not a command"),
        ("```toml\na = \n```\n", "Invalid value"),
        ("```python skip\n```\n", "No rule"),
    ],
)
def test_a_wrong_example_is_found(reader: Path, page: str, complaint: str) -> None:
    path = reader / "page.md"
    path.write_text(page)
    with pytest.raises((Exception, pytest.fail.Exception), match=re.escape(complaint)):
        test_the_examples_of(path)


def test_right_examples_pass(reader: Path) -> None:
    path = reader / "page.md"
    path.write_text(GOOD_PAGE)
    test_the_examples_of(path)
    assert len(examples(path)) == 8


def test_examples_of_a_docstring_are_found(
    reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(reader)
    module = reader / "counting.py"
    module.write_text('def one():\n    """One.\n\n    >>> one()\n    2\n    """\n')
    with pytest.raises(AssertionError, match=re.escape("Expected:\n    2")):
        test_the_examples_of(module)
