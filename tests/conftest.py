"Fixtures: a tiny model, a small project with its own settings and data, a headless browser"
import os, shutil, signal, subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest
from a3t.envs.base import ToyHouse
from browser import Browser, find_browser

ROOT = Path(__file__).resolve().parent.parent
A3T = [sys.executable, '-c', 'import sys; from a3t.cli import main; sys.exit(main())']

# a success, a failure and another task, to train on
WON = ToyHouse.exemplar
LOST = replace(WON, won=False, reward=0.,
               steps=(replace(WON.steps[0], action='go to shelf', observation='At the shelf you see a mug.'),))
OTHER = replace(WON, task='other', goal='another one', steps=WON.steps[:3])

class Project:
    "A folder with `settings.ini`, in which the `a3t` command can run"
    def __init__(self, path, notebooks=None):
        self.path = path
        shutil.copy(ROOT/'settings.ini', path/'settings.ini')
        (path/'data').mkdir()
        (ROOT/'data'/'models').mkdir(parents=True, exist_ok=True)
        (path/'data'/'models').symlink_to(ROOT/'data'/'models')
        self.env = {**os.environ, 'PYTHONPATH':str(ROOT), 'OMP_NUM_THREADS':'1',
                    'A3T_NOTEBOOKS':str(notebooks or ROOT/'nbs'/'stages')}

    def start(self, *args, **kw):
        return subprocess.Popen([*A3T, *args], cwd=self.path, env=self.env, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, encoding='utf-8', **kw)

    def a3t(self, *args, timeout=600, **kw):
        p = self.start(*args, **kw)
        out, err = p.communicate(timeout=timeout)
        return subprocess.CompletedProcess(args, p.returncode, out, err)

    def run(self, name): return self.path/'data'/'runs'/name

LONGEST = ('test_frame.py', 'test_webshop.py', 'test_cluster.py', 'test_models.py') # minutes each

def pytest_collection_modifyitems(items):
    "Run the longest files first, so that two processes end together"
    items.sort(key=lambda i: LONGEST.index(i.path.name) if i.path.name in LONGEST else len(LONGEST))

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A tiny model with random weights"
    from a3t.models.weights import tiny_model
    return tiny_model(tmp_path_factory.mktemp('m')/'tiny')

@pytest.fixture
def project(tmp_path): return Project(tmp_path)

@pytest.fixture(scope='module')
def browser():
    "A headless browser; skipped where there is none"
    if not (path := find_browser()): pytest.skip('no Chromium or Chrome found: install one, or name it in A3T_BROWSER')
    b = Browser(path)
    yield b
    b.close()

def one_line_error(p, contains):
    "Assert that a command failed with exactly one line of error; return it"
    lines = p.stderr.strip().split('\n')
    assert p.returncode == 1, (p.returncode, p.stdout, p.stderr)
    assert len(lines) == 1 and lines[0].startswith('a3t: ') and contains in lines[0], p.stderr
    return lines[0]

@pytest.fixture
def interruptible():
    "SIGINT raises KeyboardInterrupt here, also where the tests run in the background, which ignores it"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
