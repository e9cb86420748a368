"""A notebook as a page of the site and as plain Markdown.

An exported cell stands on the page with its code, each public definition under a heading of its own. A long
one is folded, and a table of its parameters stands in its place, unless the menu names it as what the page is
about
"""

import ast
import base64
import io
import json
import re
import tokenize
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from textwrap import dedent, indent
import yaml
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, filter_stream_, hide_, hide_line, populate_language, rm_header_dash
from nbdev.processors import strip_ansi

definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
fig_mime = 'application/vnd.plotly.v1+json'
open_lines = 40  # a longer definition is folded


@dataclass
class Page:
    "One page of the site"

    stem: str  # its address without .html: `webtext/options`
    source: str  # the notebook, relative to nbs/
    title: str = ''
    description: str = ''
    module: str = ''  # what the notebook exports: `webtext.options`; '' for a lesson
    site: list[str] = field(default_factory=list)  # Markdown for the renderer
    twin: list[str] = field(default_factory=list)  # Markdown for readers
    symbols: dict[str, str] = field(default_factory=dict)  # public definition -> anchor
    defined: set[str] = field(default_factory=set)  # all definitions, private ones too
    imported: dict[str, str] = field(
        default_factory=dict
    )  # name -> the module that the page's cells take it from
    traces: set[str] = field(default_factory=set)  # types of its figures' traces
    pictures: dict[str, bytes] = field(default_factory=dict)

    @property
    def up(self):
        "The way to the top folder"
        return '../' * self.stem.count('/')

    def add(self, site, twin=None):
        self.site.append(site)
        self.twin.append(site if twin is None else twin)


def stem_of(rel):
    "The page's name: the notebook's without its number"
    return re.sub(r'(^|/)\d+[a-z]*_', r'\1', Path(rel).with_suffix('').as_posix())


def text(o):
    return re.sub(r'\x1b\[[0-9;]*m', '', ''.join(o))


def fence(s, lang):
    ticks = '`' * max(3, 1 + max((len(m) for m in re.findall(r'^\s*(`{3,})', s, re.M)), default=0))
    return f'{ticks}{lang}\n{s.rstrip()}\n{ticks}\n'


def folded(title, body, kind='quote'):
    quoted = title.replace('"', '&quot;')
    return f'??? {kind} "{quoted}"\n\n' + indent(body, '    ') + '\n'


def cell_text(s):
    "One line of text for a table of Markdown"
    return ' '.join(s.split()).replace('|', r'\|')


def table(head, rows):
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(o) + ' |' for o in lines) + '\n'


# Definitions


def segments(source):
    """(definition or None, its lines) for each part of a cell

    A part is a definition with the comments above it, or what lies between two definitions
    """
    lines = source.splitlines()
    parts = []
    start = 0
    for node in ast.parse(source).body:
        own = node if isinstance(node, definitions) else None
        code = '\n'.join(lines[start : node.end_lineno])
        start = node.end_lineno
        if parts and own is None and parts[-1][0] is None:
            parts[-1] = None, parts[-1][1] + '\n' + code
        else:
            parts.append((own, code))
    rest = '\n'.join(lines[start:]).strip('\n')
    if rest and parts:
        parts[-1] = parts[-1][0], parts[-1][1] + '\n' + rest
    return [(node, code.strip('\n')) for node, code in parts]


def only_imports(code):
    return all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in ast.parse(code).body)


def decorated(node, name):
    return any(ast.unparse(o).split('(')[0].split('.')[-1] == name for o in node.decorator_list)


def name_of(node):
    "A definition's name; `Adafactor.step` for a method that `@patch` adds to a class"
    if isinstance(node, ast.ClassDef) or not decorated(node, 'patch'):
        return node.name
    first = [*node.args.posonlyargs, *node.args.args][0].annotation
    return f'{ast.unparse(first)}.{node.name}'


def is_public(name):
    return not any(o.startswith('_') and not o.endswith('__') for o in name.split('.'))


