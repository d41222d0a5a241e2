"Messages and documents name settings: each of them exists"
import ast, configparser, json, re
from dataclasses import fields
from inspect import signature
from pathlib import Path
import pytest
from a3t.settings import load_settings
from a3t.envs.alfworld.generator import generate_games as alfworld_games
from a3t.envs.cooking.games import generate_cooking_games as cooking_games
from a3t.envs.webshop.generator import generate_shop
from a3t.models.server import ServerModel
from a3t.train import TrainingSettings
from a3t.view.store import Filter

ROOT = Path(__file__).parent.parent
PROSE = {'of', 'that', 'and', 'or', 'are', 'do', 'empty', 'changed', 'for', 'is', 'say', 'in', 'key', 'options',
         'task_id', 'top_p',
         # words that follow *setting*, and what is no setting by its place
         'before', 'needs', 'steps', 'missing_ok', 'index_topk', 'cpu', 'policy_gradient',
         # of other projects: a key of ATIF, an option of TRL
         'step_id', 'assistant_only_loss',
         # before *in the setting server*
         'unknown'}
VALUE = r'''(?:\{\}|[\w'"\[{-]|\(\))'''
IN_MESSAGES = [r'\bsettings? ([a-z_]+)(?: and ([a-z_]+))?', rf'(?<![(\w.-])([a-z_]+) ?= ?{VALUE}', r'--set ([a-z_]+)=',
               r'(?<![\w./{-])([a-z]+(?:_[a-z]+)+)(?![\w.*(/-])',
               r'(?<![\w}])([a-z_]+) in the setting server']
IN_PROSE = [r'\bsettings? `([a-z_]+)`(?: (?:\([^)]*\) )?and `([a-z_]+)`)?',
            rf'`([a-z_]+) ?= ?(?![^`]*\w\(){VALUE}?[^`]*`', r'--set ([a-z_]+)=']

def known():
    "Names of settings, of what `generator` and `server` hold, of what `train` takes, and of the filters of `a3t view`"
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(ROOT/'settings.ini')
    makers = alfworld_games, generate_shop, cooking_games, ServerModel, TrainingSettings
    return set(ini.defaults()) | {f.name for f in fields(Filter)} | {p for f in makers for p in signature(f).parameters}

def text_of(node):
    "The text of a string in the source, with {} for what is filled in"
    if isinstance(node, ast.Constant): return node.value if isinstance(node.value, str) else ''
    return ''.join(v.value if isinstance(v, ast.Constant) else '{}' for v in node.values)

def messages(source):
    "The strings of a module that users read: what is raised, and what checks and alarms find"
    tree = ast.parse(source)
    called = lambda n: isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in ('A3TError', 'Check',
        'Refused', 'Retry', 'alarm')
    finds = lambda n: isinstance(n, ast.FunctionDef) and re.search('faults?$', n.name)
    for n in ast.walk(tree):
        if not (isinstance(n, ast.Raise) or called(n) or finds(n)): continue
        body = n.body[bool(ast.get_docstring(n)):] if finds(n) else [n]
        inner = [x for b in body for x in ast.walk(b) if isinstance(x, (ast.Constant, ast.JoinedStr))]
        parts = {id(v) for x in inner if isinstance(x, ast.JoinedStr) for v in x.values}
        yield from (text_of(x) for x in inner if id(x) not in parts)

def named(text, patterns):
    "The names of settings in a text"
    return {n for p in patterns for m in re.finditer(p, text) for n in m.groups() if n} - PROSE

def cells(path, kind):
    return [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == kind]

def sources():
    for p in sorted((ROOT/'a3t').rglob('*.py')):
        if p.name != '_modidx.py' and not p.name.startswith('bench'): yield p, p.read_text()
    for p in sorted((ROOT/'nbs'/'stages').glob('*.ipynb')): yield p, '\n'.join(cells(p, 'code'))

def prose():
    for p in (ROOT/'README.md', ROOT/'CONTRIBUTING.md', *sorted((ROOT/'nbs').rglob('*.md'))): yield p, p.read_text()
    for p in sorted((ROOT/'nbs').rglob('*.ipynb')): yield p, '\n'.join(cells(p, 'markdown'))

def wrong(pairs, patterns, names):
    return sorted({(p.name, n) for p,text in pairs for n in named(text, patterns) - names})

def test_messages_name_settings_that_exist():
    texts = [(p, t) for p,source in sources() for t in messages(source)]
    assert len({n for _,t in texts for n in named(t, IN_MESSAGES)} & known()) > 25
    roles = {n for p,t in texts if p.parent.name == 'models' for n in named(t, IN_MESSAGES)}
    assert {'server', 'context', 'thinking', 'actre', 'actre_model', 'opening_model', 'opening_trials'} <= roles
    assert not wrong(texts, IN_MESSAGES, known())

def test_documents_name_settings_that_exist():
    texts = list(prose())
    assert len({n for _,t in texts for n in named(t, IN_PROSE)} & known()) > 15
    assert not wrong(texts, IN_PROSE, known())

@pytest.mark.parametrize('text',
                         ['raise the setting contxt, or', 'set grounded_raesons = false',
                          'the settings model and servr say', 'a lower learning_raet', "use gaems = generated",
                          '--set ruonds=2'])
def test_a_wrong_name_in_a_message_is_found(text):
    source = (f'def f(x):\n    if x: raise A3TError(f"it is {{x}}: {text}")\n    return Check("a", False, "it is", '
              f'{text!r})')
    assert all(named(t, IN_MESSAGES) - known() for t in messages(source)
               if len(t) > 10) and len(list(messages(source))) >= 2
    found, = messages(f'def role_faults(x):\n    "setting x"\n    return [{text!r}]')
    assert named(found, IN_MESSAGES) - known()

@pytest.mark.parametrize('text',
                         ['The setting `contxt` is', 'With `quantise = nf4`, it', '--set ruonds=3',
                          'The settings `ray` (the address) and `ray_taks` say'])
def test_a_wrong_name_in_a_document_is_found(text):
    assert named(text, IN_PROSE) - known()

def test_a_word_in_the_place_of_a_list():
    load = lambda **kw: load_settings('smoke', kw, ROOT/'settings.ini')
    assert load(target_modules='all-linear')['target_modules'] == 'all-linear'
    with pytest.raises(Exception, match='must be a list'): load(target_modules='all-liner')
    with pytest.raises(Exception, match='must be a list'): load(eval_splits='unseen')
