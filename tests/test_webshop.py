"""WebShop: the original's rewards, goals, searches and pages; bad data, bad actions, many episodes"""
import json, lzma, os, random, tracemalloc
import numpy as np
from dataclasses import replace
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from a3t.accumulate import read
from a3t.agents import Wording, rollout, sample_action
from a3t.core import A3TError, Step
from a3t.files import read_json
from a3t.settings import load_settings
from a3t.doctor import check_environment_data

from a3t.envs.webshop import env as webshop_env, evidence, scripts
from a3t.envs.webshop.evidence import asked
from a3t.envs.webshop.catalogue import *
from a3t.envs.webshop.reward import *
from a3t.envs.webshop.shop import *
from a3t.envs.webshop.env import *
from a3t.envs.webshop import *
from a3t.envs.webshop.baselines import *
from a3t.envs.base import load_environment, play
from a3t.envs.panel import Panel
from a3t.envs.contract import check_environment, replay_equal
from a3t.opening.imitate import Skeletons, imitate
from a3t.opening.explore import explore, shrink, wins
from a3t.opening.search import SearchPrior, add_search
from a3t.opening import first_successes
from a3t.envs.webshop.generator import generate_shop
from a3t.prompts import parse_step, render_step
from a3t.scoring.players import Function

ROOT = Path(__file__).parents[1]
PLACES = [Path(p) for p in (os.environ.get('WEBSHOP_DATA'), ROOT/'data'/'webshop',
                            Path(os.environ.get('A3T_SHARED') or ROOT.parent/'shared')/'data'/'webshop') if p]
DATA = next((p for p in PLACES if (p/'reward_reference.json.xz').exists()), None)
needs_data = pytest.mark.skipif(DATA is None,
                                reason="needs WebShop's products and reference values: put them into data/webshop or "
                                       "set WEBSHOP_DATA to their folder")

@pytest.fixture(scope='session')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('shops')

@pytest.fixture(scope='session')
def source(folder): return generate_shop(seed=3, products=200, folder=folder)

@pytest.fixture(scope='session')
def shop(folder, source): return Shop(prepare_shop(source, folder/'prepared'))

@pytest.fixture(scope='session')
def official(folder): return Shop(prepare_shop(DATA, folder/'prepared'))

def reference(name): return read_file(DATA/f'{name}.json.xz')
def as_goal(g):
    return Goal(g['asin'], g['instruction_text'], tuple(g['attributes']), g['goal_options'], g['price_upper'],
                g['query'], g['name'], g['product_category'], '')

# -- what the original computes

@needs_data
def test_rewards_of_the_original(official):
    ref = reference('reward_reference')
    assert len(ref['rows']) > 400
    for row in ref['rows']:
        goal = as_goal(row['goal'])
        r, parts = shop_reward(official.product(row['asin']), goal, row['price'], row['options'],
                               ref['title_nouns'][goal.asin])
        assert r == row['reward'] and {k:parts.get(k) for k in row['info']} == row['info'], row
        assert tuple(ref['title_nouns'][row['asin']]) == official.product(row['asin']).nouns

@needs_data
def test_searches_of_the_original(official):
    ref = reference('search_reference')
    sets = sum(set(official.hits(q)) == {i for i,_ in hits} for q,hits in ref.items())
    order = sum(list(official.hits(q)) == [i for i,_ in hits] for q,hits in ref.items())
    assert sets >= .995*len(ref) and order >= .99*len(ref), (sets, order, len(ref))
    for q, hits in ref.items():
        scores = dict(official.index.search(q))
        assert all(abs(scores[i] - s) < 1e-3 for i,s in hits)

@needs_data
def test_goals_of_the_original(official):
    cut = lambda text: webshop_env._PRICE.sub('', text)
    for kind in INSTRUCTIONS:
        given_, order = official._given[kind], np.load(official.folder/f'{kind}.npy')
        assert len(given_) == len(order)
        for g,(d, n) in zip(given_, order): # our own goals, in the original's order; only the price limits are its own
            goal = make_goal(official._unpack(int(d)), kind, int(n), official.price(g['asin']))
            options = goal.options if kind == 'synthetic' else list(goal.options)
            ours = goal.asin, cut(goal.text), list(goal.attributes), options, goal.query, goal.path
            assert ours == (g['asin'], cut(g['instruction_text']), g['attributes'], g['goal_options'], g['query'],
                            g['product_category'])

@needs_data
@pytest.mark.parametrize('player, reward, success',
                         [(first_product, 57.1, 2.2), (substring_options, 79.5, 56.6), (oracle, 99.4, 96.)])
def test_baselines_of_the_original(official, player, reward, success):
    env = WebShop(official, max_steps=30, instructions='synthetic', split_by='index')
    done = [play(env, t, player(env)) for t in env.tasks('test')]
    got = 100*sum(t.reward for t in done)/len(done), 100*sum(t.won for t in done)/len(done)
    assert len(done) == 500 and (round(got[0], 1), round(got[1], 1)) == (reward, success), got

@pytest.mark.parametrize('form', PAGES)
@pytest.mark.parametrize('agent', [scripts.first_hit, scripts.best_hit])
def test_scripts_buy_with_listed_actions(shop, form, agent):
    make = lambda: WebShop(shop, pages=form)
    done = rollout(make, list(make().panel('test', 8)), Function(agent))
    assert all(s.valid for t in done for s in t.steps), 'every action is one that the page offers'
    assert all(t.actions[-1] == 'click[buy now]' for t in done) and any(t.won for t in done)
    looks = [len({a for _,a in scripts.opened(t)}) for t in done]
    assert set(looks) == {1} if agent is scripts.first_hit else max(looks) == scripts.LOOKS

def test_scripts_pass_over_expensive_products():
    page = 'Page 1 (Total results: 3) | Next > | b1 | Mug | $1,040.0 | b2 | Mug | $9.99 to $80.0 | b3 | Mug | $20'
    clicks = [f'click[b{i}]' for i in (1, 2, 3)]
    assert scripts.candidates('a mug, and price lower than 30.00 dollars', page, clicks) == clicks[1:]
    assert scripts.candidates('a mug, and price lower than 5.00 dollars', page, clicks) == clicks
    assert scripts.candidates('a mug', page, clicks) == clicks

