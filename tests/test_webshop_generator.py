"The generated shop: WebShop's formats, numbers like the real ones, every instruction within reach of its product"
import json, os, re, subprocess, sys
from collections import Counter

import pytest

from a3t import core, files
from a3t.core import A3TError
from a3t.envs.webshop import generator
from a3t.envs.webshop.words import OPTIONS, VOCABULARY, plural, shelves
from a3t.envs.webshop.generator import (
    CATEGORY_SHARES, generate_product, generate_shop, own_words, product_id, read_shop_file, shop_facts, shop_files,
    title_nouns)

@pytest.fixture(scope='module')
def made(): return [generate_product(0, i) for i in range(1000)]

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return generate_shop(3, 400, tmp_path_factory.mktemp('shops'))

def values(product): return {k:[c['value'] for c in v] for k,v in (product['customization_options'] or {}).items()}

def test_the_same_seed_gives_the_same_files(folder, tmp_path):
    again = generate_shop(3, 400, tmp_path)
    contents = lambda shop: {p.name:p.read_bytes() for p in shop.iterdir()}
    assert again.name == folder.name and contents(again) == contents(folder)
    assert generate_shop(4, 400, tmp_path).name != folder.name and generate_shop(3, 399, tmp_path).name != folder.name

def test_another_process_gives_the_same_shop():
    code = ('from a3t.envs.webshop.generator import *; from a3t.core import content_hash; '
            'print(content_hash(shop_files(5, 50)))')
    run = lambda hashseed: subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONHASHSEED':hashseed},
                                          capture_output=True, text=True, check=True).stdout.strip()
    assert run('1') == run('2') == core.content_hash(shop_files(5, 50))

def test_a_seed_gives_the_shop_that_it_always_gave():
    "Runs name a generated shop by its seed: a change of words or rules needs another `GENERATOR_VERSION`"
    assert core.content_hash(shop_files(5, 50)) == '6cbb5d52f4e988e0541a432e761b4c0d1ec9c0225c389d883e947b284257fce4'

def test_a_larger_shop_begins_with_the_smaller_one():
    small, large = shop_files(0, 20), shop_files(0, 30)
    assert large['items_shuffle_30.json'][:20] == small['items_shuffle_20.json']
    assert shop_files(1, 20)['items_shuffle_20.json'] != small['items_shuffle_20.json']