def comments(code):
    "Line -> the comment that speaks of it: at its end, or on lines of its own above it"
    found = {}
    above = []
    lines = code.splitlines()
    for t in tokenize.generate_tokens(io.StringIO(code).readline):
        row = t.start[0]
        if t.type != tokenize.COMMENT:
            if t.type not in (tokenize.NL, tokenize.INDENT) and above:
                found.setdefault(row, ' '.join(above))
                above = []
            continue
        said = t.string.lstrip('# ')
        if lines[row - 1].lstrip().startswith('#'):
            above.append(said)
        else:
            found[row] = said
    return found


def parameters(node, said):
    "(name, type, default, comment) of a function; the last is what it returns"
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    named = [('', *o) for o in zip(plain, defaults)]
    if a.vararg:
        named.append(('*', a.vararg, None))
    named += [('', *o) for o in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg:
        named.append(('**', a.kwarg, None))
    last_of_line = {arg.end_lineno: arg.arg for _, arg, _ in named}
    rows = []
    for stars, arg, default in named:
        if arg.arg in ('self', 'cls'):
            continue
        end = default.end_lineno if default else arg.end_lineno
        comment = said.get(end, '') if last_of_line.get(arg.end_lineno) == arg.arg else ''
        kind = ast.unparse(arg.annotation) if arg.annotation else ''
        rows.append((stars + arg.arg, kind, ast.unparse(default) if default else '', comment))
    if node.returns:
        rows.append(('returns', ast.unparse(node.returns), '', said.get(node.returns.end_lineno, '')))
    return rows


def fields(node, said):
    "The same of a class: its annotated fields, else what its `__init__` takes"
    rows = []
    for o in node.body:
        if isinstance(o, ast.AnnAssign) and is_public(ast.unparse(o.target)):
            default = ast.unparse(o.value) if o.value else ''
            rows.append(
                (ast.unparse(o.target), ast.unparse(o.annotation), default, said.get(o.end_lineno, ''))
            )
    inits = [o for o in node.body if isinstance(o, ast.FunctionDef) and o.name == '__init__']
    return rows or [o for init in inits for o in parameters(init, said) if o[0] != 'returns']


def code_span(s):
    ticks = '``' if '`' in s else '`'
    return f'{ticks}{cell_text(s)}{ticks}' if s else ''


def parameter_table(rows):
    "Columns that would be empty are left out"
    names = 'parameter', 'type', 'default', 'meaning'
    kept = [i for i in range(4) if any(r[i] for r in rows)]

    def cells(r):
        first = '*returns*' if r[0] == 'returns' else code_span(r[0])
        return [first, code_span(r[1]), code_span(r[2]), cell_text(r[3])]

    return table([names[i] for i in kept], [[cells(r)[i] for i in kept] for r in rows]) if rows else ''


def signature(node):
    "Names and defaults, without types: those stand in the table"
    if isinstance(node, ast.ClassDef):
        bases = [ast.unparse(o) for o in node.bases]
        return f'class {node.name}' + (f'({", ".join(bases)})' if bases else '')
    bare = ast.parse(ast.unparse(node)).body[0]
    a = bare.args
    for arg in filter(None, [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]):
        arg.annotation = None
    kind = 'async def' if isinstance(node, ast.AsyncFunctionDef) else 'def'
    return f'{kind} {node.name}({ast.unparse(a)})'


def docstring(node):
    return ast.get_docstring(node) or ''


def methods(node):
    rows = []
    for o in node.body:
        if isinstance(o, ast.FunctionDef) and not o.name.startswith('_'):
            doc = docstring(o).split('\n')[0]
            rows.append([code_span(o.name if decorated(o, 'property') else signature(o)[4:]), cell_text(doc)])
    return table(['method', 'what it does'], rows) if rows else ''


def reference(code):
    "Signature, docstring and tables: what a reader needs of a definition whose code is folded"
    # the table's line numbers are those of `code`, which begins with the comments above the definition
    tree = next(o for o in ast.parse(code).body if isinstance(o, definitions))
    is_class = isinstance(tree, ast.ClassDef)
    rows = fields(tree, comments(code)) if is_class else parameters(tree, comments(code))
    parts = [fence(signature(tree), 'python'), docstring(tree), parameter_table(rows)]
    if is_class:
        parts.append(methods(tree))
    return '\n\n'.join(o for o in parts if o) + '\n'


class Source:
    "The exported module: where a definition stands in it"

    def __init__(
        self,
        root,  # the repository
        lib,  # the package's folder in it
        module,  # `webtext.options`
        git,  # the repository's address, with the branch
    ):
        self.path = f'{lib}/{module.replace(".", "/")}.py'
        self.git = git
        self.lines = {}
        for node in ast.parse((root / self.path).read_text(encoding='utf-8')).body:
            if isinstance(node, definitions):
                self.lines.setdefault(name_of(node), node.lineno)

    def link(self, name):
        if name not in self.lines:
            raise SystemExit(f'docs: {self.path} does not define {name}: run `make export`')
        return f'{self.git}/{self.path}#L{self.lines[name]}'


def anchor_for(name, taken):
    "`plan` for `Plan` too, where it is free"
    base = name.lower()
    n = sum(o == base or re.fullmatch(re.escape(base) + r'-\d+', o) is not None for o in taken)
    return f'{base}-{n + 1}' if n else base


def opens(n_lines, fold):
    "Is code open? A cell's `#| code-fold: true|false` says so itself"
    return n_lines <= open_lines if fold is None else fold != 'true'


def exported(page, source, code, fold, central):
    "Add an exported cell"
    for node, part in segments(code):
        n = len(part.splitlines())
        block = fence(part, 'python')
        name = name_of(node) if node else ''
        is_open = name in central or opens(n, fold)
        code_block = block if is_open else folded(f'Code: {n} lines', block)
        page.defined.add(name)
        if not node and only_imports(part):
            page.add(folded('Imports', block), block)
            continue
        if not node or not is_public(name):
            page.add(code_block, block)
            continue
        anchor = page.symbols[name] = anchor_for(name, page.symbols.values())
        link = source.link(name)
        page.add(
            f'### `{name}` {{ #{anchor} .definition }}\n\n[source]({link}){{ .source }}\n',
            f'### `{name}` ([source]({link}))\n',
        )
        page.add(code_block if is_open else reference(part) + '\n' + code_block, block)


# Outputs


class Rows(HTMLParser):
    "Cells of an HTML table"

    def __init__(self):
        super().__init__()
        self.rows = []
        self.cell = None

    def handle_starttag(self, tag, attrs):
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.cell = ''

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ('td', 'th') and self.rows and self.cell is not None:
            self.rows[-1].append(cell_text(self.cell))
            self.cell = None


def plain_table(s):
    """pandas' table without its own style, which would override the theme's.

    An index that only counts is left out
    """
    s = re.sub(r'<style scoped>.*?</style>\s*', '', s, flags=re.S)
    s = s.replace('<table border="1" class="dataframe">', '<table>')
    rows = re.findall(r'<tr>\s*<th>(.*?)</th>', s)
    if rows and rows == [str(i) for i in range(len(rows))]:
        s = re.sub(r'(<tr[^>]*>\s*)<th>\d*</th>\s*', r'\1', s)
    return s


def markdown_of(html):
    "An HTML output as Markdown: a table, else its text"
    p = Rows()
    p.feed(html)
    rows = [o for o in p.rows if o]
    if len(rows) > 1 and len({len(o) for o in rows}) == 1:
        return table(rows[0], rows[1:])
    return fence(unescape(re.sub(r'<[^>]+>', '', html)).strip(), 'text')


def figure(page, fig):
    "A figure's data; the site's own script draws it in the theme's colours"
    fig = {k: fig[k] for k in ('data', 'layout')}
    fig['layout'] = {k: v for k, v in fig['layout'].items() if k != 'template'}
    page.traces |= {o.get('type', 'scatter') for o in fig['data']}
    height = fig['layout'].get('height', 450)
    title = (fig['layout'].get('title') or {}).get('text', '')
    data = json.dumps(fig, separators=(',', ':')).replace('</', r'<\/')
    script = f'<script type="application/json">{data}</script>'
    page.add(
        f'<div class="fig" style="min-height:{height}px">{script}</div>\n',
        f'*(A figure{": " if title else ""}{title}: see the page.)*\n',
    )


def output(page, o, name):
    "Add one saved output"
    if o['output_type'] == 'stream':
        page.add(fence(text(o['text']), 'text'))
        return
    d = o.get('data', {})
    if fig_mime in d:
        figure(page, d[fig_mime])
    elif 'text/markdown' in d:
        page.add(text(d['text/markdown']) + '\n')
    elif 'text/html' in d:
        html = plain_table(text(d['text/html']))
        page.add(f'<div class="output" tabindex="0">\n{html}\n</div>\n', markdown_of(html))
    elif 'image/svg+xml' in d or 'image/png' in d:
        ext = 'svg' if 'image/svg+xml' in d else 'png'
        b = ''.join(d['image/svg+xml' if ext == 'svg' else 'image/png'])
        page.pictures[f'{name}.{ext}'] = b.encode() if ext == 'svg' else base64.b64decode(b)
        page.add(f'![]({Path(name).name}.{ext})\n')
    elif 'text/plain' in d:
        page.add(fence(text(d['text/plain']), 'text'))


# Cells


def code_cell(page, c, source, central, name):
    "Add a code cell: its source and its outputs, as its options ask"
    opts = dict(re.findall(r'^#\| *([\w-]+): *(.*)$', c.source, re.M))
    if opts.get('include') == 'false':
        return
    code = '\n'.join(o for o in c.source.splitlines() if not o.startswith('#|')).strip('\n')
    if {'export', 'exports', 'exporti'} & c.directives_.keys():
        exported(page, source, code, opts.get('code-fold'), central)
    elif code.strip() and opts.get('echo') != 'false':
        block = fence(code, 'python')
        page.add(folded('Code', block) if opts.get('code-fold') == 'true' else block, block)
    if opts.get('output') != 'false':
        for i, o in enumerate(c.get('outputs', [])):
            output(page, o, f'{name}-{i}')


def details(s):
    "HTML's folded parts, which Jupyter and GitHub show as they are, in the renderer's own words"

    def mended(m):
        return folded(m[1].strip(), dedent(m[2]).strip('\n') + '\n', 'question')

    return re.sub(r'<details[^>]*>\s*<summary>(.*?)</summary>(.*?)</details>', mended, s, flags=re.S)


def imports_of(code):
    "name -> module of this package, for the imports of a cell"
    try:
        body = ast.parse(code).body
    except SyntaxError:  # a cell with a shell command
        return {}
    found = {}
    for o in body:
        if isinstance(o, ast.ImportFrom) and (o.module or '').startswith('gpt2repro.'):
            found |= {a.asname or a.name: o.module.removeprefix('gpt2repro.') for a in o.names}
    return found


def read_page(
    path,  # the notebook
    rel,  # its path below nbs/
    root,  # the repository
    lib,  # the package's folder in it
    git,  # address of the repository's files
    central=(),  # definitions that are open whatever their length
) -> Page:
    "The page of a notebook, with links as they stand in the notebook"
    page = Page(stem_of(rel), Path(rel).as_posix())
    procs = [FrontmatterProc, populate_language, strip_ansi, hide_line, filter_stream_, rm_header_dash]
    nb = NBProcessor(path, procs=[*procs, clean_magics], rm_directives='quarto')
    for c in nb.nb.cells:
        if c.cell_type == 'code':
            page.imported |= imports_of(c.source)
        if 'default_exp' in c.directives_:
            page.module = c.directives_['default_exp'].strip()
    nb.procs.append(hide_)
    nb.process()
    source = Source(root, lib, page.module, git) if page.module else None
    for i, c in enumerate(nb.nb.cells):
        if c.cell_type == 'raw':
            fm = next(yaml.safe_load_all(c.source))
            page.title = fm.get('title', page.stem)
            page.description = fm.get('description', '')
        elif c.cell_type == 'code' and 'default_exp' not in c.directives_:
            code_cell(page, c, source, central, f'{page.stem}-{i}')
        elif c.cell_type == 'markdown':
            page.add(details(c.source) + '\n', c.source + '\n')
    if missing := set(central) - page.defined:
        raise SystemExit(
            f'docs: {rel} does not define {", ".join(sorted(missing))}: mend `open` in nbs/menu.yml'
        )
    return page