@needs_data
def test_buying_the_exact_target(official):
    goals, rate = Goals(official, 'synthetic'), {}
    for r in REWARDS:
        won = [official.reward(g.asin, g, g.options, r)[0] == 1 for g in map(goals.__getitem__, goals)]
        rate[r] = 100*sum(won)/len(won)
    assert abs(rate['original'] - 93.4) < .1 and rate['fixed'] == 100, rate

@needs_data
def test_the_official_environment(official):
    for kind, by in (('synthetic', 'product'), ('synthetic', 'index'), ('human', 'product')):
        check_environment(WebShop(official, instructions=kind, split_by=by))
    assert all(c.ok for c in check_data(official, instructions='synthetic', split_by='index', max_steps=15))
    assert [c.what for c in check_data(official, split_by='index') if not c.ok] == ['WebShop instructions']

# -- pages, word for word

ITEM = dict(asin='B000000001', name='Mug & Spoon <b>"set"</b>', category='garden', query=' Mugs ',
            product_category='Home › Kitchen › Mugs', pricing='$5.0 - $7.5', full_description='Holds  tea. ',
            small_description=['Big ', ''],
            customization_options={'Color':[{'value':'Navy/White'}, {'value':'28" wide'}], 'Size':None})

def small(tmp_path, items, tags=None, asked=None, **files):
    source = tmp_path/'source'
    source.mkdir(exist_ok=True)
    for name, content in dict(items_shuffle=items, items_ins_v2=tags or {}, items_human_ins=asked or {},
                              **files).items():
        (source/f'{name}.json').write_text(json.dumps(content))
    return Shop(prepare_shop(source, tmp_path/'prepared'))

def ask(*asins):
    return {a:[dict(instruction=f'i want {a}.', instruction_attributes=['big'], instruction_options=['navy | white'])]
            for a in asins}

@pytest.fixture
def mug(tmp_path):
    items = [ITEM] + [dict(ITEM, asin=f'B00000000{i}', name=f'Mug {i}') for i in range(2, 4)]
    return small(tmp_path, items, {i['asin']:dict(attributes=['big']) for i in items}, ask(*(i['asin'] for i in items)))

def pages(shop, form, actions):
    env = WebShop(shop, pages=form)
    goal = next(t for s in env.splits for t in env.tasks(s) if 'B000000001' in t)
    obs, info = env.reset(options={'task':goal})
    return env, info['goal'], [obs] + [env.step(a)[0] for a in actions]

WALK = ['search[mug spoon]', 'click[b000000001]', 'click[navy | white]', 'click[description]', 'click[< prev]',
        'click[features]', 'click[< prev]', 'click[reviews]', 'click[< prev]', 'click[buy now]']

def test_text_pages(mug):
    env, goal, got = pages(mug, 'text', WALK)
    head = f'Instruction: [SEP] {goal} [SEP] Back to Search'
    item = (f'{head} [SEP] < Prev [SEP] color [SEP] navy | white [SEP] 28" wide [SEP] Mug & Spoon <b>"set"</b> [SEP] '
            f'Price: $5.0 to $7.5 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now')
    results = (f'{head} [SEP] Page 1 (Total results: 3) [SEP] Next > [SEP] B000000001 [SEP] Mug & Spoon <b>"set"</b> '
               f'[SEP] $5.0 to $7.5')
    assert got[0] == f'WebShop [SEP] Instruction: [SEP] {goal} [SEP] Search'
    assert got[1].startswith(results) and got[2] == got[3] == got[5] == item
    assert (got[4] == f'{head} [SEP] < Prev [SEP] Holds  tea.' and got[6] == f'{head} [SEP] < Prev [SEP] Big [SEP] '
            and got[8] == f'{head} [SEP] < Prev')
    assert got[10].startswith('Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] (Paste it in your '
                              'MTurk interface.) [SEP] Purchased [SEP] asin [SEP] B000000001 [SEP] options [SEP] '
                              '{"color": "navy | white"} [SEP] attrs')
    assert got[10].endswith('Reward [SEP] Your score (min 0.0, max 1.0) [SEP] 1.0 [SEP] Reward Details [SEP] None')

def test_rich_pages(mug):
    env, goal, got = pages(mug, 'text_rich', WALK[:3] + ['click[< prev]'])
    head = f'Instruction:\n{goal}\n[button] Back to Search [button_]\n'
    tail = ('Mug & Spoon <b>"set"</b>\nPrice: $5.0 to $7.5\nRating: N.A.\n[button] Description [button_]\n[button] '
            'Features [button_]\n[button] Reviews [button_]\n[button] Buy Now [button_]\n')
    assert got[0] == f'WebShop\nInstruction: \n{goal}\n[button] Search [button_]\n'
    assert got[1].startswith(f'{head}Page 1 (Total results: 3)\n[button] Next > [button_]\n\n[button] B000000001 '
                             f'[button_]\nMug & Spoon <b>"set"</b>\n$5.0 to $7.5\n')
    assert (got[2] == f'{head}[button] < Prev [button_]\ncolor\n  [button] navy | white [button_]\n  [button] 28" wide '
                      f'[button_]\n{tail}')
    assert (got[3] == f'You have clicked navy | white.\n{head}[button] < Prev [button_]\ncolor\n  [clicked button] '
                      f'navy | white [clicked button_]\n  [button] 28" wide [button_]\n{tail}')
    assert '\n[clicked button] B000000001 [clicked button_]\n' in got[4]

def test_what_the_original_does_with_odd_actions(mug):
    env, goal, _ = pages(mug, 'text', [])
    step = lambda a: (lambda o, r, te, tr, i: (env.page, i['valid']))(*env.step(a))
    for action in ('click[search]', 'search[]', 'Search[mug]', 'click[buy now]'):
        assert step(action) == ('search', False), action
    assert step('search[MUG]') == ('results', True) and env.query == 'mug'
    # it is always there, and leads to empty pages
    assert step('click[Next >]') == ('results', True) and env.number == 2 and not env._shown()
    assert step('click[< prev]') == ('results', True) and env.number == 1
    assert step('click[< prev]') == ('results', False)
    assert step('click[B000000001]') == step('click[28" wide]') == ('item', True)
    assert env.options == {'color':'28" wide'}
    assert step('click[navy | white] because it is blue') == ('item', True) and env.options == {'color':'navy | white'}
    assert step('search[spoon]') == ('results', True) and env.options == {} and env.seen == {'B000000001'}
    assert step('search[a] click[b]') == ('results', False) and step('search[a\nb]') == ('results', False)
    assert step('click[back to search]') == ('search', True) and not env.seen

