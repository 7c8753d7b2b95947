#!/usr/bin/env python3
"""Count the words that CONTRIBUTING.md's rules of plain English avoid, and list the places that break a rule.

    python tests/language.py            # occurrences per 1000 words of docstrings, of Markdown and of both
    python tests/language.py FILE …     # the sentences of files that break a rule
    python tests/language.py --worst    # the files with the most of them
"""
import ast
import collections
import functools
import io
import pathlib
import re
import subprocess
import sys
import tokenize
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The most that is allowed per 1000 words of docstrings and Markdown.
RATES = {'what': (r'\bwhat\b', 1.5), 'that of, those of': (r'\b(?:that|those) of\b', 0.3),
         'tell, told': (r'\b(?:tell|tells|told)\b', 0.1), 'behind, beside, anew': (r'\b(?:behind|beside|anew)\b', 0.1)}

# What breaks a rule wherever it stands: a pattern, and the way out.
FORBIDDEN = [
    (r'(?-i:(?:^|[.!?:;|(]\s)[-#>*\d. ]*(?:Who|Whoever|Whether|That which|Of)\b(?! course))', 'name the subject first'),
    (r'\bwhat\b', 'name the thing'),
    (r'\b(?:that|those) of\b', 'repeat the noun'),
    (r'\b(?:tell|tells|told|telling)\b', 'report, log, print, warn'),
    (r'\b(?:knows|hears|looks at|looked at)\b', 'store, read, check'),
    (r'\b(?:behind|beside|anew)\b', 'after, next to, in addition, again'),
    (r'\b(?:whoever|whomever|likewise|alike)\b', 'name the subject, repeat the noun'),
    (r'\b(?:pass|passes|passed|passing) over\b|\b(?:leave|leaves|left|leaving) out\b', 'skip, ignore, mask'),
    (r'\bstrangers?\b', 'non-match, impostor, unknown identity'),
    (r'\b(?:in front of|but for)\b', 'before, except'),
    (r'\bshares? of\b', 'fraction, rate'),
    (r'\bwhole or not\b', 'atomic, complete or absent'),
]
# Files that quote the forbidden words, with the reason.
EXCEPTIONS = {'tests/language.py': 'contains the patterns', 'tests/test_language.py': 'contains examples'}
# Words of names, which stand between underscores or capitals.
FORBIDDEN_IN_NAMES = {'tell', 'tells', 'told', 'telling', 'behind', 'beside', 'anew', 'whoever', 'likewise', 'stranger',
                      'strangers'}
# How the docstring of a function must not begin.
NO_VERB = r'(?:The|A|An|One|Each|All|This|How|Where|Which|As|Names|Images)\b|[^A-Z]'
FORBIDDEN_BEGINNINGS_OF_NAMES = {'of', 'what', 'who', 'whether'}


class Text(typing.NamedTuple):
    """A piece of prose. line: its first line. kind: 'docstring', 'summary' (the first line of a
    function's docstring), 'comment', 'message', 'name' or 'prose'."""
    line: int
    kind: str
    text: str


class Finding(typing.NamedTuple):
    """A place that breaks a rule."""
    line: int
    kind: str
    words: str
    advice: str


def files():
    """Return the files of the project that contain prose, tracked or new: paths relative to ROOT."""
    listed = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT, capture_output=True,
                            text=True, check=True).stdout.split('\n')
    return sorted(name for name in listed if name.endswith(tuple(READERS)) and (ROOT / name).is_file())


@functools.cache
def texts(name, content=None):
    """Return the pieces of prose of a file, a list of `Text`."""
    content = (ROOT / name).read_text(encoding='utf-8') if content is None else content
    return READERS[pathlib.PurePath(name).suffix or name](content)


def findings(name):
    """Return the places of a file that break a rule, a list of `Finding`."""
    found = []
    for line, kind, text in [] if name in EXCEPTIONS else texts(name):
        if kind == 'summary':
            if re.match(NO_VERB, text) and not name.startswith('tests/'):  # A test's docstring describes a behaviour.
                found.append(Finding(line, kind, text, 'begin with a verb'))
            continue
        if kind == 'name':
            words = [word for word in re.split(r'_+|(?<=[a-z])(?=[A-Z])', text) if word]
            if ({word.lower() for word in words} & FORBIDDEN_IN_NAMES
                    or words and words[0].lower() in FORBIDDEN_BEGINNINGS_OF_NAMES):
                found.append(Finding(line, kind, text, 'noun phrases for things, verb phrases for functions'))
            continue
        for pattern, advice in FORBIDDEN:
            for match in re.finditer(pattern, text, re.MULTILINE | re.IGNORECASE):
                words = ' '.join(text[max(0, match.start() - 30):match.end() + 30].split())
                found.append(Finding(line + text.count('\n', 0, match.start()), kind, words, advice))
    return found