def test_an_interrupted_shop_is_generated_again(tmp_path, monkeypatch):
    write, written = generator.write_atomic, []
    def stop(path, content):
        if len(written) == 2: raise KeyboardInterrupt
        written.append(path); write(path, content)
    monkeypatch.setattr(generator, 'write_atomic', stop)
    with pytest.raises(KeyboardInterrupt): generate_shop(0, 10, tmp_path)
    monkeypatch.undo()
    folder = generate_shop(0, 10, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == sorted(['shop.json', *shop_files(0, 10)])
    hashes = files.read_json(folder/'shop.json')['files']
    assert {n:files.file_hash(folder/n) for n in hashes} == hashes

def test_a_finished_shop_is_left_alone(folder):
    times = {p:p.stat().st_mtime_ns for p in folder.iterdir()}
    assert generate_shop(3, 400, folder.parent) == folder
    assert {p:p.stat().st_mtime_ns for p in folder.iterdir()} == times

def test_bad_arguments_are_errors(tmp_path):
    with pytest.raises(A3TError, match='1 or more'): generate_shop(0, 0, tmp_path)
    with pytest.raises(A3TError, match='is not a shop'): shop_facts(tmp_path)

def test_the_records_have_the_keys_of_the_original(made):
    for p,tags,asked,price in made:
        assert set(p) == {'name', 'full_description', 'pricing', 'images', 'product_category', 'average_rating',
                          'small_description', 'customization_options', 'asin', 'category', 'query', 'page'}
        assert p['images'] and p['category'] in CATEGORY_SHARES
        assert isinstance(p['small_description'], list) and p['small_description']
        assert re.fullmatch('[0-9A-Z]{10}', p['asin']) and re.fullmatch(r'(\$\d+\.\d+( - \$\d+\.\d+)?)?', p['pricing'])
        assert p['customization_options'] == '' or all(len({c['value'] for c in v}) == len(v) >= 2
                                                       for v in p['customization_options'].values())
        assert set(tags) in ({'attributes'}, {'attributes', 'instruction', 'instruction_attributes'})
    assert len({p['asin'] for p,*_ in made}) == len({p['name'] for p,*_ in made}) == 1000

def test_the_price_belongs_to_its_text(made):
    for p,_,_,price in made:
        low = [float(x) for x in re.findall(r'[\d.]+', p['pricing'])]
        least, most = (low[0], low[:2][-1]) if low else (100, 100)
        assert least <= price <= most

def test_every_instruction_is_within_reach_of_its_product(made):
    for p,tags,asked,_ in made:
        offered = {v.lower() for vs in values(p).values() for v in vs}
        for a in asked:
            wanted = a['instruction_attributes']
            assert a['asin'] == p['asin'] and 1 <= len(wanted) == len(set(wanted))
            assert (set(a['instruction_attributes']) <= set(tags['attributes'])
                    and set(a['instruction_options']) <= offered)
        if 'instruction' in tags:
            assert (set(tags['instruction_attributes']) <= set(tags['attributes'])
                    and len(tags['instruction_attributes']) >= 2)

def test_an_instruction_says_what_it_asks_for(made):
    for p,tags,asked,_ in made:
        for a in asked:
            said = a['instruction'].replace('-', ' ')
            assert all(x.replace('-', ' ') in said for x in a['instruction_attributes'])
            for o in a['instruction_options']:
                plain = re.sub(r'^\d\d-', '', o)
                assert plain.replace('-', ' ') in said or own_words(plain).replace('-', ' ') in said, (o, said)
            assert not re.search(r'price|dollar|  |\{|\}', a['instruction']), 'the price is added by the loader'
        if 'instruction' in tags:
            assert all(x in tags['instruction'] for x in (*tags['instruction_attributes'], p['query']))

def test_no_text_has_a_hole_in_it(made):
    for p,*_ in made:
        text = ' '.join(filter(None, (p['name'], p['full_description'], *p['small_description'],
                                      p['product_category'])))
        assert not re.search(r'[{}|*+]|\.\.|  |None', text), text

def test_titles_and_their_nouns(made):
    for p,*_ in made:
        nouns = title_nouns(p['name'])
        name = p['name'].lower()
        words = re.findall(r"[a-z]+", name.replace("'s", '')) + re.findall(r"[a-z][a-z']*", name)
        assert nouns and set(nouns) <= set(words)
    nouns = title_nouns("Orla Premium Women's Wrap Dress with 2 Hidden Pockets, 16 x 20 Inch")
    assert nouns == ['orla', 'women', 'wrap', 'dress', 'hidden', 'pockets', 'x', 'inch']

def test_sizes_are_neighbours(made):
    order = OPTIONS['cloth']['values']
    for p,*_ in made:
        size = values(p).get('Size', [])
        if size and set(size) <= set(order):
            first = order.index(size[0])
            assert size == order[first:first + len(size)]

def test_the_vocabulary():
    for c,all in shelves().items():
        for s in all:
            assert len(s.things) == 5 and len(s.path) == 3 and s.price > 0 and s.path[0] == VOCABULARY['roots'][c]
            assert all_two_words(s.attributes) and set(s.attributes.values()) == {'is', 'with', 'for'}
            assert all_known(s.options, c)
    things = [plural(t) for all in shelves().values() for s in all for t in s.things]
    assert len(things) == len(set(things)) and all_two_words(sum(VOCABULARY['common'].values(), []))

def all_two_words(attributes): return all(len(a.split()) == 2 for a in attributes)
def all_known(kinds, category): return all(k in OPTIONS or f'style_{category}' in OPTIONS for k in kinds)

@pytest.mark.parametrize('seed', (0, 1))
def test_numbers_are_like_the_real_ones(seed, tmp_path):
    f = shop_facts(generate_shop(seed, 1000, tmp_path))
    mean = lambda k: sum(f[k])/len(f[k])
    middle = lambda k: sorted(f[k])[len(f[k])//2]
    for k,real,off in (('has options', .42, .08), ('attribute is in the title', .33, .05),
                       ('attribute is in the texts', .79, .05), ('no price', .09, .03), ('price range', .09, .03),
                       ('attributes', 2.8, .5)):
        assert abs(mean(k) - real) < off, (k, mean(k))
    for k,low,high in (('words of a title', 16, 21), ('bullet points', 5, 5), ('attributes', 2, 2),
                       ('price, dollars', 24, 38), ('products of a query', 3, 5)):
        assert low <= middle(k) <= high, (k, middle(k))

def test_identifiers_stay_apart_in_the_full_size():
    assert len({product_id(0, i) for i in range(0, 1_180_000, 7)}) == len(range(0, 1_180_000, 7))

def test_files_are_what_the_functions_say(folder, made):
    items = read_shop_file(folder, 'items_shuffle')
    assert (Counter(p['category'] for p in items).keys() == CATEGORY_SHARES.keys()
            and json.loads(json.dumps(items)) == [generate_product(3, i)[0] for i in range(400)])
    products = [generate_product(3, i) for i in range(400)]
    assert set(read_shop_file(folder, 'items_human_ins')) == {p['asin'] for p,_,asked,_ in products if asked}