def test_reviews_and_rating(tmp_path):
    items = [dict(ITEM, asin=f'B{i}') for i in range(4)]
    shop = small(tmp_path, items, {}, ask('B0', 'B1', 'B2', 'B3'),
                 reviews=[dict(asin='B0', average_rating='4.5',
                               reviews=[dict(title='Good', stars='5', review='I like it.')])])
    env = WebShop(shop)
    env.reset(options={'task':env.tasks('train')[0]})
    env.step('search[mug]')
    assert 'Rating: 4.5' in env.step('click[b0]')[0]
    assert env.step('click[reviews]')[0].endswith('"Good" [SEP] 5 [SEP] I like it.')

def test_html_in_a_title_stays_text(mug):
    env, _, _ = pages(mug, 'text', ['search[mug spoon set]'])
    assert '<b>"set"</b>' in env.text()

# -- the environment

def test_contract(shop):
    for form in PAGES:
        for kind in INSTRUCTIONS:
            for split in SPLITS: check_environment(WebShop(shop, instructions=kind, pages=form), split)

def test_exemplar_is_what_a_real_shop_answers(tmp_path):
    shop = small(tmp_path, MINI_ITEMS, MINI_TAGS, {**MINI_ASKED, **ask('MINI000002', 'MINI000003')},
                 product_prices={'MINI000004':12.})
    for form in PAGES:
        env = WebShop(shop, pages=form)
        ours, task = exemplar(form), next(t for s in SPLITS for t in env.tasks(s) if 'MINI000001' in t)
        assert shop.hits(ours.steps[0].action[7:-1]) == webshop_env.MiniShop().hits('')
        env.goals._stored[ours.task] = None
        assert replay_equal(ours, play(env, ours.task, ours.actions)), task
        assert ours.won and all(s.reason for s in ours.steps)

def test_snapshots(shop):
    env, rng = WebShop(shop, max_steps=10**9), random.Random(0)
    _, info = env.reset(options={'task':env.tasks('train')[5]})
    for _ in range(300):
        snapshot, key, page = env.save(), env.key(), env.text()
        action = rng.choice(info['admissible_actions'])
        after = env.step(action)[:2]
        assert env.restore(snapshot)['admissible_actions'] == info['admissible_actions']
        assert (env.save(), env.key(), env.text()) == (snapshot, key, page) and env.step(action)[:2] == after
        info = env.restore(env.save())

def test_reward_and_end(shop):
    env = WebShop(shop)
    for t in env.tasks('test')[:20]:
        traj = play(env, t, oracle(env))
        assert traj.won == (traj.reward == 1) and traj.steps[-1].action == 'click[buy now]'
    env.reset(options={'task':t})
    ends = [env.step('nonsense')[2:4] for _ in range(15)]
    assert ends[-1] == (False, True) and not any(a or b for a,b in ends[:-1])

def test_goals_do_not_depend_on_the_process(shop, source, folder):
    env, again = WebShop(shop), WebShop(Shop(prepare_shop(source, folder/'prepared')))
    random.seed(5)
    for t in env.tasks('train')[:50]: assert env.goals[t] == again.goals[t]
    assert env.tasks('test') == again.tasks('test')

def test_no_product_is_in_two_splits(shop):
    for kind in INSTRUCTIONS:
        sets = [{t.split('/')[1].rsplit('-', 1)[0] for t in Goals(shop, kind).tasks(s)} for s in SPLITS]
        assert all(sets) and len(set.union(*sets)) == sum(map(len, sets))

def test_searches_come_from_the_instruction(shop):
    for kind in INSTRUCTIONS:
        goals = Goals(shop, kind)
        for t in list(goals)[:100]:
            text = goals[t].text
            found = searches(text)
            assert 1 <= len(found) <= 12 and all(f in ' '.join(text.lower().split()) for f in found)
            assert not any('price lower' in f for f in found)
    assert searches(', and price lower than 10.00 dollars') and searches('[]') and searches('') == ('product',)

def test_settings(shop, monkeypatch, tmp_path):
    for bad in (dict(pages='html'), dict(rewards='best'), dict(instructions='none'), dict(split_by='luck')):
        with pytest.raises(A3TError): WebShop(shop, **bad)
    env = load_environment('webshop', games=str(shop.meta['source']), max_steps=3, pages='short')
    assert env.max_steps == 3 and env.pages == 'short'
    monkeypatch.setenv('WEBSHOP_DATA', str(tmp_path))
    with pytest.raises(A3TError, match='items_shuffle'): load_environment('webshop', games='official')
    assert not check_data('official')[0].ok and 'download' in check_data('official')[0].fix

# -- what is played

def test_a_panel_holds_what_a_task_is_made_of(tmp_path):
    build = lambda **change: WebShop(small(tmp_path,
                                           [dict(ITEM, **change)] + [dict(ITEM, asin=f'B00000000{i}') for i in (2, 3)],
                                           {}, ask('B000000001', 'B000000002', 'B000000003')))
    old = build()
    task = next(t for s in SPLITS for t in old.tasks(s) if 'B000000001' in t)
    panel = Panel(old.manifest([task, 'train/none-0']))
    assert list(panel) == [task]
    panel.check(old)
    for change in (dict(name='Cup'), dict(pricing='$6.0'), dict(customization_options={'Color':[{'value':'red'}]}),
                   dict(product_category='Home'), dict(small_description=['Small'])):
        with pytest.raises(A3TError, match='changed: .*B000000001'): panel.check(build(**change))
    other = build()
    other.goals._stored[task] = dict(asin='B000000001', instruction_text='i want it', attributes=['big'],
                                     goal_options=[], price_upper=10., query='mugs', name='Mug',
                                     product_category='Home', category='garden')
    with pytest.raises(A3TError, match='changed'): panel.check(other)