def python_texts(content):
    """Return docstrings, comments, messages (strings of several words) and names of Python code."""
    tree = ast.parse(content)
    found, docstrings = [], set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node) is not None:
                docstrings.add(node.body[0].value)
                found.append(Text(node.body[0].lineno, 'docstring', ast.get_docstring(node)))
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not _is_property(node):
                    found.append(Text(node.body[0].lineno, 'summary', ast.get_docstring(node).splitlines()[0]))
            if not isinstance(node, ast.Module):
                found.append(Text(node.lineno, 'name', node.name))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append(Text(node.lineno, 'name', node.id))
        if isinstance(node, ast.arg):
            found.append(Text(node.lineno, 'name', node.arg))
    parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = ''.join(value.value if isinstance(value, ast.Constant) else '{}' for value in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node), node} & (parts | docstrings):
            text = node.value
        else:
            continue
        if len(text.split()) > 2:
            found.append(Text(node.lineno, 'message', text))
    tokens = tokenize.generate_tokens(io.StringIO(content).readline)
    comments = [(token.start[0], token.string.lstrip('#! ')) for token in tokens if token.type == tokenize.COMMENT]
    return found + _joined(comments)


def _is_property(function):
    """Return whether a function is a property, whose docstring is a noun."""
    return any('property' in ast.unparse(each) for each in function.decorator_list)


def markdown_texts(content):
    """Return the prose of Markdown without code, targets of links, words in italics (quotes) and generated tables."""
    content = re.sub(r'<!-- (flags|plug-ins):.*?<!-- end -->', lambda match: '\n' * match[0].count('\n'), content,
                     flags=re.DOTALL)
    content = re.sub(r'^```.*?^```', lambda match: '\n' * match[0].count('\n'), content, flags=re.DOTALL | re.MULTILINE)
    content = re.sub(r'`[^`]*`|(?<![*\w])\*[^*\s][^*]*\*(?!\*)', lambda match: '`' + '\n' * match[0].count('\n'), content)
    content = re.sub(r'<!--.*?-->|\]\([^)]*\)', lambda match: '\n' * match[0].count('\n'), content, flags=re.DOTALL)
    return [Text(1, 'prose', content)]


def shell_texts(content):
    """Return comments and printed lines of a shell script or of a Makefile."""
    lines = content.splitlines()
    comments = [(number, line.split('#', 1)[1].lstrip('! ')) for number, line in enumerate(lines, 1)
                if re.match(r'\s*#|.*\s# ', line)]
    printed = [Text(number, 'message', line) for number, line in enumerate(lines, 1) if re.search(r'\b(echo|printf) ', line)]
    return _joined(comments) + printed


def page_texts(content):
    """Return texts between tags, comments and strings of several words of HTML, CSS and JavaScript."""
    found = re.finditer(r'>([^<>{}]+)<|/\*(.*?)\*/|(?<!:)//(.*)$|`([^`]*)`|\'([^\'\n]*)\'|"([^"\n]*)"', content,
                        re.DOTALL | re.MULTILINE)
    pieces = [(content.count('\n', 0, match.start()) + 1, next(filter(None, match.groups()), '')) for match in found]
    return [Text(line, 'message', text.strip()) for line, text in pieces if len(text.split()) > 1]


READERS = {'.py': python_texts, '.md': markdown_texts, '.sh': shell_texts, 'Makefile': shell_texts, '.txt': shell_texts,
           '.toml': shell_texts, '.html': page_texts, '.css': page_texts, '.js': page_texts}


def _joined(comments):
    """Join comments of consecutive lines: [(line, text)] -> a list of `Text`."""
    found = []
    for line, text in comments:
        if found and line == found[-1][0] + found[-1][1].count('\n') + 1:
            found[-1] = (found[-1][0], f'{found[-1][1]}\n{text}')
        else:
            found.append((line, text))
    return [Text(line, 'comment', text) for line, text in found]


def rates(kind_of):
    """Count words and occurrences: {group: (words, {name: occurrences})} of docstrings and of Markdown."""
    counts = collections.defaultdict(collections.Counter)
    for name in files():
        for _, kind, text in texts(name):
            group = kind_of(name, kind)
            if group:
                counts[group]['words'] += len(re.findall(r"[A-Za-z][\w'-]*", text))
                for what, (pattern, _) in RATES.items():
                    counts[group][what] += len(re.findall(pattern, text, re.IGNORECASE))
    return counts


def docstrings_and_docs():
    """Return the counts of `rates` for docstrings, Markdown, and both."""
    counts = rates(lambda name, kind: {'docstring': 'docstrings', 'prose': 'Markdown'}.get(kind))
    counts['both'] = sum(counts.values(), collections.Counter())
    return counts


def main():
    """Print what the command line asks for."""
    arguments = sys.argv[1:]
    if arguments == ['--worst']:
        counted = collections.Counter({name: len(findings(name)) for name in files()})
        for name, number in counted.most_common(60):
            print(f'{number:5d}  {name}')
        print(f'{sum(counted.values()):5d}  in all {len(counted)} files')
    elif arguments:
        for name in arguments:
            for line, kind, words, advice in findings(str(pathlib.Path(name).resolve().relative_to(ROOT))):
                print(f'{name}:{line}: {kind}: "{words}" ({advice})')
    else:
        print(f'{"per 1000 words":22}' + ''.join(f'{name:>24}' for name in RATES) + f'{"words":>10}')
        for group, counts in docstrings_and_docs().items():
            numbers = ''.join(f'{1000 * counts[name] / counts["words"]:24.2f}' for name in RATES)
            print(f'{group:22}{numbers}{counts["words"]:10d}')
        print(f'{"allowed":22}' + ''.join(f'{most:24.2f}' for _, most in RATES.values()))


if __name__ == '__main__':
    main()
