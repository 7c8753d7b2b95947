"""Plain English: the rules of CONTRIBUTING.md, over docs, docstrings, comments, messages and names.

`python tests/language.py FILE` lists the places of a file that break a rule, with the way out.
"""
import pytest

import language


def test_no_file_breaks_a_rule():
    broken = {name: found for name in language.files() if (found := language.findings(name))}
    assert not broken, '\n'.join(f'{name}:{each.line}: "{each.words}" ({each.advice})' for name, found in broken.items()
                                 for each in found)


def test_rates_of_words():
    counts = language.docstrings_and_docs()
    for group in counts:
        for words, (_, most) in language.RATES.items():
            assert 1000 * counts[group][words] / counts[group]['words'] <= most, (group, words)


@pytest.mark.parametrize('name, content, words', [
    ('a.py', '"""What it returns."""', 'What'),
    ('a.py', '"""Return a\n\nlist. Of two, the first."""', 'Of two'),
    ('a.py', 'def f():\n    """The rows."""', 'The rows'),
    ('a.py', '# Those of a query.\nx = 1', 'Those of'),
    ('a.py', 'x = 1  # It tells all.', 'tells'),
    ('a.py', 'parser.add_argument("--a", help="behind the flag")', 'behind'),
    ('a.py', 'f"{a} is left out by {b}"', 'left out'),
    ('a.py', 'def of_query():\n    told = 1', 'of_query'),
    ('a.md', 'One. Two\n| What | why |', 'What'),
    ('a.sh', 'echo "nobody but for you"', 'but for'),
    ('a.html', '<p>Images of strangers</p>', 'strangers'),
])
def test_a_broken_rule_is_found(name, content, words, monkeypatch):
    texts = language.texts
    monkeypatch.setattr(language, 'texts', lambda name: texts(name, content))
    assert words.lower() in ' '.join(each.words for each in language.findings(name)).lower()


@pytest.mark.parametrize('name, content', [
    ('a.py', '"""Return the nearest, of course."""\ntold_apart = beside = "behind"'),
    ('a.md', 'One.\n```sh\necho What\n```\nWrite `behind` and *those of*.'),
])
def test_code_and_quoted_words_are_free(name, content, monkeypatch):
    texts = language.texts
    monkeypatch.setattr(language, 'texts', lambda name: texts(name, content))
    assert not [each for each in language.findings(name) if each.kind != 'name']