# -- A3T on it

def test_verbs(shop):
    env = WebShop(shop)
    goal = "i need a green linen cloth, 60x84 inches, and price lower than 60.00 dollars"
    for action, verb in (('search[green linen cloth, 60x84 inches]', 'search'), ('search[cloth]', 'part'),
                         ('click[buy now]', 'buy'), ('click[reviews]', 'more'), ('click[next >]', 'away'),
                         ('click[green]', 'asked'), ('click[een]', 'option'), ('click[60]', 'option'),
                         (f'click[{shop.index._ids[0].decode().lower()}]', 'product'), ('click[mini000001]', 'product'),
                         ('nonsense', 'option')):
        assert env.verb(action, goal) == verb and env.form(action, goal) == (verb, ()), action
    assert webshop_env.mentions('size 8, black', '8')
    assert not webshop_env.mentions('size 8.5', '8') and not webshop_env.mentions('28 inch', '8')
    assert (env.things('click[navy | white]') == ['navy | white'] and env.kind('pack 3') == 'pack 3'
            and env.things('xyzzy') == [''])

def test_verbs_read_the_instruction_alone(shop):
    "What a goal means is hidden: actions are told apart by the text that the agent reads, for whatever goal"
    env = WebShop(shop)
    task = env.tasks('train')[0]
    env.reset(options={'task':task})
    goal, env.goal = env.goal.text, None
    assert [env.verb(f'search[{s}]', goal) for s in searches(goal)] == ['search'] + ['part']*(len(searches(goal)) - 1)

def test_sampling_is_by_verb(shop):
    env, rng = WebShop(shop), random.Random(0)
    actions = [f'click[{i}]' for i in range(99)] + ['click[buy now]']
    assert 300 < sum(sample_action(rng, actions, env.verb) == 'click[buy now]' for _ in range(1000)) < 700

@pytest.fixture(scope='module')
def explored(shop):
    "Sixteen training tasks, their successes from sampled actions and from imitation"
    env = WebShop(shop, max_steps=10**9, pages='short')
    tasks = list(env.panel('train', 16))
    found = {t:shrink(env, t, a) for t in tasks if (a := explore(env, t, 3000)[0])}
    return env, tasks, found

def test_sampled_actions_find_successes(explored):
    env, tasks, found = explored
    assert len(found) >= 8
    for t,a in found.items(): assert wins(env, t, a) == len(a) and a[-1] == 'click[buy now]'

def test_what_won_wins_other_tasks(explored):
    env, tasks, found = explored
    skeletons = Skeletons(env, [(env.goals[t].text, a) for t,a in found.items()])
    assert all(steps[-1][0] == 'buy' and not names for steps,names in skeletons.kinds)
    won = steps = 0
    for t in found:
        others = Skeletons(env, [(env.goals[u].text, a) for u,a in found.items() if u != t])
        way, n = imitate(env, t, others, 3000)
        assert way is None or wins(env, t, way) == len(way)
        won, steps = won + bool(way), steps + n
        assert imitate(env, t, others, 3000) == (way, n)
    assert won >= .7*len(found), (won, len(found), steps)

def test_first_successes_are_short_and_repeatable(explored):
    env, tasks, found = explored
    task = next(iter(found))
    made = first_successes(env, task, 3000, looks=0, max_steps=15)
    assert made and made == first_successes(env, task, 3000, looks=0, max_steps=15)
    assert made[0].won and made[0].reward == 1 and len(made[0]) <= 15

def test_reasons_name_what_is_clicked_or_asked_for(explored):
    env, tasks, found = explored
    w = Wording(env.exemplar, env)
    for i,s in enumerate(env.exemplar.steps):
        assert s.reason in w.sentences(replace(env.exemplar, steps=env.exemplar.steps[:i]), s.action)
    for t,a in found.items():
        traj = play(env, t, a)
        for i,s in enumerate(traj.steps):
            said = w.sentences(replace(traj, steps=traj.steps[:i]), s.action)
            assert said and not any(name in x for x in said for name in ('linen', 'mini0', '60x84')), (s.action, said)
            if env.verb(s.action, traj.goal) in ('search', 'part', 'product', 'asked', 'option'):
                assert all(env.things(s.action)[0] in x for x in said)

def test_a_product_above_the_limit_has_a_form_of_its_own(shop):
    env = WebShop(shop)
    asin = next(a.decode() for a in shop.index._ids if shop.product(a.decode()).pricing)
    price, click = shop.product(asin).pricing[0], f'click[{asin.lower()}]'
    form = lambda limit: env.form(click, f'i need a cloth, and price lower than {limit:.2f} dollars')[0]
    assert (form(price + 1), form(price - .01), env.form(click, 'i need a cloth')[0]) == ('product', 'dear', 'product')

def test_options_come_in_the_order_of_the_instruction(shop):
    env, goal = WebShop(shop), 'i need a cloth, size 60x84 inches, color green, and price lower than 60.00 dollars'
    clicks = ['search[cloth]', 'click[60 x 84 inch]', 'click[green]', 'click[red]', 'click[buy now]']
    ranks = [env.rank(a, goal) for a in clicks]
    assert ranks == sorted(ranks) and ranks[0] == 0 < ranks[1] < ranks[2] < ranks[3]

def mini_shop():
    mini = WebShop.__new__(WebShop)
    vars(mini).update(shop=MiniShop(), max_steps=15, pages='short', rewards='original')
    mini.goals = MiniGoals(mini.shop)
    return mini

def test_a_part_of_a_longer_option_is_not_asked_for():
    sizes = dict(Size=[dict(value=v) for v in ('small', 'large', 'large tall')])
    env = mini_shop()
    env.shop.product = lambda asin: make_product(dict(MINI_ITEMS[0], customization_options=sizes), {}, ())
    forms = [env.form(f'click[{v}]', f'a shirt in size {wanted}')[0]
             for wanted in ('large', 'large tall') for v in ('large', 'large tall')]
    assert forms == ['asked', 'option', 'option', 'asked']

