"The house is in order: a notebook's path is its module's path, imports point downwards, and nothing is too long"
import ast, json, re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ( # from the ground up: a module imports from its own layer or from those before it
    ('core', 'files', 'extras'), ('web', 'prompts', 'envs.claims', 'envs.panel', 'envs.base', 'models'), ('envs',),
    ('values', 'settings'), ('agents',),
    ('compose', 'accumulate', 'losses', 'data', 'evaluate'),
    ('opening', 'training'), ('train',), ('quality', 'exchange', 'envs.webshop.browser'), ('runs',),
    ('scoring', 'trainers', 'view', 'quality.arms'), ('doctor', 'bench'), ('cli',))
MODULE_LINES, FUNCTION_LINES, CELL_LINES = 400, 40, 40

def modules():
    "Module name → its file, for what the notebooks export"
    files = [p for p in (ROOT/'a3t').rglob('*.py') if p.name != '_modidx.py' and p.read_text(encoding='utf-8').strip()]
    name = lambda p: '.'.join(p.relative_to(ROOT/'a3t').with_suffix('').parts).removesuffix('.__init__')
    return {name(p):p for p in files if name(p) != '__init__'}

def imported(name, path):
    "Modules of the package that a module imports, anywhere in its code"
    package, have = name if path.name == '__init__.py' else name.rpartition('.')[0], modules()
    res = set()
    for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(n, ast.Import): found = [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            up = ['a3t', *package.split('.')] if package else ['a3t']
            above = up[:len(up) - n.level + 1] if n.level else []
            base = '.'.join([*above, *([n.module] if n.module else [])])
            found = [base, *(f'{base}.{a.name}' for a in n.names)]
        else: continue
        res |= {f[4:] for f in found if f.startswith('a3t.') and f[4:] in have}
    return res - {name}

def layer(name):
    "Number of the layer of a module: the one that names most of it"
    found = [(len(prefix), i) for i,names in enumerate(LAYERS) for prefix in names if name == prefix
             or name.startswith(prefix + '.')]
    return max(found)[1] if found else None

def test_every_module_has_a_layer():
    assert not [m for m in modules() if layer(m) is None]

def test_imports_point_downwards():
    up = [f'{m} imports {n}' for m,p in modules().items() for n in imported(m, p) if layer(n) > layer(m)]
    assert not up, '\n'.join(up)

def circle(graph):
    "A circle of imports, if there is one"
    state, path = {}, []
    def visit(m):
        state[m] = 'open'
        path.append(m)
        for n in sorted(graph[m]):
            if state.get(n) == 'open': return path[path.index(n):]
            if n not in state and (found := visit(n)): return found
        path.pop()
        state[m] = 'done'
    return next((c for m in sorted(graph) if m not in state and (c := visit(m))), None)

def test_there_is_no_circle():
    assert circle({'a':{'b'}, 'b':{'c'}, 'c':{'b'}}) == ['b', 'c'] and circle({'a':{'b'}, 'b':set()}) is None
    assert circle({m:imported(m, p) for m,p in modules().items()}) is None

def cells():
    "Notebook → type and source of each of its cells"
    read = lambda p: json.loads(p.read_text(encoding='utf-8'))['cells']
    return {p:[(c['cell_type'], ''.join(c['source']).strip()) for c in read(p)] for p in (ROOT/'nbs').rglob('*.ipynb')}

def repeated(texts, shortest=60):
    "Texts that stand there more than once; short ones may"
    return [t for t,n in Counter(texts).items() if n > 1 and len(t) >= shortest]

def test_no_cell_stands_twice_in_a_notebook():
    assert repeated(['one cell', 'two'], 3) == [] and repeated(['one cell', 'one cell', 'a', 'a'], 3) == ['one cell']
    assert not [f'{p.name}: {t[:60]}' for p,cs in cells().items() for t in repeated(t for _,t in cs)]

def test_a_notebook_stands_where_its_module_does():
    wrong = []
    for p,cs in cells().items():
        source = '\n'.join(text for kind,text in cs if kind == 'code')
        if not (m := re.search(r'^#\| *default_exp +(\S+)', source, re.M)): continue
        where = re.sub(r'^\d\d_', '', p.relative_to(ROOT/'nbs').as_posix().removesuffix('.ipynb').removeprefix(
            'method/'))
        if where.replace('/', '.').removesuffix('.index') != m[1].removesuffix('.__init__'):
            wrong.append(f'{p.name} exports {m[1]}')
    assert not wrong, '\n'.join(wrong)

def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]

def test_nothing_is_too_long():
    long = []
    for m,p in modules().items():
        text = p.read_text(encoding='utf-8')
        if (n := len(text.splitlines())) > MODULE_LINES: long.append(f'{m}: {n} lines')
        long += [f'{m}.{f.name}: {f.end_lineno - f.lineno + 1} lines' for f in functions(ast.parse(text))
                 if f.end_lineno - f.lineno >= FUNCTION_LINES]
        long += [f'{m}, a cell: {n} lines' for cell in re.split(r'^# %%.*\n', text, flags=re.M)[2:]
                 if (n := len(cell.strip().splitlines())) > CELL_LINES]
    assert not long, '\n'.join(long)

# -- how lines read

MOST_ASSIGNMENTS = 3 # in a line

def sources():
    "Parsed modules and tests, by path"
    files = [*modules().values(), *(ROOT/'tests').glob('*.py'), *(ROOT/'nbs').glob('*.py')]
    return {p.relative_to(ROOT):ast.parse(p.read_text(encoding='utf-8')) for p in files}

def nested(tree):
    "Lines of conditional expressions that hold another one"
    inside = lambda n: any(isinstance(x, ast.IfExp) for c in ast.iter_child_nodes(n) for x in ast.walk(c))
    return [n.lineno for n in ast.walk(tree) if isinstance(n, ast.IfExp) and inside(n)]

def crowded(tree):
    "Lines that assign more names than a reader follows"
    names = {}
    for n in ast.walk(tree):
        if isinstance(n, (ast.AugAssign, ast.AnnAssign)): names[n.lineno] = names.get(n.lineno, 0) + 1
        if isinstance(n, ast.Assign):
            several = isinstance(n.targets[0], ast.Tuple) and isinstance(n.value, ast.Tuple)
            names[n.lineno] = names.get(n.lineno, 0) + (len(n.targets[0].elts) if several else len(n.targets))
    return [line for line,count in names.items() if count > MOST_ASSIGNMENTS]

def test_what_is_looked_for_is_found():
    assert nested(ast.parse('x = a if b else (c if d else e)')) == [1] and not nested(ast.parse('x = a if b else c'))
    assert crowded(ast.parse('a, b, c, d = 1, 2, 3, 4')) == crowded(ast.parse('a = 1; b = 2; c = 3; d = 4')) == [1]
    assert not crowded(ast.parse('a, b, c, d = f()')) and not crowded(ast.parse('a, b, c = 1, 2, 3'))

def test_no_conditional_expression_is_inside_another():
    assert not [f'{p}:{line}' for p,t in sources().items() for line in nested(t)]

def test_at_most_three_assignments_a_line():
    assert not [f'{p}:{line}' for p,t in sources().items() for line in crowded(t)]
