"A tiny shop with WebShop's pages, for tests: three products, one of them hostile"
import re

from a3t.core import A3TError
from a3t.envs.base import TextEnv

EVIL = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
GOODS = {'G000000001':('Red mug', 9.5, dict(color=['red', 'sky blue'], size=['10.5 fl oz | 2 pack', 'large'])),
         'G000000002':('Blue mug & "saucer"', 12., {}), 'G000000003':(EVIL, 1., {EVIL:[EVIL, "it's"]})}
GOALS = {'mug/1':'i need a red mug, size large, and price lower than 20.00 dollars', 'mug/2':f'find {EVIL} for me'}
TABS = ('description', 'features', 'reviews', 'attributes')

class Stall(TextEnv):
    task_types, splits, max_steps = ('mug',), ('train', 'test'), 8
    def tasks(self, split): return sorted(GOALS) if split == 'train' else [f'more/{i:03}' for i in range(60)]
    def reset(self, *, seed=None, options=None):
        self.task = self._task(options)
        if self.task not in GOALS and not re.fullmatch(r'more/\d{3}', self.task):
            raise A3TError(f'unknown task {self.task!r}: `tasks(split)` lists them')
        self.page, self.asin, self.query = 'search', '', ''
        self.chosen, self.n, self.reward = (), 0, 0.
        return self._text(), self._info(True)
    def save(self): return self.task, self.page, self.asin, self.chosen, self.n, self.query, self.reward
    def restore(self, snapshot):
        self.task, self.page, self.asin, self.chosen, self.n, self.query, self.reward = snapshot
        return self._info(True)
    def key(self): return self.task, self.page, self.asin, self.chosen, self.query, self.reward
    @property
    def goal(self): return GOALS.get(self.task, self.task)
    def _labels(self):
        if self.page == 'search': return []
        if self.page == 'results': return ['Back to Search', *GOODS]
        if self.page == 'item':
            return ['Back to Search', '< Prev', *(v for vs in GOODS[self.asin][2].values() for v in vs),
                    *(t.title() for t in TABS), 'Buy Now']
        return [] if self.page == 'done' else ['Back to Search', '< Prev']
    def _info(self, valid):
        acts = ['search[...]'] if self.page == 'search' else [f'click[{x.lower()}]' for x in self._labels()]
        return dict(goal=self.goal, task_type='mug', admissible_actions=acts,
                    won=self.page == 'done' and self.reward == 1, valid=valid)
    def _text(self):
        b = lambda x, c=False: f'[clicked button] {x} [clicked button_]' if c else f'[button] {x} [button_]'
        head = ['Instruction:', self.goal]
        if self.page == 'search': return '\n'.join(['WebShop', *head, b('Search')])
        if self.page == 'results':
            return '\n'.join([*head, b('Back to Search'), f'Page 1 (Total results: {len(GOODS)})',
                              *(x for a,(t,p,_) in GOODS.items() for x in ('', b(a), t, f'${p}'))])
        if self.page == 'done':
            return '\n'.join(['Thank you for shopping with us!', 'Your score (min 0.0, max 1.0)', str(self.reward)])
        if self.page in TABS:
            return '\n'.join([*head, b('Back to Search'), b('< Prev'), f'{self.page} of {GOODS[self.asin][0]}'])
        title, price, options = GOODS[self.asin]
        rows = [x for k,vs in options.items() for x in (k, *('  ' + b(v, v in self.chosen) for v in vs))]
        return '\n'.join([*head, b('Back to Search'), b('< Prev'), *rows, title, f'Price: ${price}', 'Rating: N.A.',
                          *(b(t.title()) for t in TABS), b('Buy Now')])
    def step(self, action):
        self.n += 1
        m = re.fullmatch(r'(search|click)\[(.*)\]', action, re.S)
        valid = bool(m) and ((m[1] == 'search' and self.page == 'search' and bool(m[2].strip()))
                             or (m[1] == 'click' and action in self._info(True)['admissible_actions']))
        if valid: self._go(m[1], m[2])
        return self._text(), self.reward, self.page == 'done', self.n >= self.max_steps, self._info(valid)
    def _go(self, verb, x):
        label = next((v for v in self._labels() if v.lower() == x), x)
        if verb == 'search': self.page, self.query = 'results', x
        elif x == 'back to search': self.page, self.asin, self.chosen = 'search', '', ()
        elif x == '< prev': self.page = 'item' if self.page in TABS else 'results'
        elif label in GOODS: self.page, self.asin, self.chosen = 'item', label, ()
        elif x in TABS: self.page = x
        elif x == 'buy now':
            self.page, self.reward = 'done', float(self.asin == 'G000000001'
                                                   and set(self.chosen) == {'red', 'large'}) or .5
        else: self.chosen = (*self.chosen, label)