@pytest.mark.parametrize('goal, options, wanted', [
    ('a shirt with color: r.brown2070, and size: 7', ['r.brown2070', '7'], ['r.brown2070', '7']),
    ('shoes, 228r.brown, and size: 10.5', ['228r.brown', '228r.brown-a', '10.5'], ['228r.brown', '10.5']),
    ('a cloth in navy blue, 60x84 inches', ['blue', 'navy blue', '60 x 84 inch'], ['60 x 84 inch', 'navy blue'])])
def test_options_are_read_word_by_word(goal, options, wanted):
    assert asked(goal, options) == wanted
    clicks = scripts.asked_clicks(goal, [f'click[{x}]' for x in options], evidence.phrase)
    assert clicks == [f'click[{x}]' for x in wanted]

def test_the_price_limit_asks_for_no_option(monkeypatch):
    env = mini_shop()
    monkeypatch.setattr(evidence, '_MINI', env.shop)
    options = dict(Size=[dict(value='3000'), dict(value='small')])
    env.shop.product = lambda asin: make_product(dict(MINI_ITEMS[0], customization_options=options), {}, ())
    start = replace(exemplar(), goal='a cloth, and price lower than 30.00 dollars', steps=exemplar().steps[3:4])
    assert evidence.chosen(env.shop, start)
    assert scripts.asked_clicks(start.goal, ['click[3000]', 'click[small]'], evidence.phrase) == []
    assert evidence.phrase('a pack of 1,000 count', '1000 count') and not evidence.phrase('in 10, 00 of them', '1000')

def test_commands_are_read_as_the_shop_reads_them():
    names = ('click[60 x 84 inch] and look', 'click[a [b]]', 'search[cloth]', 'look', 'click[]')
    assert [evidence.inside(a) for a in names] == ['60 x 84 inch', 'a [b]', 'cloth', '', '']

@pytest.mark.parametrize('sep', [' | ', ' [SEP] ', '\n'])
def test_options_are_counted_in_each_form_of_a_page(sep):
    goal = 'Find me a cloth with color: coral, and size: large'
    pieces = ['Instruction:', goal, '< Prev', 'color', 'coral', 'ivory', 'size', 'small', 'Buy Now']
    if sep == '\n': pieces = [f'  [button] {p} [button_]' for p in pieces]
    assert scripts.options_there(goal, sep.join(pieces)) == 1

@pytest.mark.parametrize('agent', [scripts.first_hit, scripts.best_hit])
def test_scripts_survive_a_search_without_hits(agent):
    env = mini_shop()
    env.shop.hits = lambda query: ()
    (obs, info), made = env.reset(options={'task':exemplar().task}), []
    for _ in range(8):
        history = replace(exemplar(), observation=obs, steps=tuple(made))
        action = agent(history, info)
        o, *_, info = env.step(action)
        made.append(Step('', action, o, 'policy', info['valid']))
    assert all(s.valid for s in made) and len({s.action for s in made}) > 3

def test_no_purchase_without_the_options_that_are_asked_for():
    env, actions = mini_shop(), exemplar().actions
    bought = [play(env, exemplar().task, [actions[0], actions[1], actions[2], actions[3], *more, actions[-1]])
              for more in ((), actions[6:7], actions[6:8])]
    assert [env.leaps(t) for t in bought] == [True, True, False]

def test_a_search_shows_why_it_goes_on(explored):
    env, tasks, found = explored
    made = [play(env, t, a) for t,a in found.items()]
    mini = mini_shop()
    straight = play(mini, mini.exemplar.task, [a for a in mini.exemplar.actions[3:] if a not in NAVIGATION])
    straight = play(mini, mini.exemplar.task, [mini.exemplar.actions[0], *straight.actions])
    for world, t in [(env, t) for t in made] + [(mini, straight)]:
        t = add_search(world, t, 4, SearchPrior(world, made if world is env else [t]), 0)
        before = [replace(t, steps=t.steps[:i]) for i in range(len(t.steps))]
        left = lambda h, s: s.action == 'click[< prev]' and 'Buy Now' in h.steps[-1].observation
        back = [h for h,s in zip(before, t.steps) if left(h, s)]
        assert env.leaps(t) or t.won and all(world.details(h, 'click[< prev]') for h in back)
    (h,) = back
    assert Wording(mini.exemplar, mini).sentences(h, 'click[< prev]') == [mini.exemplar.steps[2].reason]

def test_what_no_page_explains_leaps(shop):
    env = WebShop(shop, pages='short')
    for task in env.tasks('train'):
        env.reset(options={'task':task})
        search = f'search[{searches(env.goal.text)[0]}]'
        hits = [h for h in shop.hits(searches(env.goal.text)[0])[:10]
                if env.form(f'click[{h.lower()}]', env.goal.text)[0] == 'product']
        if len(hits) > 1: break
    first, second = (f'click[{h.lower()}]' for h in hits[:2])
    leaps = lambda *actions: env.leaps(play(env, task, [search, *actions]))
    assert not leaps(first) and leaps(second) and leaps(first, 'click[back to search]', search)
    lacks = bool(env.details(play(env, task, [search, first]), 'click[< prev]'))
    assert leaps(first, 'click[< prev]', second) is not lacks

def test_searches_leave_the_asking_out():
    request = lambda text: searches(text)[0]
    asked = 'i am in search of a hair mask for split ends please, and price lower than 20.00 dollars'
    assert request(asked) == 'hair mask for split ends'
    assert request("help me find an ivory women's tank top") == "ivory women's tank top"

@pytest.mark.parametrize('preset', ['cpu-webshop', 'paper-webshop'])
def test_presets(preset):
    S = load_settings(preset, path=ROOT/'settings.ini')
    assert (S['environment'], S['max_steps'], S['success_threshold']) == ('webshop', 15, 1.)
    if preset == 'paper-webshop':
        assert (S['min_compositions'], S['stop_successes'], S['compositions'], S['train_tasks'], S['rounds'],
                S['games'], S['pages']) == (3, 1, 20, 2300, 4, 'official', 'text')
    env = load(games='generated', **{k:S[k] for k in ('max_steps', 'generator', 'instructions', 'pages', 'rewards')})
    assert S['eval_tasks'] == 0 or 100 <= S['eval_tasks'] <= len(env.tasks(S['eval_splits'][0]))

