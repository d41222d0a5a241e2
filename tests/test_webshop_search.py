"""The search engine: Lucene's words, stems, lengths and scores; the lists of the original where its data are there"""
import random, threading
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from a3t.core import A3TError
from a3t.envs.webshop import search as engine
from a3t.envs.webshop.search import *

@pytest.fixture(scope='module')
def index(tmp_path_factory):
    rng = random.Random(0)
    vocabulary = [f'word{i}' for i in range(400)] + ['running', 'shoes', "men's", '❤️']
    return build_index(((f'T{i:05}', ' '.join(rng.choices(vocabulary, k=rng.randint(0, 60)))) for i in range(500)),
                       tmp_path_factory.mktemp('ix')/'index', block=130)

@pytest.mark.parametrize('text, expected', [
    ("it's 3.5", ["it's", '3.5']), ('a.b.c', ['a.b.c']), ('1,000.5', ['1,000.5']), ('a,b', ['a', 'b']),
    ('x:y', ['x:y']), ('1:2', ['1', '2']),
    ('snake_case __ _x', ['snake_case', '_x']), ('20"x20"', ['20', 'x20']), ('wi-fi/usb+c', ['wi', 'fi', 'usb', 'c']),
    ('日本語', ['日', '本', '語']),
    ('カタカナ', ['カタカナ']), ('ひら', ['ひ', 'ら']), ('한국어 옷', ['한국어', '옷']), ('สวัสดี', ['สวัสดี']),
    ('naïve café', ['naïve', 'café']), ('ﬁt １２', ['ﬁt', '１２'])])
def test_words(text, expected): assert words(text) == expected

@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("aZ09_.:,;'\"- \t\n#*()/"), max_size=40))
def test_the_short_way_for_ascii_finds_the_same_words(text):
    assert words(text) == engine._WORD.findall(text)

@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_terms(text): assert all(isinstance(t, str) and t for t in terms(text))

def test_stems():
    # where Lucene's edition and Snowball's differ: -bli, -logi, double consonants that Snowball leaves
    pairs = dict(possibly='possibl', technology='technolog', biology='biologi', trekking='trek', revved='rev',
                 sayyed='sayi', caresses='caress', ponies='poni', ties='ti', cats='cat',
                 feed='feed', agreed='agre', plastered='plaster', motoring='motor', sing='sing', conflated='conflat',
                 troubled='troubl', sized='size', hopping='hop', falling='fall',
                 hissing='hiss', fizzed='fizz', failing='fail', filing='file', happy='happi', sky='sky',
                 relational='relat', conditional='condit', vileli='vile', operator='oper',
                 feudalism='feudal', decisiveness='decis', hopefulness='hope', sensibility='sensibl',
                 triplicate='triplic', electrical='electr', goodness='good', revival='reviv',
                 adjustable='adjust', replacement='replac', adoption='adopt', communism='commun', effective='effect',
                 probate='probat', rate='rate', cease='ceas', controll='control', roll='roll', a='a', by='by')
    assert {w:stem(w) for w in pairs} == pairs

def test_lengths_in_one_byte():
    values = [from_byte4(i) for i in range(256)]
    assert values == sorted(values) and all(byte4(v) == i for i,v in enumerate(values) if v < 2**31)
    for n in range(5000): assert from_byte4(byte4(n)) <= n < from_byte4(byte4(n) + 1)

def everything(index, query, k=50):
    acc = np.zeros(len(index))
    for w,d,f in sorted((p for t,n in engine.Counter(terms(query)).items() if (p := index._postings(t, n))),
                        key=lambda p: -p[0]):
        acc[d] += index._part(w, d, f)
    scores = acc.astype(np.float32)
    return [(index._ids[d].decode(), float(scores[d])) for d in np.lexsort((index._rank, -scores))[:k] if scores[d] > 0]

def test_the_shortcut_changes_nothing(index):
    rng = random.Random(1)
    for k in (1, 3, 10, 50):
        for _ in range(100):
            q = ' '.join(rng.choices([f'word{i}' for i in range(400)] + ['running', 'men'], k=rng.randint(1, 30)))
            assert index.search(q, k) == everything(index, q, k)

def test_blocks_change_nothing(index, tmp_path):
    texts = [('A', 'red shoe'), ('B', 'blue shoe shoe'), ('C', ''), ('D', 'red red hat')]
    a, b = build_index(texts, tmp_path/'a', block=1), build_index(texts, tmp_path/'b')
    for n in engine.ARRAYS: assert np.array_equal(getattr(a, '_'+n), getattr(b, '_'+n)), n

def test_odd_indexes(tmp_path):
    empty = build_index([], tmp_path/'empty')
    assert len(empty) == 0 and empty.search('shoe') == []
    assert build_index([('A', ''), ('B', 'the of')], tmp_path/'blank').search('the shoe') == []
    with pytest.raises(A3TError, match='comes twice'): build_index([('A', 'x'), ('A', 'y')], tmp_path/'twice')
    assert not (tmp_path/'twice').exists() and not list(tmp_path.glob('.*'))
    with pytest.raises(A3TError, match='missing'): Index(tmp_path/'none')
    (tmp_path/'empty'/'docs.npy').write_bytes(b'broken')
    with pytest.raises(A3TError, match='not a complete index'): Index(tmp_path/'empty')

def test_ties_go_by_id(tmp_path):
    ix = build_index([(i, 'same words here') for i in ('B2', 'A9', 'C1', 'A1')], tmp_path/'ties')
    assert [i for i,_ in ix.search('same words')] == ['A1', 'A9', 'B2', 'C1']

@settings(max_examples=100, deadline=None)
@given(query=st.text(max_size=300))
def test_any_query_is_answered(index, query):
    hits = index.search(query)
    assert len(hits) <= 50 and hits == sorted(hits, key=lambda h: (-h[1], h[0]))

@pytest.mark.parametrize('query',
                         ['shoes '*2000, 'x'*10_000, '\x00\x01\x1b[0m', '<script>alert(1)</script>', '\ud800',
                          ' '.join(f'word{i}' for i in range(2000)), '❤️'*3000])
def test_long_and_odd_queries(index, query): assert len(index.search(query)) <= 50

def _search(folder): return Index(folder).search('running shoes word7')
def test_processes_share_an_index(index):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn')) as pool:
        assert list(pool.map(_search, [index.folder]*2)) == [_search(index.folder)]*2

def test_threads_share_an_index(index):
    res = []
    ts = [threading.Thread(target=lambda: res.append(index.search('running word3 word4'))) for _ in range(8)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert all(r == res[0] for r in res) and len(res) == 8
