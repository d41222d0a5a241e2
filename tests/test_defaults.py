"A default of a function and a setting that mean the same have the same value"
import importlib, inspect, pkgutil
import a3t
from a3t.settings import load_settings
from conftest import ROOT

# modules of the method; environments and models decide for themselves
METHOD = ('agents', 'compose', 'accumulate', 'losses', 'data', 'evaluate', 'opening', 'training', 'train')
OTHER_NAMES = dict(budget='explore_budget', most='compositions', least='min_compositions', limit='slots', wave='slots',
                   margin='contrast_margin')
# the same word for another thing: `temperature` of an agent depends on the stage, `rewards` of rows are binary or raw
ANOTHER_THING = {'seed', 'model', 'device', 'temperature', 'rewards'}

def defaults(module):
    "(function, parameter, default) for the public functions and methods of a module"
    own = [x for n,x in vars(module).items() if n[0] != '_' and getattr(x, '__module__', '') == module.__name__]
    methods = [m for c in own if inspect.isclass(c) for m in vars(c).values() if inspect.isfunction(m)]
    for f in [f for f in own if inspect.isfunction(f)] + methods:
        for name,p in inspect.signature(f).parameters.items():
            if p.default not in (p.empty, None): yield f.__qualname__, name, p.default

def test_defaults_do_not_contradict_the_settings():
    settings, wrong, seen = load_settings('paper-alfworld', path=ROOT/'settings.ini'), [], set()
    for m in [m.name for m in pkgutil.walk_packages(a3t.__path__, 'a3t.') if m.name.split('.')[1] in METHOD]:
        for f, name, default in defaults(importlib.import_module(m)):
            key = OTHER_NAMES.get(name, name)
            if key not in settings or name in ANOTHER_THING: continue
            seen.add(key)
            value = list(default) if isinstance(default, tuple) else default
            if value != settings[key]: wrong.append(f'{m}.{f}: {name} = {value!r}, but {key} = {settings[key]!r}')
    assert not wrong, '\n'.join(wrong)
    assert {'p', 'invalid_limit', 'looks', 'compositions', 'explore_budget', 'max_length', 'contrast_floor'} <= seen

def test_training_constants_are_named_in_the_settings(tmp_path):
    "settings.ini states in a comment what only code decides"
    import torch
    from types import SimpleNamespace
    from a3t.train import TrainingSettings, trainer_arguments
    A = trainer_arguments(SimpleNamespace(device=torch.device('cpu')), tmp_path, TrainingSettings())
    text = ' '.join((ROOT/'settings.ini').read_text().replace('\n#', '').split())
    for words in (f'betas {A.adam_beta1} and {A.adam_beta2}', f'weight decay {A.weight_decay:g}',
                  f'clipped to norm {A.max_grad_norm:g}'): assert words in text, words
    assert 'epsilon 1e-8' in text and A.adam_epsilon == 1e-8