def test_the_doctor_looks_at_the_files(monkeypatch, tmp_path):
    monkeypatch.setenv('WEBSHOP_DATA', str(tmp_path))
    (bad,) = check_environment_data(load_settings('paper-webshop', path=ROOT/'settings.ini'))
    assert not bad.ok and 'items_shuffle' in bad.found and 'WEBSHOP_DATA' in bad.fix
    monkeypatch.setenv('A3T_DATA', str(tmp_path))
    assert all(c.ok for c in check_environment_data(load_settings('cpu-webshop', path=ROOT/'settings.ini')
                                                    | dict(generator=dict(products=60))))

@pytest.mark.slow
def test_the_whole_loop_runs(project):
    sets = dict(environment='webshop', engine='', explore_engine='', games='generated', generator=dict(products=120),
                pages='short', max_steps=8, patience=3, eval_splits=['test'], looks=0,
                rounds=2, train_tasks=8, eval_tasks=4, round_tasks=3, compositions=3, min_compositions=1,
                stop_successes=1, compose_tasks='all', explore_budget=1500, max_length=4096)
    p = project.a3t('run', 'smoke', '--name', 'shop', '--set', *(f'{k}={v}' for k,v in sets.items()))
    assert p.returncode == 0, p.stderr
    report = read_json(project.run('shop')/'report.json')
    assert [r['explore']['tasks'] for r in report['rounds']] == [8, 3] and not report['missing']
    assert report['rounds'][0]['explore']['solved'] >= 2
    for score in (*report['baselines'].values(), *(r['splits']['test'] for r in report['rounds']),
                  report['accumulated']['test']):
        assert score['n'] == 4 and score['reward_ci95'][0] <= score['reward'] <= score['reward_ci95'][1]
    made = read(project.run('shop')/'round_00'/'trajectories') + read(project.run('shop')/'round_01'/'trajectories')
    assert all(s.reason for t in made for s in t.steps if s.actor == 'sampled')
    assert {t.source for t in made} == {'explored', 'policy', 'composed'}
    assert len({t.task for t in made if t.source == 'composed'}) == 3 # also where the policy won
    assert all(t.won == (t.reward == 1) for t in made)

# -- rewards

P = Product('A', 'Standing Desk', 'A desk.', ('Solid wood.',), 'garden', 'desks', 'Home › Office › Desks', (50.,),
            {'color':('tan', 'red'), 'size':('6', '6.5')}, ('easy assemble',), ('standing', 'desk'))
G = Goal('A', '', ('easy assembly', 'solid wood'), {'size':'6', 'fit type':'standard'}, 60., 'desks', P.title, P.path,
         'garden')

def test_parts_of_the_reward():
    # 'standard' contains 'tan': the bought side becomes a colour, the goal's does not
    assert shop_reward(P, G, 50., {'size':'6', 'fit type':'standard'}, P.nouns)[0] == .8
    assert shop_reward(P, G, 50., {'size':'6', 'fit type':'standard'}, P.nouns, 'fixed')[0] == 1
    six, none = replace(G, options=('6',)), replace(G, options=())
    assert shop_reward(P, six, 50., {'size':'6.5'}, P.nouns)[0] == 1
    assert shop_reward(P, six, 50., {'size':'6.5'}, P.nouns, 'fixed')[0] == .75
    reward, parts = shop_reward(P, none, 60.01, {}, P.nouns)
    assert reward == 2/3 and 'r_option' not in parts
    other = replace(P, query='x', path='y')
    for nouns, r in (((), .5), (('desk',)*6, .5), (('desk',)*4, 1.), (('desk',)*11, .1), (('lamp',), 0.)):
        assert type_reward(other, G, nouns)['r_type'] == r, nouns
    near = replace(P, query='x', path='Home › Office')
    assert type_reward(P, G, ())['r_type'] == type_reward(near, G, ('desk',)*6)['r_type'] == 1
    with pytest.raises(A3TError): shop_reward(P, G, 1., {}, (), 'other')

@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=4),
       st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=4), st.floats(0, 1e6),
       st.lists(st.text(max_size=10), max_size=8))
def test_a_reward_is_between_0_and_1(attributes, options, price, nouns):
    for wanted in (options, tuple(options.values())):
        for r in REWARDS:
            assert 0 <= shop_reward(P, replace(G, attributes=tuple(attributes), options=wanted), price, options, nouns,
                                    r)[0] <= 1

# -- bad data

def test_broken_files(tmp_path, source):
    files = shop_sources(source)
    for text, why in (('[{"asin": "A"}, {"as', 'cut short'), ('{"asin": 3', 'cut short'), ('[1, 2]', 'should be'),
                      ('', 'cut short'), ('[]', 'no products')):
        (tmp_path/'items_shuffle.json').write_text(text); (tmp_path/'items_ins_v2.json').write_text('{}')
        with pytest.raises(A3TError, match=why): prepare_shop(tmp_path, tmp_path/'p')
    (tmp_path/'items_shuffle.json').write_text(json.dumps([ITEM])); (tmp_path/'items_ins_v2.json').write_text('{"a')
    with pytest.raises(A3TError, match='not valid JSON'): prepare_shop(tmp_path, tmp_path/'p')
    (tmp_path/'items_shuffle.json').unlink()
    packed = lzma.compress(files['items'].read_bytes())
    (tmp_path/'items_shuffle.json.xz').write_bytes(packed[:len(packed)//2])
    with pytest.raises(A3TError, match='cut short'): prepare_shop(tmp_path, tmp_path/'p')
    assert not list((tmp_path/'p').glob('*'))
    with pytest.raises(A3TError, match='items_shuffle'): shop_sources(tmp_path/'nowhere')

def test_odd_products(tmp_path):
    items = [dict(asin='A1'), dict(asin='A1', name='again'), dict(asin='nan'), dict(asin='toolong12345'),
             dict(ITEM, asin='A2', small_description='One text', full_description=None, images=None, pricing=None),
             dict(ITEM, asin='A3', name='\x00\x1b[31m\ud83d<script>', customization_options={'Color':[]})]
    shop = small(tmp_path, items, {'A1':None,
                                   'A3':dict(attributes=[], instruction='Find me', instruction_attributes=['x'])},
                                   ask('A1', 'A2', 'A3'))
    assert len(shop) == 4 and shop.product('toolong12345') and shop.product('A1').attributes == ('DUMMY_ATTR',)
    assert shop.product('A2').bullets == ('One text',) and shop.product('A2').price_tag == '$100.0'
    assert shop.product('A3').combinations == 0 and shop.meta['goals'] == dict(human=3, synthetic=0)
    for form in PAGES: check_environment(WebShop(shop, pages=form), 'test')
    for name in ('A9', '', 'é', '\ud800', 'A'*5000):
        with pytest.raises(A3TError, match='no product'): shop.product(name)

# -- what is offered can be written, read and played

def offered(shop):
    """Every action that an item page of each product offers → (number of them, those that are not understood once they
    were written and read)"""
    env, n, refused = WebShop(shop, max_steps=10**9), 0, []
    env.reset(options={'task':next(t for s in SPLITS for t in env.tasks(s))})
    for asin in map(bytes.decode, shop.index._ids):
        env.page, env.asin = 'item', asin
        env.options, env.query = {}, 'x'
        snapshot = env.save()
        for a in env.restore(snapshot)['admissible_actions']:
            env.restore(snapshot)
            written = parse_step(render_step('', a))[1]
            n, refused = n + 1, refused + [(asin, a)]*(written != a or not env.step(written)[-1]['valid'])
    return n, refused

@needs_data
def test_every_offered_action_of_the_original_is_understood(official):
    assert offered(WebShop(official, instructions='synthetic').shop) == (9497, [])

def test_every_offered_action_of_a_generated_shop_is_understood(shop):
    n, refused = offered(shop)
    assert n > 1500 and not refused

ODD = ['a\xa0b', 'c  d', 'e\tf', 'g\nh', 'i\u2003j', 'k\u200bl', ' m ', 'n]', '[o', 'p [q] r', 's] act[t', 'u] think[v',
       'W X', '&amp; &lt;', 'cafe\u0301', '\xad', '\u200b', 'y\x00z', '\ud800 lone', '5" ø 7', 'İ', 'buy now',
       'Description', 'link', 'button', '日本 語', '🦉', 'a\x1fb c', 'x\u2028y', '\ufeffbom', '-', ']', 'search[x]',
       'click[y]', '<b>']

@pytest.mark.parametrize('name', ['Color', 'link', 'button', 'option'])
def test_odd_options(tmp_path, name):
    items = [dict(ITEM, asin=f'B{i}', customization_options={name:[{'value':v} for v in ODD]}) for i in range(3)]
    shop = small(tmp_path, items, {i['asin']:dict(attributes=['big']) for i in items}, ask('B0', 'B1', 'B2'))
    n, refused = offered(shop)
    assert not refused and n > 3*30
    for form in PAGES: check_environment(WebShop(shop, pages=form, max_steps=50))
    env = WebShop(shop)
    env.reset(options={'task':env.tasks('train')[0]})
    [env.step(a) for a in ('search[mug]', 'click[b0]')]
    for raw, name_, kept in (('a\xa0b', 'a b', 'a\xa0b'), ('C  D', 'c d', 'c  d'), ('p [q] r', 'p [q] r', 'p [q] r'),
                             ('s] act[t', 's) act[t', 's] act[t'), ('cafe\u0301', 'caf\xe9', 'cafe\u0301'),
                             ('y\x00z', 'yz', 'y\x00z')):
        assert typed(raw) == name_
        for text in (raw, name_):
            # what is bought keeps the catalogue's text
            assert env.step(f'click[{text}]')[-1]['valid'] and env.options == {name.lower():kept}, text
    assert env.step('click[buy now]')[2]

def test_options_that_are_typed_alike(tmp_path):
    items = [dict(ITEM, asin=f'B{i}', customization_options={'Color':[{'value':v} for v in values]})
             for i,values in enumerate((['a\xa0b', 'a b'], ['a b', 'a\xa0b'], ['a  b', 'a\xa0b']))]
    shop = small(tmp_path, items, {}, ask('B0', 'B1', 'B2'))
    chosen = lambda i: webshop_env.option_clicks(shop.product(f'B{i}').options)['a b'].value
    assert [chosen(i) for i in range(3)] == ['a b', 'a b', 'a\xa0b']
    assert offered(shop)[1] == [] and options_met({'color':'a b'}, {'color':'a\xa0b'}, 'fixed') == 1

@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30))
def test_a_typed_name_stays_as_it_is(text):
    name = typed(text)
    action = f'click[{name}]'
    assert typed(name) == name and parse_step(render_step('why] act[not', action))[1] == action

@pytest.mark.parametrize('ids', [
    ['abc', 'def', 'ghi'], ['my-product-number-1', 'my-product-number-2', 'my-product-number-3'],
    ['a b', 'a/b', 'a-1'], ['é', '日本', 'ß'], ['0', '00', '1'], [0, 1, 2], ['Mixed', 'CASE', 'lower'],
    ['x[1]', 'y] act[z', 'a&b'], ['B000000001', 'b000000002', 'B3']])
def test_ids_of_other_catalogues(tmp_path, ids):
    items = [dict(ITEM, asin=a, name=f'Mug {n}') for n,a in enumerate(ids)]
    ids = [str(a) for a in ids]
    shop = small(tmp_path, items, {a:dict(attributes=['big'], instruction='Find me a big mug',
                                          instruction_attributes=['big']) for a in ids}, ask(*ids))
    assert offered(shop)[1] == [] and len(shop) == 3
    for kind in INSTRUCTIONS:
        env = WebShop(shop, instructions=kind, rewards='fixed')
        for t in (t for s in SPLITS for t in env.tasks(s)):
            played = play(env, t, oracle(env))
            again = play(env, t, [parse_step(render_step('r', a))[1] for a in played.actions])
            assert played.won and replay_equal(played, again)
            assert env.verb(played.steps[1].action, played.goal) == 'product'
        check_environment(env, 'train')

@pytest.mark.parametrize('ids, says', [
    (['buy now'], "'buy now' .* is the name of a button"), (['Next >'], 'name of a button'),
    (['description'], 'name of a button'), (['  '], 'cannot be typed'), (['a\nb'], 'cannot be typed'),
    (['\ud800'], 'cannot be typed'), (['abc', 'ABC'], "'ABC' .* is typed like the id 'abc'"),
    (['a b', 'a  b'], 'is typed like')])
def test_ids_that_cannot_be_clicked(tmp_path, ids, says):
    with pytest.raises(A3TError, match=says) as e: small(tmp_path, [dict(ITEM, asin=a) for a in ids], {}, ask(*ids))
    assert '\n' not in str(e.value) and 'give it another id' in str(e.value)

def test_ids_that_the_original_leaves_out(tmp_path):
    shop = small(tmp_path, [dict(ITEM, asin=a) for a in ('B000000001', 'B00000000000002', 'B000000001')], {},
                 ask('B000000001'))
    assert len(shop) == 1 and 'B00000000000002' not in shop
    shop = small(tmp_path, [dict(ITEM, asin=a) for a in ('B000000001', 'B00000000000002')], {}, ask('B00000000000002'))
    assert len(shop) == 2 and 'B00000000000002' in shop # people ask for it

@pytest.mark.parametrize('text, prices', [
    (9.99, (9.99,)), ('12.5', (12.5,)), (7, (7.,)), ('$5', (5.,)), ('free', (100.,)), ('$' + '9'*400, (100.,)),
    (float('nan'), (100.,)), ([], (100.,)), (True, (100.,)), ('$5.0 - $7.5 - $9', (5., 7.5))])
def test_odd_prices(text, prices): assert read_pricing(text) == prices

@pytest.mark.parametrize('files, says', [
    (dict(product_prices={'B1':'cheap'}), "the price of 'B1' is 'cheap'"),
    (dict(product_prices={'B1':float('inf')}), "the price of 'B1' is inf"),
    (dict(product_prices=[1]), 'must be a JSON object'),
    (dict(tags=[1]), 'must be a JSON object'), (dict(asked=[1]), 'must be a JSON object'),
    (dict(title_nouns={'B1':[1]}), 'product B1 .*nouns must be a list of texts'),
    (dict(tags={'B1':dict(attributes='big')}), 'product B1 .*attributes must be'),
    (dict(tags={'B1':dict(attributes=[1])}), 'product B1 .*attributes must be'),
    (dict(asked={'B1':[dict(instruction=7, instruction_attributes=[], instruction_options=[])]}),
     'product B1 .*instruction must be a text'),
    (dict(asked={'B1':[dict(instruction='x')]}), 'product B1 .*instruction_attributes'),
    (dict(reviews=[dict(x=1)]), 'must be a list of objects with an asin'),
    (dict(goals_human=[dict(asin='B1')]), 'goal 0 lacks instruction_text'),
    (dict(goals_human={}), 'must be a JSON list of goals'),
    (dict(goals_human=[dict(asin='B9', instruction_text='', attributes=[], goal_options=[], price_upper=1, query='',
                            name='', product_category='', category='')]),
                            "goal 0 is about the product 'B9', which the catalogue lacks")])
def test_faults_in_files_are_found_when_they_are_loaded(tmp_path, files, says):
    with pytest.raises(A3TError, match=says) as e:
        small(tmp_path, [dict(ITEM, asin='B1')], **{**dict(tags={}, asked={}), **files})
    assert '\n' not in str(e.value)

# -- load

BAD = ['', 'search[', 'search[]', 'click[]', 'click[\x00]', 'search[' + 'x'*10_000 + ']',
       'search[' + 'shoe '*2000 + ']', 'search[\x00\x1b[2J]', 'search[<script>alert(1)</script>]', 'click[<b>]',
       'search[\ud800]',
       'buy now', '🦉', 'search[🦉]', 'click[buy now', 'click[[buy now]]', 'search[%s%n]', "search[' or 1=1 --]",
       'search[<r>]', 'search[<a> x]', 'click[next >]'*3]

def test_fuzzed_actions(shop):
    rng, env = random.Random(0), WebShop(shop, max_steps=400)
    for form in PAGES:
        env.pages = form
        for t in env.tasks('train')[:5]:
            _, info = env.reset(options={'task':t})
            while True:
                action = rng.choice(BAD) if rng.random() < .5 else rng.choice(info['admissible_actions'])
                if action == 'click[buy now]' and rng.random() < .9: continue
                obs, reward, terminated, truncated, info = env.step(action)
                assert isinstance(obs, str) and 0 <= reward <= 1 and len(obs) < 50_000 and info['admissible_actions']
                if terminated or truncated: break

@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=60), st.text(max_size=40).map('search[{}]'.format),
                          st.text(max_size=20).map('click[{}]'.format)), max_size=6))
def test_any_actions_are_answered(shop, actions):
    env = WebShop(shop)
    play(env, env.tasks('valid')[0], actions)

def test_a_thousand_episodes_side_by_side(shop):
    envs, rng = [WebShop(shop, max_steps=10**9) for _ in range(1000)], random.Random(0)
    tasks = envs[0].tasks('train')
    infos = [e.reset(options={'task':rng.choice(tasks)})[1] for e in envs]
    def sweep(n):
        for _ in range(n):
            for k,e in enumerate(envs):
                *_, infos[k] = e.step(rng.choice([a for a in infos[k]['admissible_actions'] if a != 'click[buy now]']))
    sweep(12) # caches are full now
    tracemalloc.start()
    sweep(1)
    before, _ = tracemalloc.get_traced_memory()
    sweep(4)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before)/4000 < 500, f'{(after - before)/4000:.0f} bytes a step'

@pytest.mark.slow
@needs_data
def test_speed(official):
    import time
    env, rng, n = WebShop(official, instructions='synthetic'), random.Random(0), 0
    tasks, t = env.tasks('train'), time.process_time()
    while n < 5000: n += len(play(env, rng.choice(tasks), lambda o, i: rng.choice(i['admissible_actions'])))
    assert n/(time.process_time() - t) > 2000
